"""Installs little packages into a folder, as pip would leave them there."""

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.workers.engines import plugins


def install(folder: Path, name: str, engines: Mapping[str, str], **modules: str) -> None:
    """Write a package's modules, and the metadata that names its engines.

    Args:
        folder: On `sys.path`.
        name: The package.
        engines: Entry points: `module:Class` by name.
        modules: Source by module.
    """
    metadata = folder / f"{name.replace('-', '_')}-1.0.0.dist-info"
    metadata.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n"
    (metadata / "METADATA").write_text(text, encoding="utf-8")
    lines = [f"{entry} = {value}" for entry, value in engines.items()]
    points = "\n".join([f"[{plugins.GROUP}]", *lines, ""])
    (metadata / "entry_points.txt").write_text(points, encoding="utf-8")
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source, encoding="utf-8")


def install_project(project: Path, folder: Path) -> None:
    """Install a project's metadata as its `pyproject.toml` says, and its modules."""
    document = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = {path.stem: path.read_text(encoding="utf-8") for path in project.glob("*.py")}
    install(folder, document["name"], document["entry-points"][plugins.GROUP], **modules)


@contextmanager
def on_path(folder: Path) -> Iterator[None]:
    """Put a folder on `sys.path`; what engines were found is forgotten before and after."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        plugins.discover.cache_clear()
        try:
            yield
        finally:
            plugins.discover.cache_clear()
            plugins._checked.cache_clear()

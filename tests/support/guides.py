"""Takes the files and the commands out of a guide, so that a test can run what readers type.

A fence ```` ```python title="a/b.py" ```` is a file; one of `console` holds commands behind `$ `.
"""

import re
from pathlib import Path

from tests.support.code import ROOT


_FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def files(guide: str) -> dict[str, str]:
    """Return the files of a guide, by the path it gives them.

    Args:
        guide: Name of a document of `docs/guides`, without its ending.
    """
    return {title: body for _, title, body in _fences(guide) if title}


def commands(guide: str) -> list[str]:
    """Return what a guide's reader types, line by line."""
    lines = [
        line
        for language, _, body in _fences(guide)
        if language == "console"
        for line in body.replace("\\\n", " ").splitlines()
    ]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def write(guide: str, folder: Path) -> None:
    """Write the files of a guide below a folder."""
    for title, body in files(guide).items():
        path = folder / title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body, encoding="utf-8")


def text(guide: str) -> str:
    """Return a guide."""
    return (ROOT / "docs" / "guides" / f"{guide}.md").read_text(encoding="utf-8")


def _fences(guide: str) -> list[tuple[str, str, str]]:
    return _FENCE.findall(text(guide))

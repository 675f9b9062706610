"""The guide to engine plugins, as a reader follows it."""

import subprocess
import sys
from pathlib import Path

from schemas import catalogue
from services.workers.engine import Request
from services.workers.models import Capacity, Models
from tests.support import guides, packages
from tests.support.code import ROOT


GUIDE = "engine-plugin"


async def test_the_engine_serves(tmp_path: Path) -> None:
    """Installed as the guide's pyproject.toml says, named as its catalogue says."""
    guides.write(GUIDE, tmp_path)
    packages.install_project(tmp_path, tmp_path / "site")
    known = catalogue.parse((tmp_path / "catalogue.yaml").read_text(encoding="utf-8"))
    with packages.on_path(tmp_path / "site"):
        held = Models(known, "text", tmp_path, allow_fallback=True, capacity=Capacity())
        [offer] = held.offers()
        assert offer.available, offer.reason
        params = held.params("reading-time", {"words_per_minute": 2})
        answer = await held.infer("reading-time", Request({"text": "just a test"}, params))
        held.close()
    assert {"words": 3, "minutes": 1.5} == answer.outputs


def test_the_guides_own_test_passes(tmp_path: Path) -> None:
    """The last command, word by word."""
    guides.write(GUIDE, tmp_path)
    [_, command] = guides.commands(GUIDE)
    assert command.startswith("python -m pytest")
    done = subprocess.run(  # noqa: S603 - our own interpreter and guide
        [sys.executable, *command.split()[1:], "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert 0 == done.returncode, done.stdout + done.stderr

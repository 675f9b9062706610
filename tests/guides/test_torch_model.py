"""The guide to torch models, as a reader follows it."""

import runpy
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clawdbot.cli.main import app
from events.packages import packages
from schemas.parity import Report
from tests.support import guides


GUIDE = "torch-model"


@pytest.mark.filterwarnings("ignore")
def test_the_model_is_converted_and_quantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of the page; each model is smaller than its source and as often right."""
    pytest.importorskip("torch", reason="the extra `torch` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `convert` is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    guides.write(GUIDE, tmp_path)
    make, *commands = guides.commands(GUIDE)
    runpy.run_path(make.removeprefix("python "), run_name="__main__")
    for command in commands:
        program, *words = shlex.split(command)
        done = CliRunner().invoke(app, words)
        assert ("clawdbot", 0) == (program, done.exit_code), done.output
    sys.modules.pop("triage")

    pushed = {package.name: package.spec for package in packages(tmp_path / "models")}
    assert {"triage", "triage-int8", "triage-static"} == pushed.keys()
    assert all(spec.parity is not None and spec.max_batch_size for spec in pushed.values())
    reports = {
        folder.name: Report.model_validate_json((folder / "parity.json").read_bytes())
        for folder in (tmp_path / "models").iterdir()
    }
    assert {"triage", "triage-int8", "triage-static"} == reports.keys()
    assert "calibration.npz" == reports["triage"].parity.inputs
    assert "calibration.npz" == reports["triage-static"].calibration
    for name in ("triage-int8", "triage-static"):
        report = reports[name]
        assert report.model_bytes < report.source_bytes
        assert report.accuracy is not None
        assert (500, True) == (report.accuracy.rows, report.accuracy.source > 0.9)

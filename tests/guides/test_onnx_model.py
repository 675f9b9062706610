"""The guide to ONNX models, as a reader follows it."""

import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from clawdbot.cli.main import app
from events.packages import packages
from schemas import catalogue
from schemas.catalogue import ModelSpec
from schemas.pushes import check_spec
from schemas.values import Tensor
from services.workers.engine import Request
from services.workers.models import Capacity, Models
from tests.support import guides


GUIDE = "onnx-model"


async def test_the_model_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, the entry that it writes, the catalogue with it, and the answer that is told."""
    pytest.importorskip("onnxruntime", reason="the extra `models` is not installed")
    monkeypatch.chdir(tmp_path)
    guides.write(GUIDE, tmp_path)
    make, convert = guides.commands(GUIDE)
    runpy.run_path(make.removeprefix("python "))
    program, *words = shlex.split(convert)
    made = CliRunner().invoke(app, words)
    assert ("clawdbot", 0) == (program, made.exit_code), made.output

    known = catalogue.parse((tmp_path / "catalogue.yaml").read_text(encoding="utf-8"))
    text = (tmp_path / "models" / "iris" / "model.yaml").read_text(encoding="utf-8")
    written = ModelSpec.model_validate(yaml.safe_load(text))
    told = known.models["iris"]
    assert [port.tensor_name for port in written.inputs] == [p.tensor_name for p in told.inputs]
    own = {"source": told.source, "parity": None, "inputs": told.inputs, "outputs": told.outputs}
    assert told == written.model_copy(update=own)

    [package] = packages(tmp_path / "models" / "iris")  # what `clawdbot models push` takes
    check_spec(package.spec, package.paths)
    assert ("iris", ("model.onnx", "parity.json")) == (package.name, package.paths)

    held = Models(known, "text", tmp_path / "models", allow_fallback=True, capacity=Capacity())
    row = np.array([[5.1, 3.5, 1.4, 0.2]], "f4")
    request = Request({"x": Tensor(datatype="FP32", shape=row.shape, data=row.tobytes())})
    answer = await held.infer("iris", request)
    held.close()
    found = np.frombuffer(answer.outputs["probabilities"].data, "<f4")
    says = "The chances are {:.2f}, {:.2f} and {:.2f}.".format(*found)
    assert says in guides.text(GUIDE)

"""The model repository: from a folder to answers, over every way that clients have."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from clawdbot import Client, WorkflowBuilder
from clawdbot.packages import Hints
from schemas.values import Tensor
from tests.integration.conftest import Running
from tests.support import onnx_models as tiny


pytestmark = pytest.mark.nats


ONES = Tensor(datatype="FP32", shape=(1, 2), data=np.ones(2, "<f4").tobytes())


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    """A client of the first gateway."""
    with Client(running.url()) as client:
        yield client


def times(factor: float) -> Any:
    """Return a model whose Y is X times a factor, FP32 [n, 2]."""
    weight = tiny.helper.make_tensor("factor", tiny.TensorProto.FLOAT, [1], [factor])
    node = tiny.helper.make_node("Mul", ["X", "factor"], ["Y"])
    ports = {"X": ("FP32", ("n", 2))}
    return tiny.model([node], ports, {"Y": ("FP32", ("n", 2))}, [weight])


def written(folder: Path, name: str, factor: float) -> Path:
    """Write a model's file, and return where."""
    tiny.save(times(factor), folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


def asked(url: str, name: str, version: str = "") -> float:
    """Return by which factor a model multiplies, asked with Triton's own client."""
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    try:
        tensor = triton.InferInput("X", [1, 2], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 2), np.float32))
        found = client.infer(name, [tensor], model_version=version).as_numpy("Y")
        return float(found[0, 0])
    finally:
        client.close()


def test_from_a_file_to_answers(client: Client, running: Running, tmp_path: Path) -> None:
    """A file is pushed, served by both gateways and usable in workflows, with no restart."""
    [pushed] = client.repository.push(written(tmp_path, "double", 2.0), hints=Hints())
    assert ("double", 1, 1, True) == (pushed.name, pushed.version, pushed.current, pushed.created)
    assert [2.0, 2.0] == [asked(running.url(name), "double") for name in ("gateway-0", "gateway-1")]
    WorkflowBuilder().add_node("a", model="double").deploy("doubling", client=client)
    run = client.run("doubling", {"x": ONES})
    assert "completed" == run.status
    assert "double@1" == run.nodes[0].model

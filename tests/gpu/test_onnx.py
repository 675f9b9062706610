"""ONNX models on the CUDA provider: the same numbers, really computed there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from schemas.errors import ModelUnavailable
from schemas.values import Tensor
from services.workers.engine import Request
from tests.gpu.conftest import Hold, array, fp32
from tests.support import onnx_models as tiny


@pytest.fixture
def entry(tmp_path: Path, cuda: str) -> dict[str, Any]:
    """Y = 3 * sum(X) of 512 numbers, on CUDA."""
    tiny.save(tiny.scaling(3, 512), tmp_path / "scaling.onnx")
    ports = ([tiny.port(name, "FP32", [-1, 512])] for name in ("X", "Y"))
    return tiny.entry("scaling.onnx", *ports, max_batch_size=64, params={"providers": [cuda]})


async def test_it_computes_there(entry: dict[str, Any], hold: Hold, cuda: str) -> None:
    """The card names the provider that has the graph, and what the model takes of the GPU."""
    held = hold(model=entry)
    given = np.random.default_rng(1).random((5, 512), np.float32)
    answer = await held.infer("model", Request({"x": fp32(given)}))
    wanted = np.repeat(3 * given.sum(1, keepdims=True), 512, 1)
    np.testing.assert_allclose(wanted, array(answer.outputs["y"]), rtol=1e-3)
    [offer] = held.offers()
    assert (cuda,) == offer.devices
    assert offer.device_bytes > 512 * 512 * 4


async def test_no_part_of_the_graph_is_refused(tmp_path: Path, hold: Hold, cuda: str) -> None:
    """A provider that computes nothing of a model is not active, however the session is named."""
    node = helper.make_node("Unique", ["X"], ["Y"])
    ports = {"X": ("FP32", ("n",))}, {"Y": ("FP32", ("m",))}
    tiny.save(tiny.model([node], *ports), tmp_path / "unique.onnx")
    sides = ([tiny.port(name, "FP32", [-1])] for name in ("X", "Y"))
    strict = tiny.entry("unique.onnx", *sides, params={"providers": [cuda]})
    lenient = {**strict, "params": {"providers": [cuda], "strict_provider": False}}
    held = hold(strict=strict, lenient=lenient)
    asked = Request({"x": fp32([2, 1, 2])})
    with pytest.raises(ModelUnavailable, match="can compute nothing of this model"):
        await held.infer("strict", asked)
    answer = await held.infer("lenient", asked)
    assert [1, 2] == array(answer.outputs["y"]).tolist()
    assert [("CPUExecutionProvider",)] == [
        offer.devices for offer in held.offers() if offer.model == "lenient"
    ]


async def test_a_gpu_that_is_not_there(entry: dict[str, Any], hold: Hold, cuda: str) -> None:
    """Is no reason to compute elsewhere."""
    options = {cuda: {"device_id": 63}}
    held = hold(model={**entry, "params": {"providers": [cuda], "provider_options": options}})
    with pytest.raises(ModelUnavailable):
        await held.infer("model", Request({"x": fp32(np.zeros((1, 512)))}))


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
async def test_half_the_bits(tmp_path: Path, hold: Hold, cuda: str, datatype: str) -> None:
    """Come and go as they are."""
    tiny.save(tiny.identity(datatype), tmp_path / "same.onnx")
    ports = ([tiny.port(name, datatype, [-1, 2])] for name in ("X", "Y"))
    held = hold(model=tiny.entry("same.onnx", *ports, params={"providers": [cuda]}))
    given = Tensor(datatype=datatype, shape=(1, 2), data=b"\x80\x3f\x00\x40")
    answer = await held.infer("model", Request({"x": given}))
    assert given == answer.outputs["y"]

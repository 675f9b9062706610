"""Requests of different lengths in one call: what they give is what each gives alone."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from schemas.catalogue import Catalogue, ModelSpec
from schemas.errors import InvalidArgument
from schemas.values import Tensor
from services.workers import warming
from services.workers.engine import Request
from services.workers.engines.onnx import OnnxEngine
from services.workers.models import Capacity, Models
from tests.support import onnx_models as tiny


BUCKETS = {
    "sizes": [4, 8, 16],
    "inputs": {"x": {"axis": 1, "value": 7}},
    "mask": "mask",
    "outputs": {"twice": 1},
}


def pooling() -> Any:
    """Return a model of X [n, length, 2] and MASK [n, length]: TWICE = 2 X, MEAN over the mask."""
    minus = helper.make_tensor("minus", TensorProto.INT64, [1], [-1])
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    two = helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])
    nodes = [
        helper.make_node("Mul", ["X", "two"], ["TWICE"]),
        helper.make_node("Cast", ["MASK"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "minus"], ["wide"]),
        helper.make_node("Mul", ["X", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["wide", "one"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["MEAN"]),
    ]
    inputs = {"X": ("FP32", ("n", "length", 2)), "MASK": ("INT64", ("n", "length"))}
    outputs = {"TWICE": ("FP32", ("n", "length", 2)), "MEAN": ("FP32", ("n", 2))}
    return tiny.model(nodes, inputs, outputs, [minus, one, two])


def document(buckets: Any = BUCKETS, **rest: Any) -> dict[str, Any]:
    """Return its catalogue entry."""
    mask = {**tiny.port("MASK", "INT64", [-1, -1]), "required": False}
    return tiny.entry(
        "pooling.onnx",
        [tiny.port("X", "FP32", [-1, -1, 2]), mask],
        [tiny.port("TWICE", "FP32", [-1, -1, 2]), tiny.port("MEAN", "FP32", [-1, 2])],
        **{"max_batch_size": 32, "buckets": buckets, **rest},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a models directory."""
    found = tmp_path_factory.mktemp("models")
    tiny.save(pooling(), found / "pooling.onnx")
    return found


@pytest.fixture(scope="module")
def engine(folder: Path) -> OnnxEngine:
    """Return the model, loaded."""
    found = OnnxEngine(ModelSpec.model_validate(document()), folder)
    found.load()
    return found


def tensor(array: NDArray[Any]) -> Tensor:
    """Return an array as a tensor."""
    datatype = {"float32": "FP32", "int64": "INT64"}[array.dtype.name]
    return Tensor(datatype=datatype, shape=array.shape, data=array.tobytes())


def alone(x: NDArray[Any], mask: NDArray[Any] | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return what numpy gives, without padding."""
    weights = np.ones(x.shape[:2], np.float32) if mask is None else mask.astype(np.float32)
    sums = (x * weights[..., None]).sum(axis=1)
    return 2 * x, sums / weights.sum(axis=1, keepdims=True)


def array(value: Any) -> NDArray[Any]:
    """Return a tensor as an array."""
    return np.frombuffer(value.data, np.float32).reshape(value.shape)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 3), st.booleans()), min_size=1, max_size=8
    ),
    st.integers(0, 2**32),
)
def test_together_they_give_what_each_gives_alone(
    engine: OnnxEngine, asks: list[tuple[int, int, bool]], seed: int
) -> None:
    """Of any length and number of rows, with a mask of one's own or none, in one call."""
    chance = np.random.default_rng(seed)
    calls: dict[Any, list[tuple[Request, NDArray[Any], NDArray[Any] | None]]] = {}
    for length, rows, has_mask in asks:
        x = chance.standard_normal((rows, length, 2)).astype(np.float32)
        mask = None
        if has_mask:
            mask = chance.integers(0, 2, (rows, length))
            mask[:, 0] = 1
        given = {"x": tensor(x)} | ({} if mask is None else {"mask": tensor(mask)})
        request = Request(given)
        calls.setdefault(engine.batch_key(request), []).append((request, x, mask))
    assert None not in calls
    for key, items in calls.items():
        assert key[0][0] in {4, 8, 16, *range(17, 21)}
        for (_, x, mask), found in zip(
            items, engine.infer([item[0] for item in items]), strict=True
        ):
            twice, mean = alone(x, mask)
            assert (twice == array(found["twice"])).all()
            np.testing.assert_allclose(mean, array(found["mean"]), rtol=1e-5, atol=1e-6)


async def test_different_lengths_share_a_call(folder: Path) -> None:
    """Lengths 5 to 8 are one bucket: who asks together is computed together."""
    catalogue = Catalogue.model_validate({"models": {"pooling": document()}})
    held = Models(catalogue, "text", folder, allow_fallback=True, capacity=Capacity())
    asks = [Request({"x": tensor(np.ones((1, n, 2), np.float32))}) for n in (5, 6, 7, 8)]
    await held.infer("pooling", asks[0])
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(held.infer("pooling", ask)) for ask in asks]
    answers = [task.result() for task in asked]
    assert [4, 4, 4, 4] == [answer.batch_size for answer in answers]
    assert [5, 6, 7, 8] == [answer.outputs["twice"].shape[1] for answer in answers]
    held.close()


def test_lengths_must_agree(engine: OnnxEngine) -> None:
    """A mask of another length is refused by name, and does not disturb a batch."""
    x, mask = np.ones((1, 5, 2), np.float32), np.ones((1, 4), np.int64)
    request = Request({"x": tensor(x), "mask": tensor(mask)})
    assert engine.batch_key(request) is None
    with pytest.raises(InvalidArgument, match="is 5 long in dimension 1, the other inputs are 4"):
        engine.infer([request])


def test_it_is_warmed_at_each_length(engine: OnnxEngine) -> None:
    """With the inputs that every request has."""
    asks = list(warming.zeros(engine.spec))
    assert [(1, 4, 2), (1, 8, 2), (1, 16, 2)] == [ask.inputs["x"].shape for ask in asks]
    engine.warm(asks)


@pytest.mark.parametrize(
    ("buckets", "said"),
    [
        ({**BUCKETS, "sizes": [8, 4]}, "must ascend"),
        ({**BUCKETS, "inputs": {"y": {}}}, "no input 'y'"),
        ({**BUCKETS, "mask": "nobody"}, "no input 'nobody'"),
        ({**BUCKETS, "inputs": {"x": {"axis": 2}}}, "dimension 2 of input 'x' must be -1"),
        ({**BUCKETS, "inputs": {"x": {"axis": 0}}}, "not that of the rows"),
        ({**BUCKETS, "outputs": {"mean": 1}}, "dimension 1 of output 'mean' must be -1"),
        ({**BUCKETS, "mask": "", "inputs": {"mask": {}}}, "input 'mask' must be required"),
    ],
)
def test_what_cannot_be_padded_is_refused(buckets: Any, said: str) -> None:
    """When the catalogue is read."""
    with pytest.raises(ValueError, match=said):
        ModelSpec.model_validate(document(buckets))

"""What a gateway keeps of sequences: within its limits, and not for ever."""

import pytest

from schemas.catalogue import ModelSpec, Port
from schemas.errors import EngineFailed, FailedPrecondition, InvalidArgument, ResourceExhausted
from schemas.sequences import StateSpec
from schemas.values import Tensor
from services.gateway.inference.asks import InferAsk, Step
from services.gateway.inference.sequences import Sequences, _id
from tests.support.clock import ManualClock


ROW = Tensor(datatype="FP32", shape=(1, 2), data=bytes(8))


def spec() -> ModelSpec:
    """Return a model with a state of 8 bytes."""
    ports = {
        name: Port(name=name, kind="tensor", datatype="FP32", shape=(-1, 2))
        for name in ("x", "h", "y", "h_out")
    }
    return ModelSpec(
        modality="text",
        engine="onnx",
        inputs=(ports["x"], ports["h"]),
        outputs=(ports["y"], ports["h_out"]),
        state=(StateSpec(input="h", output="h_out"),),
    )


async def step(
    known: Sequences, name: str, *, start: bool = False, end: bool = False, gives: str = "h_out"
) -> bytes:
    """Take a step; return the state it began with, and leave one byte more."""
    ask = InferAsk(inputs={"x": ROW}, outputs=(), step=Step(name, start, end))
    async with known.turn("m", spec(), ask) as turn:
        state = turn.ask.inputs["h"].data
        turn.outputs = {gives: Tensor(datatype="FP32", shape=(1, 2), data=b"\1" + state[:7])}
    return bytes(state)


def sequences(clock: ManualClock, *, count: int = 2, size: int = 1000) -> Sequences:
    """Return the sequences of a gateway."""
    return Sequences(clock, idle_s=10, count_max=count, bytes_max=size)


async def test_an_idle_sequence_is_forgotten() -> None:
    """And makes room; one that is not idle is not."""
    clock = ManualClock(0.0)
    known = sequences(clock)
    await step(known, "a", start=True)
    clock.advance(6)
    await step(known, "b", start=True)
    with pytest.raises(ResourceExhausted, match="2 sequences"):
        await step(known, "c", start=True)
    clock.advance(6)
    await step(known, "c", start=True)
    with pytest.raises(FailedPrecondition, match="'a' is not known here"):
        await step(known, "a")
    assert b"\1" + bytes(7) == await step(known, "b")
    assert b"\1\1" + bytes(6) == await step(known, "b", end=True)
    await step(known, "d", start=True)


async def test_states_have_a_limit_in_bytes() -> None:
    """What ended does not count."""
    known = sequences(ManualClock(0.0), count=9, size=16)
    await step(known, "a", start=True)
    await step(known, "b", start=True)
    with pytest.raises(ResourceExhausted, match="16 bytes"):
        await step(known, "c", start=True)
    await step(known, "a", end=True)
    await step(known, "c", start=True)
    assert 16 == known._bytes


async def test_a_step_that_fails_changes_nothing() -> None:
    """The state is as before, and the step can be taken again."""
    known = sequences(ManualClock(0.0))
    await step(known, "a", start=True)
    with pytest.raises(EngineFailed, match="no state 'h_out'"):
        await step(known, "a", gives="y")
    assert b"\1" + bytes(7) == await step(known, "a")


def test_a_state_must_fit() -> None:
    """Input and output are there, of one kind, and of a size that is known but for the rows."""
    good = spec().model_dump()
    for change, says in (
        ({"state": [{"input": "z", "output": "h_out"}]}, "no input 'z'"),
        ({"state": [{"input": "h", "output": "z"}]}, "no output 'z'"),
    ):
        with pytest.raises(ValueError, match=says):
            ModelSpec.model_validate({**good, **change})
    for port, says in (
        ({"name": "h_out", "kind": "text"}, "must be numbers"),
        ({"name": "h_out", "kind": "tensor", "datatype": "FP64", "shape": [-1, 2]}, "differ"),
    ):
        outputs = [good["outputs"][0], port]
        with pytest.raises(ValueError, match=says):
            ModelSpec.model_validate({**good, "outputs": outputs})


def test_controls_must_fit() -> None:
    """Inputs that are there, of one element a row, of a model that has a state."""
    good = spec().model_dump()
    flag = {"name": "begins", "kind": "tensor", "datatype": "INT32", "shape": [-1, 1]}
    told = {**good, "inputs": [*good["inputs"], flag], "controls": {"start": "begins"}}
    assert {"begins", "h"} & {port.name for port in ModelSpec.model_validate(told).asked} == set()
    for change, says in (
        ({"controls": {"end": "nobody"}}, "no input 'nobody'"),
        ({"controls": {"start": "h"}}, "and no state"),
        ({"controls": {"start": "begins", "end": "begins"}}, "one control"),
        ({"state": []}, "without a `state`"),
        ({"inputs": [*good["inputs"], {**flag, "datatype": "FP64"}]}, "BOOL, INT32, FP32"),
        ({"inputs": [*good["inputs"], {**flag, "shape": [-1, 2]}]}, "one element a row"),
        ({"controls": {"correlation": "begins"}, "inputs": told["inputs"][:-1]}, "no input"),
    ):
        with pytest.raises(ValueError, match=says):
            ModelSpec.model_validate({**told, **change})


@pytest.mark.parametrize(
    ("sequence", "datatype", "element"),
    [
        ("7", "INT32", b"\7\0\0\0"),
        ("7", "UINT64", b"\7" + bytes(7)),
        ("seven", "BYTES", b"\5\0\0\0seven"),
        ("seven", "INT64", None),
        ("-1", "UINT32", None),
        (str(2**31), "INT32", None),
    ],
)
def test_a_sequence_has_an_id(sequence: str, datatype: str, element: bytes | None) -> None:
    """As the model takes it; one that it cannot take is refused."""
    if element is not None:
        assert element == _id(sequence, datatype)
        return
    with pytest.raises(InvalidArgument, match="takes a number"):
        _id(sequence, datatype)

"""What a model keeps between the requests of a sequence, and what it is told of the sequence.

Source: Triton's implicit state, and its control inputs.
"""

from collections.abc import Iterator, Mapping, Sequence

from pydantic import Field

from schemas.message import UserInput
from schemas.signatures import Shaped
from schemas.tensors import BYTES, DATATYPE_SIZES


FLAGS = ("BOOL", "INT32", "FP32")
"""Datatypes of a control that is true or false."""
IDS = (BYTES, "INT32", "UINT32", "INT64", "UINT64")
"""Datatypes of a sequence's id."""


class StateSpec(UserInput):
    """What one call leaves to the next one of the same sequence."""

    input: str
    """The input that takes it; zeros at the beginning."""
    output: str
    """The output that gives it."""


class Controls(UserInput):
    """Inputs that tell a model where in a sequence a request is, each of one element a row."""

    start: str = Field(default="", max_length=64)
    """1 for the first request."""
    end: str = Field(default="", max_length=64)
    """1 for the last one."""
    ready: str = Field(default="", max_length=64)
    """1: there is a request."""
    correlation: str = Field(default="", max_length=64)
    """The sequence's id."""

    @property
    def flags(self) -> Mapping[str, str]:
        """The inputs that are true or false, by what they say."""
        said = {"start": self.start, "end": self.end, "ready": self.ready}
        return {what: name for what, name in said.items() if name}

    @property
    def inputs(self) -> Iterator[str]:
        """All of them."""
        yield from self.flags.values()
        if self.correlation:
            yield self.correlation


def check_states(
    states: Sequence[StateSpec], inputs: Mapping[str, Shaped], outputs: Mapping[str, Shaped]
) -> None:
    """Refuse states that do not fit a model's inputs and outputs.

    Raises:
        ValueError: Names them.
    """
    for state in states:
        taken, given = inputs.get(state.input), outputs.get(state.output)
        if taken is None or given is None:
            raise ValueError(f"state: no input '{state.input}' or no output '{state.output}'")
        kinds = {port.kind for port in (taken, given)}
        if kinds != {"tensor"} or taken.datatype not in DATATYPE_SIZES:
            raise ValueError(f"state: '{state.input}' and '{state.output}' must be numbers")
        if (taken.datatype, taken.shape) != (given.datatype, given.shape):
            raise ValueError(f"state: '{state.input}' and '{state.output}' differ")
        if any(size < 0 for size in taken.shape[1:]):
            raise ValueError(f"state: of '{state.input}' only the first dimension may be -1")


def check_controls(
    controls: Controls, states: Sequence[StateSpec], inputs: Mapping[str, Shaped]
) -> None:
    """Refuse controls that do not fit a model's inputs.

    Raises:
        ValueError: Names the input.
    """
    if not states:
        raise ValueError("controls: a model without a `state` has no sequences")
    names = list(controls.inputs)
    if len({*names, *(state.input for state in states)}) < len(names) + len(states):
        raise ValueError("controls: an input is one control, and no state")
    for name in names:
        port, known = inputs.get(name), IDS if name == controls.correlation else FLAGS
        if port is None:
            raise ValueError(f"controls: no input '{name}'")
        if port.kind != "tensor" or port.datatype not in known:
            raise ValueError(f"controls: '{name}' must be a tensor of {', '.join(known)}")
        if port.shape[:1] not in {(-1,), (1,)} or any(size != 1 for size in port.shape[1:]):
            raise ValueError(f"controls: '{name}' must have one element a row: [-1, 1]")

"""Stateful models: what one request leaves to the next one of its sequence.

The state is an output of one call and an input of the next, as the catalogue binds them. The
gateway keeps it between the two, so workers keep nothing: any of them computes any step, steps of
different sequences share a batch, and a worker that dies loses no sequence (ADR-0036).

Source: Triton's sequence extension and its implicit state.
"""

import asyncio
import struct
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from schemas import tensors
from schemas.catalogue import ModelSpec, Port
from schemas.datatypes import STRUCT
from schemas.errors import EngineFailed, FailedPrecondition, InvalidArgument, ResourceExhausted
from schemas.values import Tensor, Value
from services.gateway.inference.asks import InferAsk, Step
from services.runtime import Clock


_Key = tuple[str, str]


@dataclass
class _Sequence:
    """What is kept of one."""

    states: dict[str, Tensor]
    touched: float
    counted: int = 0
    """Bytes of its state, as far as they are in the sum."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def size_bytes(self) -> int:
        return sum(len(tensor.data) for tensor in self.states.values())


@dataclass
class Turn:
    """One step of a sequence, with its state among the inputs."""

    ask: InferAsk
    outputs: Mapping[str, Value] | None = None
    """What came of it; without, the state stays as it was."""


class Sequences:
    """The sequences of this gateway.

    Args:
        clock: Tells which of them are idle.
        idle_s: How long one may be idle before it may be forgotten, seconds.
        count_max: Most of them.
        bytes_max: Most bytes of their states.
    """

    def __init__(self, clock: Clock, *, idle_s: float, count_max: int, bytes_max: int) -> None:
        self._clock = clock
        self._idle_s = idle_s
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._held: OrderedDict[_Key, _Sequence] = OrderedDict()

    @asynccontextmanager
    async def turn(self, name: str, spec: ModelSpec, ask: InferAsk) -> AsyncIterator[Turn]:
        """Take a step of a sequence; the steps of one are taken one after the other.

        Raises:
            InvalidArgument: The request names no sequence.
            FailedPrecondition: The sequence is not known here.
            ResourceExhausted: There is no room for another one.
        """
        step = ask.step
        if step is None:
            raise InvalidArgument("this model keeps a state: send a sequence_id")
        key = (name, step.sequence)
        held = self._find(key, spec, ask)
        async with held.turn:
            if step.is_start:  # those that waited go on with it
                held.states = _beginning(spec, ask)
            elif self._held.get(key) is not held:
                raise _unknown(step)
            states = {**ask.inputs, **held.states, **_told(spec, ask, step)}
            turn = Turn(replace(ask, inputs=states))
            yield turn
            if turn.outputs is None:
                return
            left = {state.input: _state(turn.outputs, state.output) for state in spec.state}
            self._forget(key)
            held.states = left
            held.touched = self._clock.now()
            if not step.is_end:
                self._keep(key, held)

    def _find(self, key: _Key, spec: ModelSpec, ask: InferAsk) -> _Sequence:
        held = self._held.get(key)
        if held is not None and self._clock.now() - held.touched <= self._idle_s:
            return held
        assert ask.step is not None, "it is a step of a sequence"
        if not ask.step.is_start:
            raise _unknown(ask.step)
        self._forget(key)
        held = _Sequence(_beginning(spec, ask), self._clock.now())
        self._make_room(held)
        self._keep(key, held)
        return held

    def _keep(self, key: _Key, held: _Sequence) -> None:
        self._held[key], held.counted = held, held.size_bytes
        self._bytes += held.counted

    def _forget(self, key: _Key) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._bytes -= held.counted

    def _make_room(self, coming: _Sequence) -> None:
        """Forget what is idle; those that were touched last are at the end."""
        stale = self._clock.now() - self._idle_s
        while self._held and next(iter(self._held.values())).touched < stale:
            self._forget(next(iter(self._held)))
        if len(self._held) >= self._count_max:
            raise ResourceExhausted(f"there are {self._count_max} sequences; end one")
        if self._bytes + coming.size_bytes > self._bytes_max:
            raise ResourceExhausted(f"sequences hold {self._bytes_max} bytes of state; end one")


def _unknown(step: Step) -> FailedPrecondition:
    return FailedPrecondition(
        f"the sequence '{step.sequence[:64]}' is not known here: it ended, was idle for too long "
        "or belongs to another gateway; begin it with sequence_start"
    )


def _beginning(spec: ModelSpec, ask: InferAsk) -> dict[str, Tensor]:
    """Return the state before the first step: zeros, a row for each row of the request."""
    rows, ports = _rows(ask), {port.name: port for port in spec.inputs}
    found = {}
    for state in spec.state:
        port = ports[state.input]
        shape = tuple(rows if size < 0 else size for size in port.shape)
        found[port.name] = Tensor(datatype=port.datatype, shape=shape, data=_zeros(port, shape))
    return found


def _rows(ask: InferAsk) -> int:
    return next((value.shape[0] for value in ask.inputs.values() if isinstance(value, Tensor)), 1)


def _told(spec: ModelSpec, ask: InferAsk, step: Step) -> dict[str, Tensor]:
    """Return what a model is told of a step: an element for each row of the request.

    Raises:
        InvalidArgument: The sequence's id is none that the model takes.
    """
    if spec.controls is None:
        return {}
    rows, ports = _rows(ask), {port.name: port for port in spec.inputs}
    flags = {"start": step.is_start, "end": step.is_end, "ready": True}
    found: dict[str, Tensor] = {}
    for what, name in spec.controls.flags.items():
        element = struct.pack(f"<{STRUCT[ports[name].datatype]}", flags[what])
        found[name] = _repeated(ports[name], element, rows)
    if spec.controls.correlation:
        port = ports[spec.controls.correlation]
        found[port.name] = _repeated(port, _id(step.sequence, port.datatype), rows)
    return found


def _repeated(port: Port, element: bytes, rows: int) -> Tensor:
    shape = tuple(rows if size < 0 else size for size in port.shape)
    data = element * tensors.count_of(shape)
    return Tensor(datatype=port.datatype, shape=shape, data=data)


def _id(sequence: str, datatype: str) -> bytes:
    """Return a sequence's id as an element of a tensor.

    Raises:
        InvalidArgument: It has no such form.
    """
    if datatype == tensors.BYTES:
        return tensors.pack([sequence.encode()])
    try:
        return struct.pack(f"<{STRUCT[datatype]}", int(sequence))
    except (ValueError, struct.error) as error:
        raise InvalidArgument(
            f"this model takes a number ({datatype}) as its sequence_id, not '{sequence[:64]}'"
        ) from error


def _zeros(port: Port, shape: tuple[int, ...]) -> bytes:
    return bytes(tensors.count_of(shape) * tensors.DATATYPE_SIZES[port.datatype])


def _state(outputs: Mapping[str, Value], name: str) -> Tensor:
    found = outputs.get(name)
    if not isinstance(found, Tensor):
        raise EngineFailed(f"the model gave no state '{name}'")
    return found

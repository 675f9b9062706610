"""Reads an ONNX file without any library: is it safe to hand on, and what does it take and give.

What is looked for is what a library would trust: weights kept in other files, operators of
libraries nobody loads, sizes that are not so, graphs without end. The work is bounded, whatever the
file claims.

Source: onnx.proto3 of ONNX 1.23, message and field numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

from schemas.errors import InvalidArgument


GRAPH_DEPTH_MAX = 64
FIELDS_MAX = 500_000
"""Fields of all messages but the numbers inside tensors."""
DIMENSION_MAX = 2**31 - 1
RANK_MAX = 16

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES = 10
_INT64_BITS = 64
_ELEMENTS_A_BYTE = 4
"""As many as any type packs into one: two bits each."""
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "com.microsoft"}
_OUTSIDE = {"EPContext": "loads a file of its own", "PythonOp": "runs Python"}
DATATYPES = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    8: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
    16: "BF16",
}
"""TensorProto.DataType by Open Inference datatype."""

Field = tuple[int, int, "int | memoryview"]
Calls = set[tuple[str, str]]
"""Domain and operator of nodes."""


@dataclass(frozen=True)
class OnnxTensor:
    """An input or output of a graph."""

    name: str
    datatype: str
    """Of the Open Inference Protocol; empty where there is no such."""
    shape: tuple[int, ...]
    """-1 is any size."""


@dataclass
class OnnxSummary:
    """What a file takes and gives."""

    inputs: list[OnnxTensor] = field(default_factory=list)
    outputs: list[OnnxTensor] = field(default_factory=list)


def examine(data: "bytes | memoryview") -> OnnxSummary:
    """Look through an ONNX file.

    Raises:
        InvalidArgument: It is none, is damaged, or is not safe to load; says why.
    """
    reader = _Reader()
    try:
        found = reader.model(memoryview(data))
    except (IndexError, ValueError) as error:
        raise InvalidArgument("the file is no ONNX model: it is damaged") from error
    if found is None:
        raise InvalidArgument("the file holds no ONNX graph")
    reader.check_calls()
    return found


@dataclass
class _Node:
    """What one node says of itself."""

    op_type: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)


class _Reader:
    """Walks the messages of one file."""

    def __init__(self) -> None:
        self._left = FIELDS_MAX
        self._functions: dict[tuple[str, str], Calls] = {}
        """Each function of the model, and what it calls."""
        self._called: Calls = set()

    def model(self, message: memoryview) -> OnnxSummary | None:
        found: OnnxSummary | None = None
        for number, wire, value in self._fields(message):
            if wire != _BYTES:
                continue
            assert isinstance(value, memoryview), "bytes are a view"
            if number == 7:  # noqa: PLR2004 - graph
                found = self._graph(value, GRAPH_DEPTH_MAX, self._called, found)
            elif number == 20:  # noqa: PLR2004 - training_info
                for _, inner in self._messages(value, {1, 2}):
                    self._graph(inner, GRAPH_DEPTH_MAX, self._called)
            elif number == 25:  # noqa: PLR2004 - functions
                self._function(value)
        return found

    def check_calls(self) -> None:
        """Refuse operators that are nobody's, and functions that call themselves.

        Raises:
            InvalidArgument: Names it.
        """
        for calls in self._functions.values():
            self._called |= calls
        for domain, op_type in sorted(self._called - self._functions.keys()):
            if domain not in _DOMAINS:
                raise InvalidArgument(
                    f"the operator '{op_type[:64]}' of '{domain[:64]}' is no standard one; custom "
                    "operators need a library, and none is loaded"
                )
        waiting = {name: calls & self._functions.keys() for name, calls in self._functions.items()}
        while waiting:
            ready = {name for name, calls in waiting.items() if not calls & waiting.keys()}
            if not ready:
                name = min(waiting)[1]
                raise InvalidArgument(f"the function '{name[:64]}' calls itself without end")
            waiting = {name: calls for name, calls in waiting.items() if name not in ready}

    def _graph(
        self, message: memoryview, depth: int, calls: Calls, summary: OnnxSummary | None = None
    ) -> OnnxSummary:
        if depth == 0:
            raise InvalidArgument("the model nests too deeply")
        found = summary or OnnxSummary()
        weights: set[str] = set()
        for number, inner in self._messages(message, {1, 5, 11, 12, 15}):
            match number:
                case 1:
                    self._node(inner, depth - 1, calls)
                case 5:
                    weights.add(self._tensor(inner))
                case 15:
                    self._sparse(inner)
                case _:
                    (found.inputs if number == 11 else found.outputs).append(self._value(inner))  # noqa: PLR2004 - input, or output
        found.inputs = [item for item in found.inputs if item.name not in weights]
        return found

    def _node(self, message: memoryview, depth: int, calls: Calls) -> None:
        if depth == 0:
            raise InvalidArgument("the model nests too deeply")
        node = _Node()
        for number, inner in self._messages(message, {1, 4, 5, 7}):
            match number:
                case 1:
                    node.inputs.append(_text(inner))
                case 4:
                    node.op_type = _text(inner)
                case 5:
                    self._attribute(inner, depth - 1, calls)
                case _:
                    node.domain = _text(inner)
        if node.op_type in _OUTSIDE:
            raise InvalidArgument(f"the operator {node.op_type} {_OUTSIDE[node.op_type]}")
        if node.op_type == "Loop" and not any(node.inputs[:2]):
            raise InvalidArgument("a Loop has neither a trip count nor a condition: it never ends")
        calls.add((node.domain, node.op_type))

    def _attribute(self, message: memoryview, depth: int, calls: Calls) -> None:
        if depth == 0:
            raise InvalidArgument("the model nests too deeply")
        for number, inner in self._messages(message, {5, 6, 10, 11, 22, 23}):
            if number in {5, 10}:
                self._tensor(inner)
            elif number in {6, 11}:
                self._graph(inner, depth - 1, calls)
            else:
                self._sparse(inner)

    def _function(self, message: memoryview) -> None:
        name = domain = ""
        calls: Calls = set()
        for number, inner in self._messages(message, {1, 7, 10, 11}):
            match number:
                case 1:
                    name = _text(inner)
                case 7:
                    self._node(inner, GRAPH_DEPTH_MAX, calls)
                case 10:
                    domain = _text(inner)
                case _:
                    self._attribute(inner, GRAPH_DEPTH_MAX, calls)
        self._functions.setdefault((domain, name), set()).update(calls)

    def _sparse(self, message: memoryview) -> None:
        for _, inner in self._messages(message, {1, 2}):
            self._tensor(inner)

    def _tensor(self, message: memoryview) -> str:
        """Look through a tensor; return its name."""
        shape: list[int] = []
        name = ""
        for number, wire, value in self._fields(message):
            if number == 13 or (number == 14 and value != 0):  # noqa: PLR2004 - external_data, data_location
                raise InvalidArgument(
                    "the model keeps weights in other files; save it in one: "
                    "onnx.save(model, path, save_as_external_data=False)"
                )
            if number == 1 and isinstance(value, int):
                shape.append(_signed(value))
            elif number == 1 and wire == _BYTES and isinstance(value, memoryview):
                shape.extend(_packed(value))
            elif number == 8 and isinstance(value, memoryview):  # noqa: PLR2004 - name
                name = _text(value)
        _check_shape(shape, least=0)
        if prod(shape) > _ELEMENTS_A_BYTE * len(message):
            raise InvalidArgument(f"the weights '{name[:64]}' claim more elements than they have")
        return name

    def _value(self, message: memoryview) -> OnnxTensor:
        """Return an input or output of a graph."""
        name, kind, shape = "", 0, []
        for number, inner in self._messages(message, {1, 2}):
            if number == 1:
                name = _text(inner)
                continue
            for _, tensor_type in self._messages(inner, {1}):
                for at, wire, value in self._fields(tensor_type):
                    if at == 1 and isinstance(value, int):
                        kind = value
                    elif at == 2 and wire == _BYTES and isinstance(value, memoryview):  # noqa: PLR2004 - shape
                        shape = [self._dimension(item) for _, item in self._messages(value, {1})]
        _check_shape(shape, least=-1)
        return OnnxTensor(name, DATATYPES.get(kind, ""), tuple(shape))

    def _dimension(self, message: memoryview) -> int:
        for number, _, value in self._fields(message):
            if number == 1 and isinstance(value, int):
                return _signed(value)
        return -1

    def _messages(self, message: memoryview, wanted: set[int]) -> Iterator[tuple[int, memoryview]]:
        """Yield the wanted fields that are bytes."""
        for number, wire, value in self._fields(message):
            if number in wanted and wire == _BYTES:
                assert isinstance(value, memoryview), "bytes are a view"
                yield number, value

    def _fields(self, message: memoryview) -> Iterator[Field]:
        """Yield number, wire type and value of each field."""
        at, end = 0, len(message)
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise InvalidArgument(f"the graph is too large: more than {FIELDS_MAX} fields")
            tag, at = _varint(message, at)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                value, at = _varint(message, at)
                yield number, wire, value
                continue
            if wire == _BYTES:
                size, at = _varint(message, at)
            elif wire in {_FIXED64, _FIXED32}:
                size = 8 if wire == _FIXED64 else 4
            else:
                raise ValueError("a group, or no wire type")
            if at + size > end or number == 0:
                raise ValueError("a field that ends outside")
            yield number, wire, message[at : at + size]
            at += size


def _check_shape(shape: Sequence[int], *, least: int) -> None:
    if len(shape) > RANK_MAX:
        raise InvalidArgument(f"a shape has at most {RANK_MAX} dimensions")
    for size in shape:
        if not least <= size <= DIMENSION_MAX:
            raise InvalidArgument(f"a dimension is {size}; use {least} to {DIMENSION_MAX}")


def _packed(data: memoryview) -> Iterator[int]:
    at = 0
    for _ in range(RANK_MAX + 1):
        if at >= len(data):
            return
        value, at = _varint(data, at)
        yield _signed(value)


def _signed(value: int) -> int:
    """Read a varint as int64."""
    value &= (1 << _INT64_BITS) - 1
    return value - (1 << _INT64_BITS) if value >> (_INT64_BITS - 1) else value


def _text(data: memoryview) -> str:
    return bytes(data).decode()  # a UnicodeDecodeError is a ValueError: damaged


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index in range(_VARINT_BYTES):
        byte = message[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:  # noqa: PLR2004 - the continuation bit
            return value, at + index + 1
    raise ValueError("a varint that does not end")

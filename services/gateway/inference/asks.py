"""Reads an inference: the JSON of a request, the bytes behind it, and what the model declares."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import orjson
from pydantic import ValidationError

from schemas import tensors
from schemas.catalogue import ModelSpec, Port
from schemas.edges import spread
from schemas.errors import InvalidArgument
from schemas.open_inference import ID_CHARS_MAX, InferRequest, InputTensor, RequestedOutput
from schemas.values import OCTETS, Binary, Tensor, Value
from schemas.workflow import invalid
from services.gateway.inference import elements
from services.gateway.inference.regions import NONE, Place, Regions, take_place


HEADS_KEPT, HEAD_BYTES = 512, 2048
"""How many heads of binary requests stay read, and how long one of them is at most."""
_LANES = {0: "normal", 1: "high", 2: "normal"}


@dataclass(frozen=True)
class Wanted:
    """An output that is wanted."""

    port: Port
    binary: bool
    classes: int = 0
    """So many of its largest elements in its place; 0: the output itself."""
    rows: bool = False
    """Whether its first dimension counts rows."""
    place: Place | None = None
    """In shared memory instead of the answer."""


@dataclass(frozen=True)
class Step:
    """Where in which sequence a request is."""

    sequence: str
    is_start: bool
    is_end: bool


@dataclass(frozen=True)
class InferAsk:
    """One inference, understood and checked."""

    inputs: Mapping[str, Value]
    """By port; each fits its declaration."""
    outputs: tuple[Wanted, ...]
    id: str = ""
    lane: str = "normal"
    timeout_s: float = 0.0
    """0: as the model says."""
    step: Step | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    """For the engine."""


def parse(
    body: bytes, json_bytes: int | None, spec: ModelSpec, regions: Regions = NONE
) -> InferAsk:
    """Read the body of a request.

    Args:
        body: JSON, and behind it the binary data.
        json_bytes: How much of it is JSON; None all of it, 0: it is the one input's data.
        spec: The model.
        regions: Where inputs in shared memory are.

    Raises:
        InvalidArgument: Names the tensor and what is wrong with it.
        NotFound: A region is not registered.
        Unsupported: Shared memory is not allowed here.
    """
    if json_bytes == 0:
        return _raw(body, spec)
    if json_bytes is not None and json_bytes > len(body):
        raise InvalidArgument(
            f"the body has {len(body)} bytes, the header says that {json_bytes} are JSON",
            field="Inference-Header-Content-Length",
        )
    text = body if json_bytes is None else body[:json_bytes]
    request = _load(text) if len(text) > HEAD_BYTES or json_bytes is None else _head(text)
    blobs = _Blobs(b"" if json_bytes is None else body[json_bytes:])
    found = [(item, _tensor(item, blobs, regions)) for item in request.inputs]
    blobs.close()
    return ask_of(
        spec,
        found=[(item.name, tensor) for item, tensor in found],
        request=request,
    )


def ask_of(spec: ModelSpec, found: Sequence[tuple[str, Tensor]], request: InferRequest) -> InferAsk:
    """Bind tensors to a model's ports, and read the parameters.

    Raises:
        InvalidArgument: Names the tensor, or the parameter.
    """
    own = dict(request.parameters)
    all_binary = _flag(own, "binary_data_output", "parameters")
    said = ask_params(own)
    return InferAsk(
        inputs=bind(spec, found),
        outputs=_wanted(spec, request.outputs, all_binary=all_binary),
        id=request.id,
        **said,
    )


def ask_params(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return lane, time and the engine's parameters that a request's parameters say.

    Raises:
        InvalidArgument: Names the parameter.
    """
    own = dict(given)
    lane = _LANES.get(_count(own, "priority"), "low")
    timeout_s = _count(own, "timeout") / 1e6
    step = _step(own)
    own = {name: own[name] for name in own if name != "headers" and not name.startswith("triton_")}
    return {"lane": lane, "timeout_s": timeout_s, "step": step, "params": own}


def _step(params: dict[str, Any]) -> Step | None:
    """Take the sequence out of parameters; 0 and the empty text are none."""
    is_start = _flag(params, "sequence_start", "parameters")
    is_end = _flag(params, "sequence_end", "parameters")
    sequence = params.pop("sequence_id", 0)
    if type(sequence) not in {int, str} or len(str(sequence)) > ID_CHARS_MAX:
        raise InvalidArgument("parameters: 'sequence_id' must be a number or a short text")
    if sequence:
        return Step(str(sequence), is_start, is_end)
    if is_start or is_end:
        raise InvalidArgument("parameters: a sequence needs a 'sequence_id', not 0")
    return None


def bind(spec: ModelSpec, found: Sequence[tuple[str, Tensor]]) -> dict[str, Value]:
    """Return the values of a model's inputs, by port.

    Raises:
        InvalidArgument: A tensor that is unknown, there twice, missing, or not as declared.
    """
    ports = {port.tensor_name: port for port in spec.asked}
    inputs: dict[str, Value] = {}
    for name, tensor in found:
        port = ports.get(name)
        if port is None:
            known = ", ".join(ports)
            raise InvalidArgument(f"unknown input '{name[:128]}'; the model takes {known}")
        if port.name in inputs:
            raise InvalidArgument(f"the input '{name}' is there twice")
        inputs[port.name] = _value(tensor, port)
    return whole(spec, inputs)


def whole(spec: ModelSpec, inputs: dict[str, Value]) -> dict[str, Value]:
    """Return inputs with nothing missing; a text stands for all tokens of it.

    Raises:
        InvalidArgument: Names an input that is missing.
    """
    found = spread(spec, inputs) if spec.made else inputs
    for port in spec.asked:
        if port.required and port.name not in found:
            raise InvalidArgument(f"the input '{port.tensor_name}' is missing")
    return found


class _Blobs:
    """The bytes behind the JSON, cut off one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        left = len(self._data) - self._at
        if size > left:
            raise InvalidArgument(f"binary_data_size is {size}, but {left} bytes are left")
        self._at += size
        return self._data[self._at - size : self._at]

    def close(self) -> None:
        left = len(self._data) - self._at
        if left:
            raise InvalidArgument(f"{left} bytes behind the JSON belong to no input")


@lru_cache(maxsize=HEADS_KEPT)
def _head(text: bytes) -> InferRequest:
    """Read the JSON before binary data: clients say the same, request after request."""
    return _load(text)


def _load(text: bytes) -> InferRequest:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(
            f"the body is not JSON: {error.msg}, line {error.lineno} column {error.colno}"
        ) from error
    if not isinstance(document, dict):
        raise InvalidArgument("send a JSON object")
    try:
        return InferRequest.model_validate(document)
    except ValidationError as error:
        raise invalid(error) from error


def _tensor(item: InputTensor, blobs: _Blobs, regions: Regions) -> Tensor:
    params = dict(item.parameters)
    with about(item.name):
        size, place = params.pop("binary_data_size", None), take_place(params)
        if place is not None:
            if item.data is not None or size is not None:
                raise InvalidArgument("send data, binary_data_size or a region, not two of them")
            return placed(item.datatype, item.shape, place, regions)
        if size is None:
            return elements.from_json(item.datatype, item.shape, item.data)
        if item.data is not None:
            raise InvalidArgument("send data or binary_data_size, not both")
        if type(size) is not int or size < 0:
            raise InvalidArgument("binary_data_size must be a number of bytes")
        found = Tensor(datatype=item.datatype, shape=tuple(item.shape), data=blobs.take(size))
        found.check()
        return found


def placed(datatype: str, shape: Sequence[int], place: Place, regions: Regions) -> Tensor:
    """Return a tensor that is in shared memory.

    Raises:
        InvalidArgument: It does not fill its shape, or reaches past its region.
        NotFound: The region is not registered.
        Unsupported: Shared memory is not allowed here.
    """
    found = Tensor(datatype=datatype, shape=tuple(shape), data=regions.read(place))
    found.check()
    return found


def check_places(ask: InferAsk, regions: Regions) -> None:
    """Refuse outputs that are wanted where nothing is, before they are computed.

    Raises:
        NotFound: The region is not registered.
        Unsupported: Shared memory is not allowed here.
    """
    for item in ask.outputs:
        if item.place is not None:
            regions.check(item.place.region)


class about:  # noqa: N801 - reads as a word of the sentence
    """Says of which tensor an error is."""

    def __init__(self, name: str, side: str = "input") -> None:
        self._name = name
        self._side = side

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Put the name before the message."""
        if isinstance(error, InvalidArgument):
            raise type(error)(f"{self._side} '{self._name[:128]}': {error.message}") from error


def _value(tensor: Tensor, port: Port) -> Value:
    """Return what a port takes."""
    with about(port.tensor_name):
        content = port.made_of
        if content is not None and tensor.datatype == tensors.BYTES:
            if tensors.count_of(tensor.shape) != 1:
                raise InvalidArgument(f"send one element, with {content.source}")
            return _item(tensor, content.source)
        if tensor.datatype != port.datatype:
            raise InvalidArgument(f"the datatype is {port.datatype}, not {tensor.datatype}")
        if not tensors.fits(tensor.shape, port.shape):
            raise InvalidArgument(f"the shape is {list(port.shape)}, not {list(tensor.shape)}")
        return tensor if port.kind == "tensor" else _item(tensor, port.kind)


def _item(tensor: Tensor, kind: str) -> Value:
    """Return the one element of a tensor of BYTES, as a text, JSON or a file."""
    [item] = tensors.elements(tensor.data, 1)
    try:
        match kind:
            case "text":
                return item.decode()
            case "json":
                return orjson.loads(item)
            case _:
                return Binary(media_type=OCTETS, data=item)
    except UnicodeDecodeError as error:
        raise InvalidArgument("the text is not UTF-8") from error
    except orjson.JSONDecodeError as error:
        raise InvalidArgument("the element is not JSON") from error


def _wanted(
    spec: ModelSpec, requested: Sequence[RequestedOutput], *, all_binary: bool
) -> tuple[Wanted, ...]:
    ports = {port.tensor_name: port for port in spec.given}
    if not requested:
        return tuple(Wanted(port, all_binary) for port in spec.given)
    found: dict[str, Wanted] = {}
    for item in requested:
        if item.name not in ports:
            known = ", ".join(ports)
            raise InvalidArgument(f"unknown output '{item.name[:128]}'; the model gives {known}")
        if item.name in found:
            raise InvalidArgument(f"the output '{item.name}' is asked for twice")
        params = dict(item.parameters)
        where = f"output '{item.name}'"
        binary = _flag(params, "binary_data", where, default=all_binary)
        classes = _count(params, "classification", where)
        with about(item.name, "output"):
            place = take_place(params)
        rows = bool(spec.max_batch_size)
        found[item.name] = Wanted(ports[item.name], binary, classes, rows, place)
    return tuple(found.values())


def _raw(body: bytes, spec: ModelSpec) -> InferAsk:
    """Take the whole body for the data of the one input."""
    if len(spec.asked) != 1:
        raise InvalidArgument("a raw body needs a model of one input; name the inputs in JSON")
    [port] = spec.asked
    with about(port.tensor_name):
        tensor = Tensor(
            datatype=port.datatype,
            shape=tuple(_shape(port, len(body), rows=bool(spec.max_batch_size))),
            data=tensors.pack([body]) if port.datatype == tensors.BYTES else body,
        )
        tensor.check()
    outputs = tuple(Wanted(item, binary=True) for item in spec.given)
    return InferAsk(inputs=bind(spec, [(port.tensor_name, tensor)]), outputs=outputs)


def _shape(port: Port, size_bytes: int, *, rows: bool) -> Iterator[int]:
    """Yield the shape of a raw body: one row, and the one open dimension as large as it must be."""
    shape = list(port.shape)
    if rows:
        shape[0] = 1
    size = tensors.DATATYPE_SIZES.get(port.datatype, size_bytes or 1)
    known = math.prod(item for item in shape if item >= 0) * size
    if shape.count(-1) > 1:
        raise InvalidArgument("more than one dimension is open; name the shape in JSON")
    for item in shape:
        yield size_bytes // known if item < 0 and known else max(item, 0)


def _flag(params: dict[str, Any], name: str, where: str, *, default: bool = False) -> bool:
    value = params.pop(name, default)
    if not isinstance(value, bool):
        raise InvalidArgument(f"{where}: '{name}' must be true or false")
    return value


def _count(params: dict[str, Any], name: str, where: str = "parameters") -> int:
    value = params.pop(name, 0)
    if type(value) is not int or value < 0:
        raise InvalidArgument(f"{where}: '{name}' must be a whole number, 0 or more")
    return value

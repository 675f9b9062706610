"""Reads the body of an inference over HTTP: JSON, and the bytes behind it.

Clients say the same JSON, request after request, and only the bytes behind it differ. So the JSON
is read, and bound to what the model declares, once: a form that is filled for each request.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from schemas import tensors
from schemas.catalogue import ModelSpec, Port
from schemas.errors import InvalidArgument
from schemas.open_inference import InferRequest, InputTensor
from schemas.pieces import Body, split
from schemas.values import Tensor, Value
from schemas.workflow import invalid
from services.gateway.inference import elements
from services.gateway.inference.asks import (
    InferAsk,
    Wanted,
    about,
    bind,
    bound,
    check_declared,
    placed,
    rest_of,
    value_of,
    whole,
)
from services.gateway.inference.regions import NONE, Place, Regions, take_place


HEADS_KEPT, HEAD_BYTES = 512, 2048
"""How many heads of binary requests stay read, and how long one of them is at most."""


def parse(body: Body, json_bytes: int | None, spec: ModelSpec, regions: Regions = NONE) -> InferAsk:
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
        return _raw(bytes(body), spec)
    if json_bytes is not None and json_bytes > len(body):
        raise InvalidArgument(
            f"the body has {len(body)} bytes, the header says that {json_bytes} are JSON",
            field="Inference-Header-Content-Length",
        )
    text, rest = split(body, len(body) if json_bytes is None else json_bytes)
    blobs = _Blobs(rest)
    known = json_bytes is not None and len(text) <= HEAD_BYTES
    form = FORMS.of(text, spec) if known else _form(text, spec)
    return form.filled(blobs, regions)


class _Blobs:
    """The bytes behind the JSON of a body, cut out one after the other; all at once is no copy."""

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


@dataclass(frozen=True)
class _Input:
    """An input as the JSON of a request describes it."""

    port: Port
    datatype: str
    shape: tuple[int, ...]
    source: Tensor | Place | int
    """The tensor, where in shared memory its data is, or how many of the bytes behind the JSON."""

    def tensor(self, blobs: _Blobs, regions: Regions) -> Tensor:
        """Return it with its data."""
        match self.source:
            case Tensor() as given:
                return given
            case Place() as place:
                return placed(self.datatype, self.shape, place, regions)
            case size:
                data = blobs.take(size)
                found = Tensor(datatype=self.datatype, shape=self.shape, data=data)
                found.check()
                return found


@dataclass(frozen=True)
class Form:
    """The JSON of a request, bound to a model: all of it that is there without its data."""

    spec: ModelSpec
    inputs: tuple[_Input, ...]
    rest: Mapping[str, Any]
    """Of an `InferAsk`."""
    is_whole: bool
    """Whether nothing is missing, and nothing is made of something else."""

    def filled(self, blobs: _Blobs, regions: Regions) -> InferAsk:
        """Return the request with its data."""
        inputs: dict[str, Value] = {}
        for item in self.inputs:
            with about(item.port.tensor_name):
                inputs[item.port.name] = value_of(item.tensor(blobs, regions), item.port)
        blobs.close()
        return InferAsk(inputs if self.is_whole else whole(self.spec, inputs), **self.rest)


class Forms:
    """Keeps what was read: clients say the same, request after request."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, bytes], Form] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, text: bytes, spec: ModelSpec) -> Form:
        """Return the form of the JSON before binary data."""
        key = id(spec), text
        form = self._kept.get(key)
        if form is None or form.spec is not spec:
            form = self._kept[key] = _form(text, spec)
            if len(self._kept) > HEADS_KEPT:
                del self._kept[next(iter(self._kept))]
        return form


FORMS = Forms()


def _form(text: bytes, spec: ModelSpec) -> Form:
    request = _load(text)
    ports = bound(spec, [item.name for item in request.inputs])
    found = [_described(item, port) for item, port in zip(request.inputs, ports, strict=True)]
    names = {port.name for port in ports}
    is_whole = not spec.made and all(port.name in names or not port.required for port in spec.asked)
    return Form(spec, tuple(found), rest_of(spec, request), is_whole)


def _described(item: InputTensor, port: Port) -> _Input:
    with about(item.name):
        source, shape = _source(item), tuple(item.shape)
        check_declared(item.datatype, shape, port)
        return _Input(port, item.datatype, shape, source)


def _source(item: InputTensor) -> Tensor | Place | int:
    """Return where the data of an input is: in the JSON, in shared memory or behind the JSON."""
    params = dict(item.parameters)
    size, place = params.pop("binary_data_size", None), take_place(params)
    if place is not None:
        if item.data is not None or size is not None:
            raise InvalidArgument("send data, binary_data_size or a region, not two of them")
        return place
    if size is None:
        return elements.from_json(item.datatype, item.shape, item.data)
    if item.data is not None:
        raise InvalidArgument("send data or binary_data_size, not both")
    if type(size) is not int or size < 0:
        raise InvalidArgument("binary_data_size must be a number of bytes")
    return size


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

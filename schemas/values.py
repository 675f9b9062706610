"""The values that flow along edges, and their wire form.

On the wire a named value is plain JSON, or an object with exactly one reserved key:

    {"$blob":   {"media_type", "size_bytes", "sha256"}}   bytes kept in the blob store
    {"$binary": {"media_type", "data": bytes}}            bytes small enough to travel inline
    {"$tensor": {"datatype", "shape", "data": bytes}}     as `schemas.tensors` says

Messages between services are MessagePack, so bytes stay bytes. In JSON (HTTP, CLI) the `data` of
`$binary` and `$tensor` is base64, because JSON has no other way.
"""

import base64
import binascii
import mimetypes
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError

from schemas import tensors
from schemas.complaints import first_complaint
from schemas.errors import InvalidArgument
from schemas.ids import Sha256
from schemas.message import Message


INLINE_BYTES_MAX = 64 * 1024

MediaType = Annotated[str, Field(pattern=r"^[\w.+-]+/[\w.+-]+(;[\x20-\x7e]*)?$", max_length=127)]


class BlobRef(Message):
    """Bytes kept in the blob store, addressed by content."""

    media_type: MediaType
    size_bytes: int = Field(ge=0)
    sha256: Sha256


OCTETS = "application/octet-stream"
"""Bytes of which nobody said what they are."""


def media_type_of(file_name: str) -> str:
    """Return what a file's name says about its content; `OCTETS` when it says nothing."""
    guessed = mimetypes.guess_type(file_name)[0] or OCTETS
    return {"audio/x-wav": "audio/wav"}.get(guessed, guessed)


class Binary(Message):
    """Bytes that travel inline."""

    media_type: MediaType
    data: bytes


class Tensor(Message):
    """An array: little-endian, row-major, tightly packed; elements of BYTES after their length."""

    datatype: str
    shape: tuple[Annotated[int, Field(ge=0)], ...] = Field(max_length=tensors.RANK_MAX)
    data: bytes

    def check(self) -> None:
        """Refuse a tensor whose bytes do not fill its shape.

        Raises:
            InvalidArgument: Unknown datatype, or a byte count other than the shape's.
        """
        tensors.check(self.datatype, self.shape, self.data)


Special = BlobRef | Binary | Tensor
Value = Any
"""JSON, or one of `Special`, after `from_wire`."""
Wire = dict[str, Any]
"""Named values in wire form."""

_KINDS: dict[str, type[Special]] = {"$blob": BlobRef, "$binary": Binary, "$tensor": Tensor}
_KEYS: dict[type, str] = {kind: key for key, kind in _KINDS.items()}


def to_wire(value: Value) -> Any:
    """Return the wire form of one value."""
    key = _KEYS.get(type(value))
    return value if key is None else {key: dict(value.__dict__)}  # plain fields: no model_dump


def bulk(values: Iterable[Value]) -> int:
    """Return how many bytes tensors and files among values have."""
    return sum(len(value.data) for value in values if isinstance(value, Tensor | Binary))


def special_key(wire: Any) -> str | None:
    """Return `$blob`, `$binary` or `$tensor` where `wire` is one of those, else None."""
    if isinstance(wire, Mapping) and len(wire) == 1:
        key = next(iter(wire))
        if key in _KINDS:
            return str(key)
    return None


def from_wire(wire: Any, *, field: str = "value") -> Value:
    """Return the value behind a wire form.

    Raises:
        InvalidArgument: A reserved key whose content does not fit; names `field`.
    """
    key = special_key(wire)
    if key is None:
        return wire
    try:
        return _KINDS[key].model_validate(wire[key], strict=False)
    except ValidationError as error:
        loc, message = first_complaint(error)
        where = ".".join([field, key, *(str(part) for part in loc)])
        raise InvalidArgument(message, field=where) from error


def from_json(document: Mapping[str, Any], *, field: str = "inputs") -> Wire:
    """Check named values that came as JSON, and turn their base64 into bytes.

    Raises:
        InvalidArgument: Base64 or a reserved key that does not fit; names the value.
    """
    wire: Wire = {}
    for name, value in document.items():
        key = special_key(value)
        where = f"{field}.{name}"
        if key is None:
            wire[name] = value
            continue
        body = value[key]
        if isinstance(body, Mapping) and isinstance(body.get("data"), str):
            try:
                body = {**body, "data": base64.b64decode(body["data"], validate=True)}
            except binascii.Error as error:
                raise InvalidArgument("not base64", field=f"{where}.{key}.data") from error
        parsed = from_wire({key: body}, field=where)
        if isinstance(parsed, Tensor):
            try:
                parsed.check()
            except InvalidArgument as error:
                raise InvalidArgument(
                    error.message, field=f"{where}.{key}.{error.field}"
                ) from error
        wire[name] = to_wire(parsed)
    return wire


def to_json(wire: Mapping[str, Any]) -> dict[str, Any]:
    """Return named wire values as JSON types: bytes become base64."""
    return {name: _jsonable(value) for name, value in wire.items()}


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value

"""Reading the inputs of a run out of an HTTP body, and checking them against the workflow."""

import re
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Request
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.datastructures import FormData, UploadFile

from schemas import wav
from schemas.catalogue import Port
from schemas.errors import InvalidArgument
from schemas.message import UserInput
from schemas.plan import Plan
from schemas.submission import check_inputs, inputs_of, parse_submission
from schemas.values import (
    OCTETS,
    Binary,
    BlobRef,
    MediaType,
    Tensor,
    Value,
    Wire,
    from_wire,
    media_type_of,
    to_wire,
)
from schemas.workflow import invalid
from services.errors import BodyTooLarge, UnsupportedMediaType


JSON_DEPTH_MAX = 64
PARTS_MAX = 64
TEXT_PART_BYTES_MAX = 512 * 1024
_MEDIA_TYPE: TypeAdapter[str] = TypeAdapter(MediaType)
_RAW = ("audio/", "image/", "text/", OCTETS, "application/msgpack")
_IMAGES = tuple(
    re.compile(magic, re.DOTALL)
    for magic in (rb"\x89PNG\r\n\x1a\n", rb"\xff\xd8\xff", rb"RIFF.{4}WEBP", rb"BM")
)
_WANTED: dict[str, str] = {
    "text": "a string",
    "audio": 'bytes: a file part, or {"$binary": {"media_type", "data"}}, or a "$blob"',
    "image": 'bytes: a file part, or {"$binary": {"media_type", "data"}}, or a "$blob"',
    "json": "plain JSON",
    "tensor": '{"$tensor": {"datatype", "shape", "data"}}, or a "$blob"',
}


def load_json(body: bytes) -> Any:
    """Read JSON: no NaN, no lone surrogates, no bottomless nesting.

    Raises:
        InvalidArgument: Says where it breaks.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(
            f"the body is not JSON: {error.msg}, line {error.lineno} column {error.colno}",
            field="body",
        ) from error
    _check_depth(document)
    return document


async def read_body(request: Request, size_max: int, kind: type[UserInput]) -> Any:
    """Read a JSON body of at most `size_max` bytes into a model.

    Raises:
        InvalidArgument: Names the offending field.
        BodyTooLarge: Too many bytes.
        UnsupportedMediaType: Another content type.
    """
    if media_type(request) != "application/json":
        raise UnsupportedMediaType("send application/json", field="Content-Type")
    body = await request.body()
    if len(body) > size_max:
        raise BodyTooLarge(f"at most {size_max} bytes fit here", field="body")
    document = load_json(body)
    if not isinstance(document, dict):
        raise InvalidArgument("send a JSON object", field="body")
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise invalid(error) from error


def media_type(request: Request) -> str:
    """Return the content type without its parameters; JSON when there is none."""
    header: str = request.headers.get("content-type", "application/json")
    return header.partition(";")[0].strip().lower()


def blob_media_type(text: str | None) -> str:
    """Return a well-formed media type.

    Raises:
        InvalidArgument: It is malformed.
    """
    try:
        return _MEDIA_TYPE.validate_python(text or OCTETS)
    except ValidationError as error:
        raise InvalidArgument("not a media type such as audio/wav", field="Content-Type") from error


async def read_inputs(request: Request, plan: Plan, ports: Mapping[str, Port]) -> Wire:
    """Read and check the inputs of a run: JSON, a form, or one raw body.

    Raises:
        InvalidArgument: Names the input.
        UnsupportedMediaType: A content type that cannot be read.
    """
    kind = media_type(request)
    if kind == "application/json":
        return checked(inputs_of(load_json(await request.body() or b"{}")), plan, ports)
    if kind == "multipart/form-data":
        async with request.form(
            max_files=PARTS_MAX, max_fields=PARTS_MAX, max_part_size=TEXT_PART_BYTES_MAX
        ) as form:
            return checked(await _read_form(form, ports), plan, ports)
    if kind.startswith(_RAW):
        blob_media_type(kind)
        headers = {"Content-Type": kind}
        named = request.headers.get("clawdbot-input")
        if named is not None:
            headers["Clawdbot-Input"] = named
        return checked(parse_submission(await request.body(), headers, plan), plan, ports)
    raise UnsupportedMediaType(
        "send application/json, multipart/form-data, or one raw input as audio/*, image/*, text/*",
        field="Content-Type",
    )


def checked(wire: Wire, plan: Plan, ports: Mapping[str, Port]) -> Wire:
    """Refuse inputs that the workflow cannot take.

    Raises:
        InvalidArgument: Names the input.
    """
    check_inputs(wire, plan)
    _check_depth(wire)
    required = plan.run_inputs()
    for name, item in wire.items():
        value = from_wire(item, field=f"inputs.{name}")
        if isinstance(value, Tensor):
            _check_tensor(value, f"inputs.{name}.$tensor")
        port = ports.get(name)
        if port is None or (item is None and not required.get(name, False)):
            continue
        made = bool(port.content) and isinstance(value, Tensor)  # what an adapter would make
        if not made and not _fits(value, port.kind):
            raise InvalidArgument(f"send {_WANTED[port.kind]}", field=f"inputs.{name}")
        if isinstance(value, Binary):
            _check_file(value.data, port.kind, f"inputs.{name}")
    return wire


def _check_tensor(tensor: Tensor, field: str) -> None:
    try:
        tensor.check()
    except InvalidArgument as error:
        raise InvalidArgument(error.message, field=f"{field}.{error.field}") from error


def _check_file(data: bytes, kind: str, field: str) -> None:
    """Refuse at once what no engine could read; the engine itself looks closer."""
    if kind == "audio":
        try:
            wav.parse(data)
        except InvalidArgument as error:
            raise InvalidArgument(error.message, field=field) from error
    if kind == "image" and not any(magic.match(data) for magic in _IMAGES):
        raise InvalidArgument("not an image we read; send PNG, JPEG, WebP or BMP", field=field)


def _fits(value: Value, kind: str) -> bool:
    match kind:
        case "text":
            return isinstance(value, str)
        case "audio" | "image":
            return isinstance(value, BlobRef) or (isinstance(value, Binary) and bool(value.data))
        case "tensor":
            return isinstance(value, Tensor | BlobRef)
        case _:
            return not isinstance(value, BaseModel)


async def _read_form(form: FormData, ports: Mapping[str, Port]) -> Wire:
    wire: Wire = {}
    for name, part in form.multi_items():
        if name in wire:
            raise InvalidArgument("this part is there twice", field=f"inputs.{name}")
        port = ports.get(name)
        kind = port.kind if port is not None else ""
        if isinstance(part, UploadFile):
            wire[name] = _file_value(name, await part.read(), _part_type(part), kind)
        else:
            wire[name] = _json_part(name, part) if kind == "json" else part
    return wire


def _part_type(part: UploadFile) -> str | None:
    """Return a part's content type, or what its name says: curl gives a WAV file no type."""
    if part.content_type in {None, OCTETS} and part.filename:
        return media_type_of(part.filename)
    return part.content_type


def _file_value(name: str, data: bytes, content_type: str | None, kind: str) -> Any:
    if kind == "json":
        return _json_part(name, data)
    if kind == "text":
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise InvalidArgument("the file is not UTF-8", field=f"inputs.{name}") from error
    try:
        return to_wire(Binary(media_type=blob_media_type(content_type), data=data))
    except InvalidArgument as error:
        raise InvalidArgument(error.message, field=f"inputs.{name}") from error


def _json_part(name: str, data: str | bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"not JSON: {error.msg}", field=f"inputs.{name}") from error


def _check_depth(document: Any) -> None:
    """Refuse nesting that later readers could not follow; breadth first, so without recursion."""
    level = [document]
    for _ in range(JSON_DEPTH_MAX):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise InvalidArgument(f"the JSON nests deeper than {JSON_DEPTH_MAX} levels", field="body")


def _children(item: Any) -> list[Any]:
    match item:
        case dict():
            return list(item.values())
        case list() | tuple():
            return list(item)
        case _:
            return []

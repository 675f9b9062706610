"""The Open Inference Protocol v2 over HTTP."""

import time
import zlib
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from schemas.errors import InvalidArgument
from schemas.messages import Header
from schemas.open_inference import (
    InferenceError,
    InferResponse,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
)
from schemas.pieces import Body
from schemas.values import OCTETS
from services.errors import BodyTooLarge, UnsupportedMediaType
from services.gateway.inference import answers, asks, forms
from services.gateway.inference.lane import Answer, Asked
from services.gateway.inference.service import extensions
from services.gateway.routes import Parts, Wanted, answer
from services.gateway.routes.health import check_ready
from services.micro import VERSION


JSON_BYTES = "Inference-Header-Content-Length"
_JSON_BYTES, _TRACEPARENT = JSON_BYTES.lower().encode(), b"traceparent"
_JSON, _OCTETS = (b"content-type", b"application/json"), (b"content-type", OCTETS.encode())
LENGTH_DIGITS_MAX = 12
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": InferenceError, "description": "The request cannot work; says why"},
    "501": {"model": InferenceError, "description": "An extension that is not offered"},
    "503": {"model": InferenceError, "description": "No worker can serve it now"},
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
            OCTETS: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}

router = APIRouter(prefix="/v2", tags=["inference"], responses=ERRORS)


@router.get("/models/{name:path}/versions/{version}/ready", response_model=ModelReady)
async def model_version_ready(parts: Wanted, name: str, version: str) -> Response:
    """Tell that a worker can run a model's version."""
    return await _ready(parts, name, version)


@router.post(
    "/models/{name:path}/versions/{version}/infer",
    response_model=InferResponse,
    openapi_extra=_BODY,
)
async def model_version_infer(request: Request, parts: Wanted, name: str, version: str) -> Response:
    """Compute the outputs of a model's version; nothing is recorded."""
    return await _infer(request, parts, name, version)


@router.get("", response_model=ServerMetadata)
async def server_metadata(parts: Wanted) -> Response:
    """Tell who answers, and which extensions of the protocol work."""
    offered = extensions(shared_memory=parts.regions.allowed)
    return answer(ServerMetadata(name="clawdbot", version=VERSION, extensions=offered))


@router.get("/health/live", response_model=Live)
async def server_live() -> Response:
    """Tell that the process runs."""
    return answer(Live())


@router.get("/health/ready", response_model=Ready)
async def server_ready(parts: Wanted) -> Response:
    """Tell that the bus answers and that the event log is not refused."""
    await check_ready(parts)
    return answer(Ready())


@router.get("/models/{name:path}/ready", response_model=ModelReady)
async def model_ready(parts: Wanted, name: str) -> Response:
    """Tell that a worker can run a model."""
    return await _ready(parts, name, None)


@router.post("/models/{name:path}/infer", response_model=InferResponse, openapi_extra=_BODY)
async def model_infer(request: Request, parts: Wanted, name: str) -> Response:
    """Compute the outputs of a model; nothing is recorded."""
    return await _infer(request, parts, name, None)


@router.get("/models/{name:path}/versions/{version}", response_model=ModelMetadata)
async def model_version_metadata(parts: Wanted, name: str, version: str) -> Response:
    """Show the signature of a model's version."""
    return answer(parts.inferences.metadata(name, await parts.inferences.model(name, version)))


@router.get("/models/{name:path}", response_model=ModelMetadata)
async def model_metadata(parts: Wanted, name: str) -> Response:
    """Show a model's signature."""
    return answer(parts.inferences.metadata(name, await parts.inferences.model(name)))


async def _ready(parts: Parts, name: str, version: str | None) -> Response:
    async with parts.bus.prompt(parts.settings.request_s_max):
        spec = await parts.inferences.model(name, version)
        await parts.inferences.check_ready(name, spec)
    return answer(ModelReady(name=name))


async def _infer(request: Request, parts: Parts, name: str, version: str | None) -> Response:
    asked = Asked(name, version, body=await request.body(), **request.scope["state"])
    found = await infer(asked, parts)
    headers = {key.decode(): text.decode() for key, text in found.headers}
    return Response(bytes(found.body), headers=headers)


async def infer(asked: Asked, parts: Parts) -> Answer:
    """Answer an inference.

    Raises:
        ClawdbotError: It cannot be answered.
    """
    begun = time.perf_counter()
    name, said = asked.model, asked.headers
    spec = await parts.inferences.model(name, asked.version, asked.correlation_id)
    body = unpacked(asked.body, _text(said, b"content-encoding"), parts.settings.body_bytes_max)
    length = said.get(_JSON_BYTES)
    json_size = None if length is None else json_bytes(length.decode("latin-1"))
    ask = forms.parse(body, json_size, spec, parts.regions)
    asks.check_places(ask, parts.regions)
    headers = {Header.CORRELATION_ID: asked.correlation_id}
    if _TRACEPARENT in said:
        headers[Header.TRACEPARENT] = _text(said, _TRACEPARENT)
    read = time.perf_counter()
    found = await parts.inferences.infer(name, spec, ask, headers)
    replied = time.perf_counter()
    head: dict[str, Any] = {"model_name": name, "model_version": spec.version}
    if ask.id:
        head["id"] = ask.id
    more = found.parameters(name)
    if more:
        head["parameters"] = more
        asked.facts.update(more)
    asked.facts["model"] = found.model
    wanted = found.of(ask.outputs)
    content, json_size = answers.encode(head, wanted, found.outputs, parts.regions)
    times = {"read": read - begun, "ask": replied - read, "write": time.perf_counter() - replied}
    parts.traces.note(name, asked.request_id, times)
    return _packed(content, json_size, _text(said, b"accept-encoding"))


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")


def json_bytes(text: str | None) -> int | None:
    """Read how much of a body is JSON; None when the header is absent: all of it.

    Raises:
        InvalidArgument: No number of bytes.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= LENGTH_DIGITS_MAX):
        raise InvalidArgument("send a number of bytes", field=JSON_BYTES)
    return int(text)


def unpacked(body: Body, encoding: str, bytes_max: int) -> Body:
    """Undo a content encoding.

    Raises:
        UnsupportedMediaType: Neither gzip nor deflate.
        InvalidArgument: Not what it says it is.
        BodyTooLarge: It unpacks to too many bytes.
    """
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return body
    if encoding not in _WINDOW_BITS:
        raise UnsupportedMediaType("use gzip or deflate", field="Content-Encoding")
    unpacker = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        found = unpacker.decompress(bytes(body), bytes_max + 1)
    except zlib.error as error:
        raise InvalidArgument(f"the body is not {encoding}", field="body") from error
    if len(found) > bytes_max:
        raise BodyTooLarge(f"a body unpacks to at most {bytes_max} bytes", field="body")
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidArgument(f"the {encoding} body is cut off, or goes on", field="body")
    return found


def _packed(content: Body, json_size: int | None, accepted: str) -> Answer:
    """Return an answer, packed for who accepts nothing else but that: packing numbers is slow."""
    media_type = _JSON if json_size is None else _OCTETS
    headers = [media_type] if json_size is None else [media_type, (_JSON_BYTES, b"%d" % json_size)]
    encoding = accepted.strip().lower()
    if encoding in _WINDOW_BITS:
        packer = zlib.compressobj(1, wbits=_WINDOW_BITS[encoding])
        content = packer.compress(bytes(content)) + packer.flush()
        headers.append((b"content-encoding", encoding.encode()))
    headers.append((b"content-length", b"%d" % len(content)))
    return Answer(content, headers)

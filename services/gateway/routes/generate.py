"""The generate extension of the Open Inference Protocol: plain JSON, whole or as it grows."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from schemas.catalogue import ModelSpec
from schemas.errors import ClawdbotError
from schemas.messages import Header
from services.gateway.departures import called_off_when_gone
from services.gateway.inference import generate
from services.gateway.inference.asks import InferAsk
from services.gateway.routes import Parts, Wanted
from services.gateway.routes.inference import ERRORS
from services.gateway.silence import ALIVE, with_silence
from services.telemetry import get_logger


log = get_logger()

EVENT_STREAM = "text/event-stream"
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/GenerateRequest"}}
        },
    }
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
        "description": "Parts of the answer, each an object; an error after the first is one too",
    }
}
router = APIRouter(prefix="/v2", tags=["inference"], responses=ERRORS)


@router.post(
    "/models/{name:path}/versions/{version}/generate",
    response_model=dict[str, Any],
    openapi_extra=_BODY,
)
async def model_version_generate(
    request: Request, parts: Wanted, name: str, version: str
) -> Response:
    """Compute with plain JSON, by a model's version; nothing is recorded."""
    return await _whole(request, parts, name, version)


@router.post(
    "/models/{name:path}/versions/{version}/generate_stream", responses=_STREAM, openapi_extra=_BODY
)
async def model_version_generate_stream(
    request: Request, parts: Wanted, name: str, version: str
) -> Response:
    """Compute by a model's version, and send the answer as it grows; it stops with the client."""
    return await _stream(request, parts, name, version)


@router.post("/models/{name:path}/generate", response_model=dict[str, Any], openapi_extra=_BODY)
async def model_generate(request: Request, parts: Wanted, name: str) -> Response:
    """Compute with plain JSON; nothing is recorded."""
    return await _whole(request, parts, name, None)


@router.post("/models/{name:path}/generate_stream", responses=_STREAM, openapi_extra=_BODY)
async def model_generate_stream(request: Request, parts: Wanted, name: str) -> Response:
    """Compute with plain JSON, and send the answer as it grows; it stops when the client goes."""
    return await _stream(request, parts, name, None)


async def _whole(request: Request, parts: Parts, name: str, version: str | None) -> Response:
    spec = await parts.inferences.model(name, version, request.state.correlation_id)
    ask = generate.ask_of(await request.body(), spec)
    with called_off_when_gone(request.scope):
        found = await parts.inferences.infer(name, spec, ask, _headers(request))
    request.state.facts["model"] = found.model
    head = {**_head(name, spec, ask), **found.parameters(name)}
    content = generate.answer_of(head, spec, found.outputs)
    return Response(content, media_type="application/json")


async def _stream(request: Request, parts: Parts, name: str, version: str | None) -> Response:
    spec = await parts.inferences.model(name, version, request.state.correlation_id)
    ask = generate.ask_of(await request.body(), spec)
    stream = _parts_of(parts, name, spec, ask, _headers(request))
    try:
        with called_off_when_gone(request.scope):
            first = await anext(stream)  # what goes wrong before it has a status of its own
    except BaseException:
        await stream.aclose()
        raise
    request.state.facts["model"] = name
    return StreamingResponse(
        _events(first, stream, parts.settings.heartbeat_s),
        media_type=EVENT_STREAM,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _parts_of(
    parts: Parts, name: str, spec: ModelSpec, ask: InferAsk, headers: dict[str, str]
) -> AsyncGenerator[bytes, None]:
    """Yield the parts of an answer as JSON."""
    head = _head(name, spec, ask)
    async with aclosing(parts.inferences.stream(name, spec, ask, headers)) as stream:
        async for found, _ in stream:
            if found.outputs:
                said = {**head, **found.parameters(name)}
                yield generate.answer_of(said, spec, found.outputs)


async def _events(
    first: bytes, rest: AsyncGenerator[bytes, None], heartbeat_s: float
) -> AsyncGenerator[bytes, None]:
    """Yield parts as server-sent events; an error among them is one too.

    Source: HTML Standard, section 9.2.
    """
    async with aclosing(rest), aclosing(with_silence(rest, heartbeat_s)) as parts:
        yield b"data: %s\n\n" % first
        try:
            async for part in parts:
                yield ALIVE if part is None else b"data: %s\n\n" % part
        except ClawdbotError as error:
            log.info("stream_broken", error=error.message)
            yield b"data: %s\n\n" % orjson.dumps({"error": error.message})


def _head(name: str, spec: ModelSpec, ask: InferAsk) -> dict[str, Any]:
    named = {"id": ask.id} if ask.id else {}
    return {**named, "model_name": name, "model_version": spec.version}


def _headers(request: Request) -> dict[str, str]:
    headers = {Header.CORRELATION_ID: request.state.correlation_id}
    if "traceparent" in request.headers:
        headers[Header.TRACEPARENT] = request.headers["traceparent"]
    return headers

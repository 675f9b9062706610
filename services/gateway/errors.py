"""Errors as HTTP answers."""

from collections.abc import Awaitable, Callable

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from schemas.api import ApiError
from schemas.complaints import first_complaint
from schemas.errors import (
    BusUnavailable,
    Cancelled,
    ClawdbotError,
    InvalidArgument,
    RetryableError,
)
from schemas.open_inference import InferenceError
from services.errors import STATUS, RangeNotSatisfiable, brief, dump, error_body, status_of
from services.runtime import BUS_ERRORS
from services.telemetry import get_logger


log = get_logger()

INFERENCE = "/v2"
"""Below it errors have the shape of the Open Inference Protocol."""
FOREIGN = (ClientDisconnect, *BUS_ERRORS)
"""What libraries raise that is no failure of ours: the client is gone, or the bus is away."""
_WORDS = {status: code for code, status in reversed(STATUS.items())}
_HINTS = {
    404: "there is nothing here; /docs lists every address",
    405: "this address does not take this method; /docs lists those it takes",
}


def refusal(error: ClawdbotError, scope: Scope) -> Response:
    """Return the answer to a request that is refused, in the shape of the protocol of its path.

    Why goes into the request's log line.
    """
    state, path = scope["state"], scope["path"]
    state["facts"]["error"] = brief(error.message)
    if error.context:
        log.info("request_refused", request_id=state["request_id"], **error.context)
    headers: dict[str, str] = {}
    if isinstance(error, RetryableError):
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    if _is_inference(path):
        text = error.message if error.field is None else f"{error.field}: {error.message}"
        return _json(_plain(text), status_of(error), headers)
    return _json(error_body(error, state["request_id"]), status_of(error), headers)


def unexpected(request_id: str, path: str = "") -> Response:
    """Return the answer to a bug: an id, and nothing of the inside."""
    if _is_inference(path):
        text = f"something went wrong here; the log has it under request_id {request_id}"
        return _json(_plain(text), 500, {})
    error = ApiError(
        code="INTERNAL",
        message="something went wrong here; the log has it under this request_id",
        request_id=request_id,
    )
    return _json(dump(error), 500, {})


def ours(error: Exception) -> ClawdbotError:
    """Return what to say of an error in `FOREIGN`."""
    if isinstance(error, ClientDisconnect):
        return Cancelled("the client went away")
    log.info("bus_error", error=str(error), kind=type(error).__name__)
    return BusUnavailable("the bus does not answer")


def install(app: FastAPI) -> None:
    """Teach an application the table."""
    handlers: dict[type[Exception], Callable[..., Awaitable[Response]]] = {
        ClawdbotError: _on_ours,
        RequestValidationError: _on_invalid,
        HTTPException: _on_http,
        **dict.fromkeys(FOREIGN, _on_foreign),
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _on_ours(request: Request, error: ClawdbotError) -> Response:
    return refusal(error, request.scope)


async def _on_foreign(request: Request, error: Exception) -> Response:
    return refusal(ours(error), request.scope)


async def _on_invalid(request: Request, error: RequestValidationError) -> Response:
    loc, message = first_complaint(error)
    place, *rest = [str(part) for part in loc] or [""]
    return refusal(InvalidArgument(message, field=".".join(rest) or place), request.scope)


async def _on_http(request: Request, error: HTTPException) -> Response:
    message = _HINTS.get(error.status_code, str(error.detail))
    code = _WORDS.get(error.status_code, "INVALID_ARGUMENT")
    request.state.facts["error"] = message
    if _is_inference(request.url.path):
        return _json(_plain(message), error.status_code, dict(error.headers or {}))
    body = dump(ApiError(code=code, message=message, request_id=request.state.request_id))
    return _json(body, error.status_code, dict(error.headers or {}))


def _is_inference(path: str) -> bool:
    return path == INFERENCE or path.startswith(f"{INFERENCE}/")


def _plain(text: str) -> bytes:
    """Return an error as the Open Inference Protocol has it."""
    return orjson.dumps(InferenceError(error=brief(text)).model_dump())


def _json(body: bytes, status: int, headers: dict[str, str]) -> Response:
    return Response(body, status, headers=headers, media_type="application/json")

"""The one table of errors to HTTP; `call` uses the same numbers on the bus."""

from collections.abc import Awaitable, Callable

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from schemas.api import ApiError, ErrorBody
from schemas.errors import (
    BusUnavailable,
    ClawdbotError,
    FailedPrecondition,
    InvalidArgument,
    RetryableError,
    StoreFull,
)
from services.telemetry import get_logger


log = get_logger()

STATUS = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 400,
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "DEADLINE_EXCEEDED": 504,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "DATA_LOSS": 500,
    "UNAVAILABLE": 503,
    "RESOURCE_EXHAUSTED": 429,
    "ABORTED": 503,
}
_WORDS = {status: code for code, status in reversed(STATUS.items())}
_HINTS = {
    404: "there is nothing here; /docs lists every address",
    405: "this address does not take this method; /docs lists those it takes",
}


MESSAGE_CHARS_MAX = 500


class BodyTooLarge(InvalidArgument):
    """More bytes than this address takes."""


class BodyTooSlow(InvalidArgument):
    """The body did not arrive in time."""


class UnsupportedMediaType(InvalidArgument):
    """A content type this address cannot read."""


class WrongState(FailedPrecondition):
    """What is asked for does not fit the state that the run, or its node, is in."""


class RangeNotSatisfiable(InvalidArgument):
    """The range begins behind the last byte."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"the blob has {size_bytes} bytes", field="Range")
        self.size_bytes = size_bytes


_KINDS: dict[type[ClawdbotError], int] = {
    BodyTooSlow: 408,
    BodyTooLarge: 413,
    UnsupportedMediaType: 415,
    RangeNotSatisfiable: 416,
    WrongState: 409,
    StoreFull: 507,
}


def brief(text: str) -> str:
    """Return a text that may quote what a client sent, cut to what a reader can use."""
    return text if len(text) <= MESSAGE_CHARS_MAX else f"{text[:MESSAGE_CHARS_MAX]}…"


def status_of(error: ClawdbotError) -> int:
    """Return the HTTP status of an error."""
    return _KINDS.get(type(error), STATUS.get(error.code, 500))


def error_body(error: ClawdbotError, request_id: str) -> bytes:
    """Return an error as JSON."""
    run_id = error.context.get("run_id")
    return _dump(
        ApiError(
            code=error.code,
            message=brief(error.message),
            field=None if error.field is None else brief(error.field),
            retryable=error.retryable,
            request_id=request_id,
            run_id=run_id if isinstance(run_id, str) else None,
        )
    )


def error_response(error: ClawdbotError, request_id: str) -> Response:
    """Return an error as an HTTP response."""
    headers: dict[str, str] = {}
    if isinstance(error, RetryableError):
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    return _json(error_body(error, request_id), status_of(error), headers)


def unexpected(request_id: str) -> Response:
    """Return the answer to a bug: an id, and nothing of the inside."""
    error = ApiError(
        code="INTERNAL",
        message="something went wrong here; the log has it under this request_id",
        request_id=request_id,
    )
    return _json(_dump(error), 500, {})


def install(app: FastAPI, away: tuple[type[Exception], ...]) -> None:
    """Teach an application the table.

    Args:
        app: The application.
        away: What the bus's client raises when the bus is away.
    """
    handlers: dict[type[Exception], Callable[..., Awaitable[Response]]] = {
        ClawdbotError: _on_ours,
        RequestValidationError: _on_invalid,
        HTTPException: _on_http,
        **dict.fromkeys(away, _on_away),
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _on_ours(request: Request, error: ClawdbotError) -> Response:
    request.state.facts["error"] = brief(error.message)
    if error.context:
        log.info("request_refused", request_id=request.state.request_id, **error.context)
    return error_response(error, request.state.request_id)


async def _on_away(request: Request, error: Exception) -> Response:
    request.state.facts["error"] = type(error).__name__
    return error_response(BusUnavailable("the bus does not answer"), request.state.request_id)


async def _on_invalid(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    place, *rest = [str(part) for part in first["loc"]] or [""]
    refused = InvalidArgument(first["msg"], field=".".join(rest) or place)
    return await _on_ours(request, refused)


async def _on_http(request: Request, error: HTTPException) -> Response:
    message = _HINTS.get(error.status_code, str(error.detail))
    code = _WORDS.get(error.status_code, "INVALID_ARGUMENT")
    request.state.facts["error"] = message
    body = _dump(ApiError(code=code, message=message, request_id=request.state.request_id))
    return _json(body, error.status_code, dict(error.headers or {}))


def _dump(error: ApiError) -> bytes:
    return orjson.dumps(ErrorBody(error=error).model_dump())


def _json(body: bytes, status: int, headers: dict[str, str]) -> Response:
    return Response(body, status, headers=headers, media_type="application/json")

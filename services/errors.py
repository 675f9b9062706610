"""The one table of errors to statuses; HTTP and request-reply on the bus use the same numbers."""

import orjson

from schemas.api import ApiError, ErrorBody
from schemas.errors import ClawdbotError, FailedPrecondition, InvalidArgument, StoreFull


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

MESSAGE_CHARS_MAX = 500


class BodyTooLarge(InvalidArgument):
    """More bytes than this address takes."""


class BodyTooSlow(InvalidArgument):
    """The body did not arrive in time."""


class UnsupportedMediaType(InvalidArgument):
    """A content type this address cannot read."""


class Unsupported(InvalidArgument):
    """A part of a protocol that is not offered."""


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
    Unsupported: 501,
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
    return dump(
        ApiError(
            code=error.code,
            message=brief(error.message),
            field=None if error.field is None else brief(error.field),
            retryable=error.retryable,
            request_id=request_id,
            run_id=run_id if isinstance(run_id, str) else None,
        )
    )


def dump(error: ApiError) -> bytes:
    """Return an error in the one shape of every error."""
    return orjson.dumps(ErrorBody(error=error).model_dump())

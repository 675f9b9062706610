"""One tree of errors; `code` uses the canonical gRPC words.

ClawdbotError
 ├ TerminalError: InvalidArgument · NotFound · AlreadyExists · FailedPrecondition
 │                · PermissionDenied · Unauthenticated · DeadlineExceeded · Cancelled
 │                · EngineFailed · DataLoss
 └ RetryableError: Unavailable (BusUnavailable · StoreUnavailable · ModelUnavailable)
                   · ResourceExhausted (StoreFull) · Aborted (VersionConflict)
"""

from typing import Any, ClassVar


class ClawdbotError(Exception):
    """The root. `message` is for the caller, `context` for the log.

    Args:
        message: What is wrong and how to mend it; no paths, addresses or stacks.
        field: The offending field as a path (`nodes[2].params.model`), if one is to blame.
        context: Facts for the log only.
    """

    code: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, field: str | None = None, **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.context = context


class TerminalError(ClawdbotError):
    """Trying again cannot help."""


class InvalidArgument(TerminalError):
    """The caller sent something malformed."""

    code = "INVALID_ARGUMENT"


class NotFound(TerminalError):
    """The named thing does not exist."""

    code = "NOT_FOUND"


class AlreadyExists(TerminalError):
    """The id is taken by something different."""

    code = "ALREADY_EXISTS"


class FailedPrecondition(TerminalError):
    """The system is not in a state that allows this."""

    code = "FAILED_PRECONDITION"


class PermissionDenied(TerminalError):
    """The caller may not do this."""

    code = "PERMISSION_DENIED"


class Unauthenticated(TerminalError):
    """The caller is not known."""

    code = "UNAUTHENTICATED"


class DeadlineExceeded(TerminalError):
    """It took longer than the caller, or the definition, allows."""

    code = "DEADLINE_EXCEEDED"


class Cancelled(TerminalError):
    """Somebody called it off."""

    code = "CANCELLED"


class EngineFailed(TerminalError):
    """The engine could not compute this input."""

    code = "INTERNAL"


class DataLoss(TerminalError):
    """The log is altered, regressed or undecodable; nothing is written on top of it."""

    code = "DATA_LOSS"


class RetryableError(ClawdbotError):
    """The same call may succeed later.

    Args:
        retry_after_s: A hint in seconds, >= 0.
    """

    retryable = True

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: float = 1.0,
        **context: Any,
    ) -> None:
        super().__init__(message, field=field, **context)
        self.retry_after_s = retry_after_s


class Unavailable(RetryableError):
    """A part of the system is away."""

    code = "UNAVAILABLE"


class BusUnavailable(Unavailable):
    """NATS does not answer."""


class StoreUnavailable(Unavailable):
    """The event log does not answer."""


class ModelUnavailable(Unavailable):
    """No worker can serve the model now."""


class ResourceExhausted(RetryableError):
    """A limit is reached."""

    code = "RESOURCE_EXHAUSTED"


class StoreFull(ResourceExhausted):
    """The event log has no room left; HTTP says 507."""


class Aborted(RetryableError):
    """Lost a race; read again and decide again."""

    code = "ABORTED"


class VersionConflict(Aborted):
    """Somebody else appended to the run first."""


def by_code() -> dict[str, type[ClawdbotError]]:
    """Return the class that stands for each code: the first one declared with it."""
    found: dict[str, type[ClawdbotError]] = {}
    pending: list[type[ClawdbotError]] = [TerminalError, RetryableError]
    while pending:
        kind = pending.pop(0)
        found.setdefault(kind.code, kind)
        pending.extend(kind.__subclasses__())
    found["INTERNAL"] = EngineFailed
    return found

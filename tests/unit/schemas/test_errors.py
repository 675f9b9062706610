"""The tree of errors."""

import pytest

from schemas import errors
from schemas.errors import (
    ClawdbotError,
    EngineFailed,
    InvalidArgument,
    ResourceExhausted,
    RetryableError,
    StoreFull,
    TerminalError,
    Unavailable,
    by_code,
)
from schemas.messages import Fault


CLASSES = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ClawdbotError)
]
LEAVES = [kind for kind in CLASSES if kind not in {ClawdbotError, TerminalError, RetryableError}]
GRPC_CODES = {
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
}


@pytest.mark.parametrize("kind", LEAVES)
def test_every_error_is_terminal_or_retryable(kind: type[ClawdbotError]) -> None:
    """No error is both, none is neither, and `retryable` says which."""
    assert issubclass(kind, TerminalError) != issubclass(kind, RetryableError)
    assert issubclass(kind, RetryableError) == kind.retryable


@pytest.mark.parametrize("kind", CLASSES)
def test_codes_are_canonical(kind: type[ClawdbotError]) -> None:
    """Codes are gRPC's words."""
    assert kind.code in GRPC_CODES


@pytest.mark.parametrize("kind", LEAVES)
def test_the_tree_is_drawn(kind: type[ClawdbotError]) -> None:
    """The picture at the top of the module shows every error."""
    assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("kind", LEAVES)
def test_code_leads_back_to_the_kind(kind: type[ClawdbotError]) -> None:
    """The class behind a code has that code and is as retryable as the original."""
    found = by_code()[kind.code]
    assert kind.code == found.code
    assert kind.retryable == found.retryable


def test_special_kinds_lead_back_to_the_general_one() -> None:
    """A code shared by several classes stands for the one that was declared with it."""
    assert ResourceExhausted is by_code()[StoreFull.code]
    assert Unavailable is by_code()["UNAVAILABLE"]
    assert EngineFailed is by_code()["INTERNAL"]


def test_fault_keeps_what_the_caller_may_know() -> None:
    """A fault has code, message, field and retryability; the context stays behind."""
    error = InvalidArgument("no such model", field="nodes[0]", path="/secret")
    expected = Fault(code="INVALID_ARGUMENT", message="no such model", field="nodes[0]")
    assert expected == Fault.of(error)
    assert {"path": "/secret"} == error.context


@pytest.mark.parametrize("kind", LEAVES)
def test_fault_round_trip(kind: type[ClawdbotError]) -> None:
    """Exception to fault to exception keeps code, message and field."""
    fault = Fault.of(kind("broken", field="f"))
    back = fault.exception()
    assert (kind.code, "broken", "f") == (back.code, back.message, back.field)
    assert kind.retryable == back.retryable


def test_unknown_code_is_an_engine_failure() -> None:
    """A code from a newer version is terminal, not a crash."""
    assert isinstance(Fault(code="NEW_CODE", message="m").exception(), EngineFailed)

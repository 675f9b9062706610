"""The commands a run obeys. Time, ids and everything unpredictable arrive inside them."""

from dataclasses import dataclass

from schemas.messages import Fault, TaskResult
from schemas.plan import Plan
from schemas.values import Wire


@dataclass(frozen=True)
class StartRun:
    """Begin a run of a compiled workflow."""

    workflow: str
    version: int
    digest: str
    plan: Plan
    inputs: Wire
    inputs_digest: str
    correlation_id: str
    at: float


@dataclass(frozen=True)
class RejectRun:
    """Refuse a submission that was already acked."""

    workflow: str
    inputs_digest: str
    error: Fault
    at: float


@dataclass(frozen=True)
class RecordResult:
    """A worker answered."""

    result: TaskResult
    at: float


@dataclass(frozen=True)
class CheckClock:
    """Time has passed: give up late attempts, begin waiting ones."""

    at: float


@dataclass(frozen=True)
class CancelRun:
    """Stop it."""

    reason: str
    at: float


Command = StartRun | RejectRun | RecordResult | CheckClock | CancelRun

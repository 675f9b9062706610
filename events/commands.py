"""The commands a run obeys. Time, ids and everything unpredictable arrive inside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from events.catalog import Figures, ForkedFrom, NodeKept, NodeSkipped, SignalReceived
from schemas.messages import Fault, TaskResult
from schemas.plan import Plan
from schemas.values import Wire


@dataclass(frozen=True)
class Advice:
    """What a decision may use and cannot find in the log; what it uses of it is recorded."""

    noise: float = 0.0
    """A random number in [0, 1), for the jitter of retries."""
    health: Mapping[str, Figures] = field(default_factory=dict)
    """How the ways to do a node are doing, by `pool/model`."""


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
    forked_from: ForkedFrom | None = None
    kept: tuple[NodeKept | NodeSkipped | SignalReceived, ...] = ()
    """What a fork takes over from the run it was forked from."""


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
    """Time has passed: give up late attempts, begin waiting ones, go on where a turn ended."""

    at: float


@dataclass(frozen=True)
class CancelRun:
    """Stop it."""

    reason: str
    at: float


@dataclass(frozen=True)
class PauseRun:
    """Begin nothing new."""

    reason: str
    at: float


@dataclass(frozen=True)
class ResumeRun:
    """Go on."""

    at: float


@dataclass(frozen=True)
class SignalRun:
    """Hand a signal to the node that waits for it, or keep it."""

    name: str
    signal_id: str
    payload: Any
    at: float


@dataclass(frozen=True)
class SkipNode:
    """Do without a node, or put its outputs in place of its work."""

    node_id: str
    outputs: Wire | None
    reason: str
    at: float


@dataclass(frozen=True)
class RetryNode:
    """Try a node again that failed, or that waits for its next attempt."""

    node_id: str
    at: float


@dataclass(frozen=True)
class GrantNode:
    """It is a queued node's turn."""

    node_id: str
    at: float


@dataclass(frozen=True)
class ExpandNode:
    """A dynamic node's graph was compiled, or cannot be."""

    node_id: str
    attempt: int
    plan: Plan | None
    error: Fault | None
    at: float


Command = (
    StartRun
    | RejectRun
    | RecordResult
    | CheckClock
    | CancelRun
    | PauseRun
    | ResumeRun
    | SignalRun
    | SkipNode
    | RetryNode
    | GrantNode
    | ExpandNode
)

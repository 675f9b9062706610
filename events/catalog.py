"""The domain events of a run. Each is a fact; its short name is its topic, for ever."""

from operator import not_
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.messages import Fault, Timings
from schemas.plan import Plan
from schemas.values import Wire


def _nothing(value: object) -> bool:
    return value is None


class DomainEvent(BaseModel):
    """Immutable; `at` is seconds since the epoch, handed in by whoever decided."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)
    class_version: ClassVar[int] = 1

    at: float


class ForkedFrom(BaseModel):
    """Where a fork comes from, and what is different in it."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    run_id: str
    """The run it was forked from."""
    at: int
    """The event of that run, from 1, after which the fork begins."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """By path: `node.model`, `node.param`, `inputs.name`."""


class RunStarted(DomainEvent):
    """A submission was accepted; the plan is a copy, so the run never depends on later versions."""

    workflow: str
    version: int
    digest: str
    plan: Plan
    inputs: Wire
    inputs_digest: str
    correlation_id: str
    forked_from: ForkedFrom | None = Field(default=None, exclude_if=_nothing)
    """Set when the run is a fork of another one."""


class RunRejected(DomainEvent):
    """A submission was refused after its ack; terminal."""

    workflow: str
    inputs_digest: str
    error: Fault


class Figures(BaseModel):
    """How well one way to do a node was doing."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    route: str
    """`pool/model`."""
    state: Literal["closed", "open", "half_open"] = "closed"
    """Of its circuit breaker: closed is well, open gets nothing, half open one probe."""
    answers: int = 0
    """Since this orchestrator began."""
    latency_ms: float = 0.0
    """From the decision to the answer, moving average."""
    queue_ms: float = 0.0
    """Part of it spent waiting for a worker."""
    error_rate: float = 0.0
    """Moving average, in [0, 1]."""


class RouteChosen(BaseModel):
    """A way that was chosen among several."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    index: int
    """0 is the node's own model, then its alternatives."""
    reason: str
    figures: tuple[Figures, ...] = ()
    """Of every way, as the decision saw them."""


class NodeQueued(DomainEvent):
    """A node waits for its turn: so many of its concurrency key are under way already."""

    node_id: str
    key: str
    limit: int


class NodeScheduled(DomainEvent):
    """An attempt was decided; only results of this attempt count."""

    node_id: str
    """The node's path: `ocr`, or `each[3]/ocr` inside a control node."""
    attempt: int
    deadline: float
    """Seconds since the epoch; past it the attempt is given up."""
    route: RouteChosen | None = Field(default=None, exclude_if=_nothing)
    """Which of several ways was chosen, and why."""
    hedge: bool = Field(default=False, exclude_if=not_)
    """Whether the attempt before goes on beside it; the first answer counts."""


class NodeCompleted(DomainEvent):
    """A node's result."""

    node_id: str
    attempt: int
    outputs: Wire | None = Field(default=None, exclude_if=_nothing)
    """None for a control node: what its graphs gave, which the log has already."""
    model: str
    """The model that really ran; the kind of a control node."""
    worker: str = Field(default="", exclude_if=not_)
    """Empty when the orchestrator itself decided."""
    timings: Timings = Timings()
    memo_of: str = Field(default="", exclude_if=not_)
    """Run and node whose result was taken instead of computing it again, `run/node`."""


class NodeKept(DomainEvent):
    """A node of a fork was not run again: its outputs are those that another run recorded."""

    node_id: str
    run_id: str
    """The run in which it really ran."""
    event: int
    """The event there, from 1, that says so."""
    attempt: int
    outputs: Wire
    model: str
    worker: str = Field(default="", exclude_if=not_)
    timings: Timings = Timings()


class NodeFailed(DomainEvent):
    """An attempt failed; with `retry_at` another one follows."""

    node_id: str
    attempt: int
    error: Fault
    retry_at: float | None = None


class NodeSkipped(DomainEvent):
    """A node will not run: no edge to it was taken, or somebody said so."""

    node_id: str
    reason: str


class NodeOpened(DomainEvent):
    """A control node began: its graphs run as scopes of their own."""

    node_id: str
    attempt: int
    deadline: float
    total: int | None = Field(default=None, exclude_if=_nothing)
    """Iterations to come, where that is known."""
    variables: Wire = Field(default_factory=dict, exclude_if=not_)
    """Of a loop's first iteration."""
    plan: Plan | None = Field(default=None, exclude_if=_nothing)
    """The graph that a dynamic node was given."""


class ScopeOpened(DomainEvent):
    """One graph of a control node began to run."""

    scope: str
    """Path of the control node and which graph: `each[3]`, `guard[catch]`."""
    inputs: Wire
    cleanup_of: str | None = Field(default=None, exclude_if=_nothing)
    """The scope that is being cleaned up by this one; empty for the run itself."""


class ScopeClosed(DomainEvent):
    """A scope is over; what it gave is what its sinks gave."""

    scope: str
    status: Literal["completed", "failed"]
    error: Fault | None = Field(default=None, exclude_if=_nothing)
    variables: Wire = Field(default_factory=dict, exclude_if=not_)
    """What a loop's next iteration begins with."""
    collected: Wire | None = Field(default=None, exclude_if=_nothing)
    """`{"value": ...}`: what a foreach keeps of this iteration instead of its outputs."""
    last: bool = Field(default=False, exclude_if=not_)
    """Whether the loop ends here."""


class CleanupStarted(DomainEvent):
    """A scope, or the run, fails or is cancelled; first what was done is undone."""

    scope: str
    """Empty for the run."""
    ending: Literal["failed", "cancelled"]
    node_id: str
    """The node that failed; empty when nobody did."""
    error: Fault
    steps: tuple[str, ...]
    """Scopes to run one after the other: compensations, the newest first, and finallys."""


class SignalReceived(DomainEvent):
    """Somebody sent the run a signal; it is kept until a node asks for it."""

    name: str
    signal_id: str
    payload: Any = None


class RunPaused(DomainEvent):
    """Nothing new begins until the run is resumed."""

    reason: str = ""


class RunResumed(DomainEvent):
    """It goes on."""


class RunCompleted(DomainEvent):
    """Every node is done; terminal."""

    outputs: dict[str, Any] | None = Field(default=None, exclude_if=_nothing)
    """Outputs of the sinks by node; None: those that the log has already."""


class RunFailed(DomainEvent):
    """A node failed for good; terminal."""

    node_id: str
    error: Fault


class RunCancelled(DomainEvent):
    """Somebody called it off; terminal."""

    reason: str = ""


Event = (
    RunStarted
    | RunRejected
    | NodeQueued
    | NodeScheduled
    | NodeCompleted
    | NodeKept
    | NodeFailed
    | NodeSkipped
    | NodeOpened
    | ScopeOpened
    | ScopeClosed
    | CleanupStarted
    | SignalReceived
    | RunPaused
    | RunResumed
    | RunCompleted
    | RunFailed
    | RunCancelled
)

EVENT_TYPES: dict[str, type[DomainEvent]] = {
    "RunStarted": RunStarted,
    "RunRejected": RunRejected,
    "NodeQueued": NodeQueued,
    "NodeScheduled": NodeScheduled,
    "NodeCompleted": NodeCompleted,
    "NodeKept": NodeKept,
    "NodeFailed": NodeFailed,
    "NodeSkipped": NodeSkipped,
    "NodeOpened": NodeOpened,
    "ScopeOpened": ScopeOpened,
    "ScopeClosed": ScopeClosed,
    "CleanupStarted": CleanupStarted,
    "SignalReceived": SignalReceived,
    "RunPaused": RunPaused,
    "RunResumed": RunResumed,
    "RunCompleted": RunCompleted,
    "RunFailed": RunFailed,
    "RunCancelled": RunCancelled,
}
SHORT_NAMES: dict[type, str] = {kind: name for name, kind in EVENT_TYPES.items()}

RunStatus = Literal["running", "paused", "completed", "failed", "rejected", "cancelled"]
TERMINAL = (RunCompleted, RunFailed, RunRejected, RunCancelled)
"""Events that nothing follows."""

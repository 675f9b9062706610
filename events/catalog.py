"""The domain events of a run. Each is a fact; its short name is its topic, for ever."""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.messages import Fault, Timings
from schemas.plan import Plan
from schemas.values import Wire


class DomainEvent(BaseModel):
    """Immutable; `at` is seconds since the epoch, handed in by whoever decided."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)
    class_version: ClassVar[int] = 1

    at: float


class RunStarted(DomainEvent):
    """A submission was accepted; the plan is a copy, so the run never depends on later versions."""

    workflow: str
    version: int
    digest: str
    plan: Plan
    inputs: Wire
    inputs_digest: str
    correlation_id: str


class RunRejected(DomainEvent):
    """A submission was refused after its ack; terminal."""

    workflow: str
    inputs_digest: str
    error: Fault


class NodeScheduled(DomainEvent):
    """An attempt was decided; only results of this attempt count."""

    node_id: str
    attempt: int
    deadline: float
    """Seconds since the epoch; past it the attempt is given up."""


class NodeCompleted(DomainEvent):
    """A node's result."""

    node_id: str
    attempt: int
    outputs: Wire
    model: str
    """The model that really ran."""
    worker: str
    timings: Timings


class NodeFailed(DomainEvent):
    """An attempt failed; with `retry_at` another one follows."""

    node_id: str
    attempt: int
    error: Fault
    retry_at: float | None = None


class RunCompleted(DomainEvent):
    """Every node is done; terminal."""

    outputs: dict[str, Any] = Field(default_factory=dict)
    """Outputs of the sinks, by node."""


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
    | NodeScheduled
    | NodeCompleted
    | NodeFailed
    | RunCompleted
    | RunFailed
    | RunCancelled
)

EVENT_TYPES: dict[str, type[DomainEvent]] = {
    "RunStarted": RunStarted,
    "RunRejected": RunRejected,
    "NodeScheduled": NodeScheduled,
    "NodeCompleted": NodeCompleted,
    "NodeFailed": NodeFailed,
    "RunCompleted": RunCompleted,
    "RunFailed": RunFailed,
    "RunCancelled": RunCancelled,
}
SHORT_NAMES: dict[type, str] = {kind: name for name, kind in EVENT_TYPES.items()}

RunStatus = Literal["running", "completed", "failed", "rejected", "cancelled"]

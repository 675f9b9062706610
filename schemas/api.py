"""What the HTTP API takes and gives; times are seconds since the epoch."""

from operator import not_
from typing import Any, Literal

from pydantic import Field

from schemas.catalogue import Modality, ModelSpec, ValueKind
from schemas.message import Message, UserInput
from schemas.messages import Fault, Timings
from schemas.plan import Adaptation
from schemas.repository import ModelFile, VersionPolicy
from schemas.workflow import Schedule, Trigger, WorkflowDefinition


NodeViewStatus = Literal[
    "pending", "queued", "scheduled", "waiting", "open", "completed", "failed", "skipped"
]
RunViewStatus = Literal[
    "accepted", "running", "paused", "completed", "failed", "rejected", "cancelled"
]


class ApiError(Message):
    """What went wrong and how to mend it."""

    code: str
    """A canonical gRPC word."""
    message: str
    field: str | None = None
    """The offending field as a path, if one is to blame."""
    retryable: bool = False
    request_id: str = ""
    """Quote it when you ask for help; the log has the rest."""
    run_id: str | None = None
    """The run that goes on although the answer is an error."""


class ErrorBody(Message):
    """The one shape of every error."""

    error: ApiError


class RunRequest(UserInput):
    """A submission as JSON."""

    inputs: dict[str, Any] = Field(default_factory=dict)
    """By name. Bytes are `{"$binary": {"media_type", "data": <base64>}}`, an uploaded blob is
    `{"$blob": {"media_type", "size_bytes", "sha256"}}`."""


class InputView(Message):
    """An input of a workflow."""

    name: str
    kind: ValueKind | None
    """None where a template takes anything."""
    required: bool


class WorkflowView(Message):
    """One version of a workflow."""

    name: str
    version: int
    digest: str
    replicas: int
    schedules: dict[str, Schedule] = Field(default_factory=dict)
    """What starts runs by the clock."""
    triggers: dict[str, Trigger] = Field(default_factory=dict)
    """What starts runs by messages."""
    warnings: tuple[str, ...]
    inputs: tuple[InputView, ...]
    outputs: tuple[str, ...]
    """The nodes whose outputs are the run's outputs."""
    adapted: dict[str, Adaptation] = Field(default_factory=dict, exclude_if=not_)
    """How inputs of nodes, `node.input`, are made of the files and texts that come."""
    deployed_at: float
    definition: WorkflowDefinition


class WorkflowList(Message):
    """Every workflow's newest version."""

    workflows: tuple[WorkflowView, ...]


class KeptView(Message):
    """Where a node of a fork really ran."""

    run_id: str
    event: int
    """The event of that run, from 1, that has its outputs."""


class ForkView(Message):
    """Where a fork comes from."""

    run_id: str
    at: int
    """The event of that run, from 1, after which the fork begins."""
    changes: dict[str, Any] = Field(default_factory=dict)


class NodeView(Message):
    """One node of a run."""

    id: str
    """Its path: `ocr`, or `each[3]/ocr` inside a control node."""
    status: NodeViewStatus
    attempt: int = 0
    model: str
    """The model that ran, or that is asked for."""
    adapted: dict[str, str] = Field(default_factory=dict, exclude_if=not_)
    """Inputs that an adapter makes of the files and texts that come, and which."""
    worker: str | None = None
    scheduled_at: float | None = None
    finished_at: float | None = None
    timings: Timings | None = None
    outputs: dict[str, Any] | None = None
    error: Fault | None = None
    kept_from: KeptView | None = None
    """Set in a fork where the node was not run again."""


class RunView(Message):
    """A run as its log has it."""

    run_id: str
    status: RunViewStatus
    """`accepted`: stored and acknowledged, but not yet begun."""
    workflow: str
    version: int
    inputs: dict[str, Any]
    nodes: tuple[NodeView, ...] = ()
    outputs: dict[str, Any] | None = None
    error: Fault | None = None
    correlation_id: str = ""
    forked_from: ForkView | None = None
    events: int = 0
    """How many events the view was folded from."""
    started_at: float
    updated_at: float
    duration_ms: float


class RunSummary(Message):
    """A run in a list."""

    run_id: str
    workflow: str
    status: str
    commits: int
    started_at: float
    updated_at: float
    duration_ms: float


class RunPage(Message):
    """Runs, newest first."""

    runs: tuple[RunSummary, ...]
    next: str | None
    """Pass it as `cursor` for the next page; None at the end."""


class EventView(Message):
    """One event of a run's log."""

    id: int
    """Ordinal within the run, from 1."""
    sequence: int
    """Of its commit, in the whole log."""
    commit: int
    """Number of its commit within the run, from 1."""
    type: str
    at: float
    data: dict[str, Any]


class NodePart(Message):
    """A part of what a node gives, said while it computes; the log has the whole."""

    node: str
    """Its path: `llm`, or `each[3]/llm` inside a control node."""
    attempt: int
    """A later one begins again with part 1."""
    part: int
    """From 1; a number that is missing was lost on the way."""
    outputs: dict[str, Any]
    """What is new, by output: of a text, what comes behind what was said before."""


class EventPage(Message):
    """A run's events, in order."""

    events: tuple[EventView, ...]


class BlobView(Message):
    """A blob that is kept."""

    media_type: str
    size_bytes: int
    sha256: str


class ModelOffer(Message):
    """What one worker says of a model."""

    worker: str
    served_by: str
    available: bool
    reason: str
    loaded: bool = False
    """Whether it is in the worker's memory now; what follows is measured then."""
    devices: tuple[str, ...] = ()
    """What it really runs on, best first."""
    memory_bytes: int = 0
    device_bytes: int = 0
    """Of the memory of GPUs."""
    isolated: bool = False
    """Whether it has a process of its own."""
    latency_ms: dict[str, float] = Field(default_factory=dict)
    """Mean time of a call of the engine, by its number of rows; measured when it was loaded, then
    of the calls there were."""


class ModelView(Message):
    """One model of the catalogue."""

    name: str
    modality: Modality
    version: str
    description: str
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    fallback: str | None
    get: str
    """How to get the weights."""
    available: bool
    """Whether some worker can run it now, if only by its fallback."""
    served_by: tuple[str, ...]
    """What really runs when it is asked for."""
    offers: tuple[ModelOffer, ...]


class ModelList(Message):
    """The catalogue and who serves it."""

    models: tuple[ModelView, ...]


class PartView(Message):
    """A part of a file of the model repository."""

    sha256: str
    size_bytes: int


class PushView(Message):
    """A version of a model, as it was pushed."""

    name: str
    version: int
    digest: str
    """Of its spec and files."""
    current: int
    """The version in use now; 0 for none."""
    created: bool
    """Whether it is new; the same content is the same version."""


class VersionView(Message):
    """One version of a model of the repository."""

    version: int
    digest: str
    size_bytes: int
    pushed_at: float
    offered: bool
    """Whether workers keep it ready; one that is not is fetched for workflows that name it."""
    spec: ModelSpec
    files: tuple[ModelFile, ...]
    offers: tuple[ModelOffer, ...]


class RepositoryView(Message):
    """A model of the repository."""

    name: str
    current: int
    """The version in use; 0 for none."""
    previous: int
    """What a rollback goes back to; 0 for nothing."""
    canaries: dict[str, int]
    """Percent of the requests by version."""
    aliases: dict[str, int]
    policy: VersionPolicy
    loaded: bool
    versions: tuple[VersionView, ...]


class RepositoryList(Message):
    """Every model of the repository."""

    models: tuple[RepositoryView, ...]


class Health(Message):
    """An answer to a probe."""

    status: Literal["ok"] = "ok"


class ModelStatisticsView(Message):
    """One model under one node; times are means, milliseconds."""

    model: str
    completed: int
    compute_ms: float
    compute_ms_max: float


class NodeStatisticsView(Message):
    """One node of one workflow over all runs in the log; times are means, milliseconds."""

    workflow: str
    node: str
    """Its path without iterations: `each/ocr`."""
    runs: int
    scheduled: int
    """Attempts."""
    completed: int
    kept: int
    """Taken over by forks."""
    failed: int
    """For good."""
    retried: int
    """Attempts that failed and were followed by another one."""
    skipped: int
    queue_ms: float
    load_ms: float
    compute_ms: float
    compute_ms_max: float
    models: tuple[ModelStatisticsView, ...]


class StatisticsView(Message):
    """What the nodes of workflows did."""

    sequence: int
    """The commit of the log up to which it is counted."""
    nodes: tuple[NodeStatisticsView, ...]


class ProjectionView(Message):
    """A projection that was built anew from the log beside the one that is kept."""

    name: Literal["runs", "nodes"]
    sequence: int
    """The commit of the log up to which both were."""
    same: bool
    """Whether they are equal to the bit."""
    kept: str
    """SHA-256 over the rows of the one that is kept."""
    rebuilt: str
    events: int
    seconds: float
    events_per_s: float


class ProjectionsView(Message):
    """Every projection."""

    projections: tuple[ProjectionView, ...]

"""What services send each other over the bus (MessagePack), and the headers they use."""

from operator import not_
from typing import Any, Literal, TypeVar

import ormsgpack
from pydantic import Field, ValidationError, model_validator

from schemas.errors import ClawdbotError, EngineFailed, InvalidArgument, by_code
from schemas.message import Message, UserInput
from schemas.plan import Adaptation, Binding
from schemas.values import Wire


M = TypeVar("M", bound=Message)


class Header:
    """Names of message headers."""

    RUN_ID = "Clawdbot-Run-Id"
    """The id a submitter chose for its run; permanent idempotency hangs on it."""
    FORK_OF = "Clawdbot-Fork-Of"
    """Makes a submission a fork of this run; its body is then a `Fork`."""
    STATUS = "Clawdbot-Run-Status"
    WORKFLOW = "Clawdbot-Workflow"
    VERSION = "Clawdbot-Version"
    PREVIOUS = "Clawdbot-Previous"
    DATA_KEY = "Clawdbot-Data-Key"
    WAKE = "Clawdbot-Wake"
    REASON = "Clawdbot-Reason"
    """Why a dead letter could not be handled."""
    SUBJECT = "Clawdbot-Subject"
    """Where a dead letter came from."""
    INPUT = "Clawdbot-Input"
    """The name of the run input that a raw body is; needed when the workflow has several."""
    TIMEOUT_S = "Clawdbot-Timeout-S"
    """How long `call` and `infer` take before they answer 504, seconds."""
    PRIORITY = "Clawdbot-Priority"
    """Of an `infer`: high, normal or low."""
    REQUEST_ID = "Clawdbot-Request-Id"
    """Names an `infer`, so that it can be withdrawn."""
    STREAM = "Clawdbot-Stream"
    """`true`: an `infer` is answered in parts, as far as its model gives parts."""
    PART = "Clawdbot-Part"
    """The number of a part, from 1; the last answer has none."""
    ACCEPT = "Accept"
    """How `infer` answers: application/json, or application/msgpack, where bytes stay bytes."""
    BUNDLE = "Clawdbot-Bundle"
    """Marks a message of several requests, or of several answers."""
    CORRELATION_ID = "ce-correlationid"
    CE_ID = "ce-id"
    CE_TYPE = "ce-type"
    CE_SOURCE = "ce-source"
    CE_SPECVERSION = "ce-specversion"
    TRACEPARENT = "traceparent"
    CONTENT_TYPE = "Content-Type"
    MSG_ID = "Nats-Msg-Id"
    EXPECTED = "Nats-Expected-Last-Subject-Sequence"


class Fault(Message):
    """An error as data: what the log and the API say about a failure."""

    code: str
    message: str
    field: str | None = None
    retryable: bool = False

    @classmethod
    def of(cls, error: ClawdbotError) -> "Fault":
        """Return the fault behind an exception of ours."""
        return cls(
            code=error.code, message=error.message, field=error.field, retryable=error.retryable
        )

    def exception(self) -> ClawdbotError:
        """Return the exception this fault stands for."""
        kind = by_code().get(self.code, EngineFailed)
        return kind(self.message, field=self.field)


class Timings(Message):
    """Where a task's time went, in milliseconds."""

    queue_ms: float = 0.0
    """From the decision to the worker's start, and there until the engine is free."""
    load_ms: float = 0.0
    """Waiting for the model to be in memory."""
    compute_ms: float = 0.0
    batch_size: int = Field(default=1, exclude_if=(1).__eq__)
    """Tasks and inferences that the engine computed in the same call."""
    batch_id: str = Field(default="", exclude_if=not_)
    """Of that call, the same for all of them: results may differ in their last bits with the
    company they were computed in. Empty where it was computed alone."""


class Following(Message):
    """A node that a worker may go on with once the one before it is done."""

    node_id: str
    model: str
    params: dict[str, Any]
    bindings: dict[str, Binding]
    """To what the task has `seen`, and to nodes done on the way."""
    optional: tuple[str, ...]
    timeout_s: float


class Task(Message):
    """One attempt of one node, for one worker."""

    tenant: str
    run_id: str
    node_id: str
    attempt: int
    model: str
    params: dict[str, Any] = Field(default_factory=dict)
    inputs: Wire
    scheduled_at: float
    deadline: float
    memo_s: float = 0.0
    """Take a result that is at most this old, seconds; 0 never."""
    correlation_id: str = ""
    adapt: dict[str, Adaptation] = Field(default_factory=dict, exclude_if=not_)
    """How inputs are made of the files and texts that come."""
    behind: bool = Field(default=False, exclude_if=not_)
    """Whether the log may not know of it yet."""
    then: tuple[Following, ...] = Field(default=(), exclude_if=not_)
    """What may be done next without being asked for."""
    seen: dict[str, Any] = Field(default_factory=dict, exclude_if=not_)
    """What `then` needs besides: outputs by node, inputs as `input` and `run`."""


class Control(UserInput):
    """What a client wants of a run that is under way."""

    action: Literal["cancel", "pause", "resume", "signal", "skip", "retry"]
    reason: str = Field(default="", max_length=1000)
    """Goes into the log: of `cancel`, `pause` and `skip`."""
    name: str = Field(default="", max_length=64)
    """Of the signal."""
    id: str = Field(default="", max_length=128)
    """Of the signal: the same id again is the same signal."""
    payload: Any = None
    """Of the signal."""
    node: str = Field(default="", max_length=512)
    """Path of the node to `skip` or `retry`."""
    outputs: dict[str, Any] | None = None
    """What a skipped node is taken to have given; without it, it gives nothing."""

    @model_validator(mode="after")
    def _is_whole(self) -> "Control":
        wanted = {"signal": "name", "skip": "node", "retry": "node"}.get(self.action)
        if wanted is not None and not getattr(self, wanted):
            raise ValueError(f"{self.action} needs a {wanted}")
        return self


class Abandoned(Message):
    """Attempts whose results nobody waits for any more."""

    attempts: tuple[tuple[str, int], ...]
    """Path and number of each."""


class Inference(Message):
    """The answer to one unlogged inference, as JSON or MessagePack."""

    outputs: dict[str, Any]
    """By name; bytes and tensors as in the HTTP API, in MessagePack without base64."""
    model: str
    """The model that really ran."""


class TaskResult(Message):
    """How a task went: outputs, or an error."""

    tenant: str
    run_id: str
    node_id: str
    attempt: int
    outputs: Wire | None = None
    error: Fault | None = None
    model: str
    worker: str
    timings: Timings = Timings()
    behind: bool = Field(default=False, exclude_if=not_)
    """Of the task."""
    then: tuple["TaskResult", ...] = Field(default=(), exclude_if=not_)
    """How the nodes went that the worker went on with, in order."""
    memo_of: str = ""
    """Run and node whose result this is, where it was not computed for this one."""


def pack(message: Message) -> bytes:
    """Return a message as MessagePack."""
    return ormsgpack.packb(message.model_dump())


def unpack_document(body: bytes) -> Any:
    """Return what MessagePack bytes hold.

    Raises:
        InvalidArgument: Not MessagePack.
    """
    try:
        return ormsgpack.unpackb(body)
    except ormsgpack.MsgpackDecodeError as error:
        raise InvalidArgument("the body is not MessagePack") from error


def unpack(kind: type[M], body: bytes) -> M:
    """Read a message.

    Raises:
        InvalidArgument: Not MessagePack, or not this kind of message.
    """
    try:
        return kind.model_validate(unpack_document(body))
    except ValidationError as error:
        raise InvalidArgument(f"not a {kind.__name__}") from error

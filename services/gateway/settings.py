"""What the gateway reads from the environment besides the shared settings."""

from pathlib import Path

from pydantic import Field

from events.blobs import BLOB_BYTES_MAX
from events.streams import MIB
from services.lanes import AHEAD, HOLD_S
from services.settings import Settings


class GatewaySettings(Settings):
    """Settings of the gateway."""

    http_host: str = "127.0.0.1"
    """Address to listen on."""
    http_port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and says so in the log line `listening`."""
    grpc_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of the Open Inference Protocol over gRPC, on the same address; unset serves none, 0
    takes a free one and says so in the log line `grpc_listening`. Needs the extra `grpc`."""
    body_bytes_max: int = Field(default=BLOB_BYTES_MAX, ge=1024, le=BLOB_BYTES_MAX)
    """Largest request body; more is answered 413."""
    head_s_max: float = Field(default=10.0, gt=0, le=600)
    """How long a client may take to send the head of a request; slower ones are cut off."""
    body_s_max: float = Field(default=120.0, gt=0, le=3600)
    """How long a client may take to send a body; slower ones are answered 408."""
    wait_s_max: float = Field(default=300.0, gt=0, le=3600)
    """Longest `?wait=` and `Clawdbot-Timeout-S`."""
    call_wait_s: float = Field(default=30.0, gt=0, le=3600)
    """How long `call` waits when the caller does not say."""
    waits_max: int = Field(default=10_000, ge=1)
    """Runs that are waited for or streamed at the same time; more are answered 429."""
    begin_s: float = Field(default=1.0, gt=0, le=10)
    """How long an answer waits for the run to begin when the client waits for nothing."""
    heartbeat_s: float = Field(default=15.0, gt=0, le=60)
    """Silence after which an event stream says that it is alive."""
    recheck_s: float = Field(default=3.0, gt=0, le=60)
    """Silence after which a waiter reads the log itself."""
    request_s_max: float = Field(default=2.0, gt=0, le=30)
    """How long the bus may take for one request before the answer is 503."""
    bundle_bytes_max: int = Field(default=BLOB_BYTES_MAX, ge=1024, le=512 * 1024 * 1024)
    """Commits and blobs of one exported run, and bytes that an imported one unpacks to."""
    project_s_max: float = Field(default=300.0, gt=0, le=3600)
    """How long statistics may take to read what is new in the log, and a rebuild all of it."""
    blob_s_max: float = Field(default=30.0, gt=0, le=600)
    """How long the bus may take for a blob."""
    events_reserve: float = Field(default=0.02, ge=0, lt=1)
    """Part of the event log that is kept for runs under way; past it new ones are answered 507."""
    repository_dir: Path | None = None
    """A folder of models that are pushed when the gateway starts, those that are new."""
    model_bytes_max: int = Field(default=1024 * MIB, ge=1024)
    """Largest file of a model that is pushed."""
    push_bytes_max: int = Field(default=4096 * MIB, ge=1024)
    """Most bytes of all files of a version of a model."""
    push_s_max: float = Field(default=300.0, gt=0, le=3600)
    """How long a pushed version may take to be read back and looked through."""
    load_s_max: float = Field(default=60.0, gt=0, le=600)
    """How long `load` waits until a worker has the model."""
    balance: bool = True
    """Whether an inference goes to the worker that lately answers soonest; else NATS chooses one at
    random."""
    infer_ahead_max: int = Field(default=AHEAD, ge=1, le=64)
    """Messages with inferences that one worker may have unanswered; those that come behind them
    wait to share a message."""
    infer_hold_ms: float = Field(default=HOLD_S * 1000, ge=0, le=1000)
    """How long they wait at most, and a millisecond at most where answers take longer than 15;
    0: until the end of the turn that they came in."""
    shared_memory: bool = False
    """Whether clients on this machine may hand tensors over in system shared memory. Whoever
    reaches the gateway then reads and writes the shared memory objects that its user may."""
    shared_memory_prefix: str = Field(default="", max_length=128)
    """What the keys of these objects begin with; others are refused."""
    shared_memory_bytes_max: int = Field(default=BLOB_BYTES_MAX, ge=4096)
    """Largest region of shared memory."""
    sequence_idle_s: float = Field(default=60.0, gt=0, le=86400)
    """How long a sequence of a stateful model may be idle before it is forgotten."""
    sequences_max: int = Field(default=10_000, ge=1)
    """Sequences whose state a gateway keeps; more are answered 429."""
    sequence_bytes_max: int = Field(default=4 * BLOB_BYTES_MAX, ge=4096)
    """Bytes of all their states."""

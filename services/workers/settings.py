"""What a worker reads from the environment besides the shared settings."""

from pydantic import Field

from schemas.catalogue import Modality
from schemas.ids import TOKEN
from schemas.plan import DEFAULT_POOL
from services.settings import Settings
from services.workers.engines.calls import SILENCE_S
from services.workers.engines.model_files import MODEL_BYTES_MAX
from services.workers.models import LOADS_MAX, ROWS_MAX


MIB = 1024 * 1024


class WorkerSettings(Settings):
    """Settings of a worker."""

    modality: Modality = "text"
    """Which models this process runs."""
    pool: str = Field(default=DEFAULT_POOL, pattern=TOKEN)
    """The pool whose tasks it takes."""
    compute_threads: int = Field(default=2, ge=1, le=64)
    """Inferences that run at the same time in threads."""
    batch_rows_max: int = Field(default=ROWS_MAX, ge=1, le=65536)
    """Most rows that an engine computes in one call; a model's `max_batch_size` may be less."""
    model_memory_bytes_max: int | None = Field(default=None, ge=MIB)
    """Memory that the loaded models may take together; unset for no limit. What does not fit is
    unloaded: the model whose loss costs least."""
    model_device_memory_bytes_max: int | None = Field(default=None, ge=MIB)
    """The same of the memory of GPUs."""
    response_cache_bytes_max: int = Field(default=0, ge=0)
    """Answers that are kept for models with `cache_responses`; 0 keeps none."""
    calibration_ms: float = Field(default=250.0, ge=0, le=60_000)
    """To measure the latency of a model by rows when it is first loaded; 0: it is not measured."""
    loads_max: int = Field(default=LOADS_MAX, ge=1, le=64)
    """Models that are loaded at the same time."""
    infer_queue_max: int = Field(default=64, ge=1)
    """Unlogged inferences that may wait; more are answered 503."""
    http_allow: str = ""
    """What `http` nodes may call besides public addresses: names and CIDR ranges, with commas."""
    http_bytes_max: int = Field(default=8 * MIB, ge=1024, le=64 * MIB)
    """Most bytes of an answer to an `http` node."""
    model_bytes_max: int = Field(default=MODEL_BYTES_MAX, ge=1024)
    """Largest model file that the engines `onnx` and `torch` load."""
    model_cache_bytes_max: int = Field(default=16 * 1024 * MIB, ge=MIB)
    """Most bytes of files of the model repository that are kept below the data directory."""
    onnx_provider_options: str = ""
    """JSON, options by name by execution provider, over those of catalogue entries."""
    openai_allow: str = ""
    """Servers of the `openai` engine besides public ones: names and CIDR ranges, with commas."""
    openai_keys: str = ""
    """Which environment variable holds the key of which host: `HOST=VARIABLE`, with commas."""
    openai_silence_s: float = Field(default=SILENCE_S, gt=0, le=3600)
    """Longest wait for the next bytes of such a server, in a stream between two of its parts."""
    python_allow: str = ""
    """Modules that the `python` engine may call, with commas; each with what is inside it."""
    chain_ms: float = Field(default=20.0, ge=0, le=1000)
    """How long a worker goes on after a task with the nodes that come next; 0 never."""
    announce_interval_s: float = Field(default=10.0, gt=0, le=15)
    """How often the worker's card is renewed."""

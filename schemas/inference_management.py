"""The JSON bodies of the Open Inference Protocol's extensions that manage: statistics, settings.

Source: Triton's extensions statistics, trace, logging and shared memory.
"""

from typing import Any

from pydantic import Field

from schemas.message import Message, UserInput


class StatisticDuration(Message):
    """How often, and how long altogether."""

    count: int = 0
    ns: int = 0


class InferStatistics(Message):
    """Where the time of requests went."""

    success: StatisticDuration = StatisticDuration()
    """From the arrival at a worker to its answer."""
    fail: StatisticDuration = StatisticDuration()
    """Errors, late ones and those that were called off among them."""
    queue: StatisticDuration = StatisticDuration()
    """Waiting for the engine, and for the model to be in memory."""
    compute_input: StatisticDuration = StatisticDuration()
    compute_infer: StatisticDuration = StatisticDuration()
    compute_output: StatisticDuration = StatisticDuration()
    cache_hit: StatisticDuration = StatisticDuration()
    cache_miss: StatisticDuration = StatisticDuration()


class BatchStatistics(Message):
    """The calls of an engine with so many rows."""

    batch_size: int
    compute_input: StatisticDuration = StatisticDuration()
    compute_infer: StatisticDuration = StatisticDuration()
    compute_output: StatisticDuration = StatisticDuration()


class ResponseStatistics(Message):
    """The responses with the same index: the first of each request, the second, and so on."""

    compute_infer: StatisticDuration = StatisticDuration()
    """From the response before, or the beginning, until it was there."""
    compute_output: StatisticDuration = StatisticDuration()
    """Packing and sending it."""
    success: StatisticDuration = StatisticDuration()
    """Both together."""
    fail: StatisticDuration = StatisticDuration()
    """Errors in place of a response."""
    empty_response: StatisticDuration = StatisticDuration()
    """Ends that brought nothing new."""
    cancel: StatisticDuration = StatisticDuration()
    """Requests that nobody waited for any more, before this response; takes no time."""


class MemoryUsage(Message):
    """What a model takes of a kind of memory."""

    type: str
    """`CPU`, or `GPU`."""
    id: int = 0
    byte_size: int


class ModelStatistics(Message):
    """What workers computed with a model since they started, also those that ended since."""

    name: str
    version: str
    last_inference: int = 0
    """Milliseconds since the epoch; 0 never."""
    inference_count: int = 0
    """Rows."""
    execution_count: int = 0
    """Calls of the engine; fewer than rows where requests were computed together."""
    inference_stats: InferStatistics = InferStatistics()
    response_stats: dict[str, ResponseStatistics] = Field(default_factory=dict)
    """By the index of a response, of models that may answer in parts."""
    batch_stats: tuple[BatchStatistics, ...] = ()
    memory_usage: tuple[MemoryUsage, ...] = ()
    """Of all workers that have it in memory now, as they measured it."""


class Statistics(Message):
    """The statistics of one model, or of all."""

    model_stats: tuple[ModelStatistics, ...]


class LogSettings(UserInput):
    """What this gateway writes into its log."""

    log_file: str | None = None
    """Only the empty one: the log goes to standard output."""
    log_info: bool | None = None
    log_warning: bool | None = None
    log_error: bool | None = None
    log_verbose_level: int | None = None
    """Only 0."""
    log_format: str | None = None
    """Only `default`: CLAWDBOT_LOG_FORMAT says it at the start."""


class TraceSettings(UserInput):
    """Which inferences this gateway writes a line about, with the times of their way."""

    trace_level: tuple[str, ...] | None = Field(default=None, strict=False)
    """`TIMESTAMPS`, or `OFF`."""
    trace_rate: str | None = None
    """Every how many-th inference."""
    trace_count: str | None = None
    """How many more; -1 without end."""
    trace_file: str | None = None
    """Only the empty one: lines go into the log."""
    log_frequency: str | None = None
    """Only 0: each line is written at once."""
    trace_mode: str | None = None
    """Only `triton`."""


class RegionRequest(UserInput):
    """A part of a shared memory object, to be known by a name."""

    key: str = Field(max_length=255)
    """The object's name, as in `shm_open`."""
    offset: int = Field(default=0, ge=0)
    byte_size: int = Field(ge=1)


class Region(Message):
    """A region that is registered."""

    name: str
    key: str
    offset: int
    byte_size: int


ModelConfig = dict[str, Any]
"""A model's configuration in the words of Triton's ModelConfig."""

"""Logs, metrics and trace context: configured once per process."""

import asyncio
import atexit
import logging
import secrets
import sys
from datetime import UTC, datetime
from typing import Any, BinaryIO

import orjson
import structlog
from prometheus_client import Counter, Gauge, Histogram, start_http_server

from schemas.errors import FailedPrecondition


MESSAGES = Counter("clawdbot_messages_total", "Messages handled.", ["service", "kind", "outcome"])
HANDLE_SECONDS = Histogram(
    "clawdbot_handle_seconds",
    "Time from delivery to ack.",
    ["service", "kind"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
IN_FLIGHT = Gauge("clawdbot_in_flight", "Messages being handled.", ["service", "kind"])
BUS_CONNECTED = Gauge("clawdbot_bus_connected", "1 while the bus answers.", ["service"])
STOPPED = Counter(
    "clawdbot_tasks_stopped_total", "Tasks that nobody waited for any more.", ["reason"]
)
BATCH_SIZE = Histogram(
    "clawdbot_batch_size",
    "Requests that an engine computed in one call.",
    ["model"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
CACHE = Counter(
    "clawdbot_model_cache_total",
    "Models looked for in a worker's memory, and what came of it.",
    ["outcome"],
)
RESPONSES = Counter(
    "clawdbot_response_cache_total", "Answers looked for before computing.", ["outcome"]
)
REPLACED = Counter(
    "clawdbot_model_processes_lost_total",
    "Processes of isolated models that were lost.",
    ["reason"],
)
MODEL_BYTES = Gauge(
    "clawdbot_model_bytes", "Memory that a loaded model takes, measured.", ["model", "memory"]
)
LOAD_SECONDS = Histogram(
    "clawdbot_model_load_seconds",
    "Time to load a model and warm it.",
    ["model"],
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
MEMOS = Counter("clawdbot_memos_total", "Results looked for before computing.", ["outcome"])
HELD = Gauge(
    "clawdbot_tasks_held", "Decided tasks that wait for room in their tenant's share of a queue."
)
OVERTOOK = Counter(
    "clawdbot_submissions_let_past_total",
    "Submissions taken up before others that had come earlier, for fair shares.",
)

HISTORY_REGRESSED = Gauge(
    "clawdbot_history_regressed",
    "1 while the event log is refused (scope `log`); runs known to be damaged (scope `runs`).",
    ["scope"],
)
SWEPT = Counter(
    "clawdbot_swept_total", "What retention did, and what it could not do.", ["kind", "outcome"]
)
SWEEP_SECONDS = Histogram(
    "clawdbot_sweep_seconds",
    "Time of one sweep.",
    ["kind"],
    buckets=(0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800),
)

SILENCED: set[str] = set()
"""Levels that are not written now."""
get_logger = structlog.get_logger
LINES_WAITING = 256
"""Lines that wait for the end of a turn; with so many they leave before it."""


class MessageMeter:
    """The metrics of one kind of message: each is looked up by its labels once, not per message."""

    def __init__(self, service: str, kind: str) -> None:
        self.in_flight = IN_FLIGHT.labels(service, kind)
        self._seconds = HANDLE_SECONDS.labels(service, kind)
        self._labels = service, kind
        self._outcomes: dict[str, Counter] = {}

    def handled(self, outcome: str, seconds: float) -> None:
        """Count a message that was handled."""
        counter = self._outcomes.get(outcome)
        if counter is None:
            counter = self._outcomes[outcome] = MESSAGES.labels(*self._labels, outcome)
        counter.inc()
        self._seconds.observe(seconds)


def configure(service: str, log_format: str = "auto") -> None:
    """Set up structlog: JSON lines on stdout, or a console renderer on a terminal."""
    console = log_format == "console" or (log_format == "auto" and sys.stdout.isatty())
    processors: list[Any] = [_Facts(service)]
    if console:
        processors.append(structlog.dev.ConsoleRenderer())
        factory: Any = structlog.PrintLoggerFactory()
    else:
        processors += [structlog.processors.format_exc_info, _dump]
        atexit.register(LINES.leave)
        factory = lambda *_: LINES  # noqa: E731
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )


def serve_metrics(host: str, port: int | None) -> None:
    """Serve `/metrics` from a thread; nothing when `port` is None.

    Raises:
        FailedPrecondition: Somebody else has the port.
    """
    if port is None:
        return
    try:
        server, _ = start_http_server(port, host)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port",
            field="CLAWDBOT_METRICS_PORT",
        ) from error
    get_logger().info("metrics_listening", host=host, port=server.server_port)


def child_traceparent(parent: str | None) -> str:
    """Return a `traceparent` one step below `parent`, or of a new trace.

    Source: W3C Trace Context.
    """
    parts = (parent or "").split("-")
    trace = parts[1] if len(parts) == 4 and len(parts[1]) == 32 else secrets.token_hex(16)  # noqa: PLR2004
    return f"00-{trace}-{secrets.token_hex(8)}-01"


class _Facts:
    """Says in each line who writes it, how urgent it is and when; drops levels that are silenced.

    One step, where structlog has one for each of these: every request writes a line.
    """

    def __init__(self, service: str) -> None:
        self._service = service

    def __call__(self, logger: Any, method: str, event: Any) -> Any:
        structlog.processors.add_log_level(logger, method, event)
        if event["level"] in SILENCED:
            raise structlog.DropEvent
        event["service"] = self._service
        event["timestamp"] = datetime.now(UTC)  # noqa: TID251 - when the line is really written
        return event


class Lines:
    """Writes lines; those of one turn of the event loop leave in one system call.

    Only what is told in passing waits for the end of the turn. A warning and worse leaves at once,
    with what waits before it; so does what a thread says that runs no loop.

    Args:
        file: Where to; standard output without.
    """

    def __init__(self, file: BinaryIO | None = None) -> None:
        self._file = file
        self._waiting: list[bytes] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        """In which the end of the turn is waited for."""

    def info(self, line: bytes) -> None:
        """Write a line, at the end of this turn at the latest."""
        self._wait(line)

    def warning(self, line: bytes) -> None:
        """Write a line now, behind those that wait."""
        if self._wait(line):
            self.leave()

    debug, error, critical = info, warning, warning

    def leave(self) -> None:
        """Write what waits."""
        self._loop = None
        if self._waiting:
            lines, self._waiting = self._waiting, []
            self._write(lines)

    def _wait(self, line: bytes) -> bool:
        """Keep a line until the end of this turn; where no loop runs write it, and return False."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write([line])
            return False
        self._waiting.append(line)
        if len(self._waiting) >= LINES_WAITING:
            self.leave()
        elif self._loop is not loop:
            self._loop = loop
            loop.call_soon(self.leave)
        return True

    def _write(self, lines: list[bytes]) -> None:
        file = self._file or sys.stdout.buffer
        file.write(b"".join([b"%b\n" % line for line in lines]))
        file.flush()


LINES = Lines()
"""Of this process."""


def _dump(_: Any, __: str, event: Any) -> bytes:
    return orjson.dumps(event, default=str, option=orjson.OPT_UTC_Z)

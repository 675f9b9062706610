"""What a model did since the worker started."""

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Calls:
    """Calls of an engine with the same number of rows."""

    count: int = 0
    compute_s: float = 0.0


def _calls() -> "defaultdict[int, Calls]":
    return defaultdict(Calls)


@dataclass
class Counters:
    """Figures of one model, over all its loads; durations are sums in seconds.

    Source: the statistics extension of the Open Inference Protocol, whose names these are; there
    they are nanoseconds.
    """

    success_count: int = 0
    success_s: float = 0.0
    """Loading, waiting and computing, of requests that were answered."""
    fail_count: int = 0
    fail_s: float = 0.0
    queue_s: float = 0.0
    """Waiting for a free engine, of requests that were answered."""
    compute_s: float = 0.0
    """Computing, each request of a call counted."""
    inference_count: int = 0
    """Rows that were computed."""
    execution_count: int = 0
    """Calls of the engine."""
    batches: "defaultdict[int, Calls]" = field(default_factory=_calls)
    """Calls by how many rows they had."""
    cache_hit_count: int = 0
    """Requests that were answered with what was computed before."""
    load_count: int = 0
    load_s: float = 0.0
    """Loading and warming."""
    eviction_count: int = 0

    def computed(self, rows: int, took_s: float) -> None:
        """Take note of a call of the engine."""
        self.inference_count += rows
        self.execution_count += 1
        calls = self.batches[rows]
        calls.count += 1
        calls.compute_s += took_s

    def latency_ms(self) -> dict[str, float]:
        """Return the mean time of a call by its number of rows, milliseconds."""
        found = sorted(self.batches.copy().items())
        return {str(rows): round(calls.compute_s / calls.count * 1e3, 3) for rows, calls in found}

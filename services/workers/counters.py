"""What a model did since the worker started, over all its loads."""

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
    """Figures of one model; those of requests are in `services.workers.tally`."""

    batches: "defaultdict[int, Calls]" = field(default_factory=_calls)
    """Calls of the engine that worked, by how many rows they had."""
    calibrated: "defaultdict[int, Calls]" = field(default_factory=_calls)
    """Calls that were made to measure the model when it was first loaded; they are in no other
    figure."""
    cache_hit_count: int = 0
    """Requests that were answered with what was computed before."""
    load_count: int = 0
    load_s: float = 0.0
    """Loading and warming."""
    eviction_count: int = 0

    @property
    def execution_count(self) -> int:
        """Calls of the engine."""
        return sum(calls.count for calls in self.batches.copy().values())

    def computed(self, rows: int, took_s: float) -> None:
        """Take note of a call of the engine; a model has one at a time."""
        calls = self.batches[rows]
        calls.count += 1
        calls.compute_s += took_s

    def forget(self) -> None:
        """Forget what was measured: the model is another one."""
        self.calibrated = _calls()

    def calls(self) -> dict[int, tuple[int, int]]:
        """Return how many calls there were, and nanoseconds, by rows."""
        found = self.batches.copy().items()
        return {rows: (calls.count, round(calls.compute_s * 1e9)) for rows, calls in found}

    def latency_ms(self) -> dict[str, float]:
        """Return the mean time of a call by its number of rows, milliseconds.

        Of sizes that nobody has asked for yet it is what was measured when the model was loaded.
        """
        found = sorted({**self.calibrated.copy(), **self.batches.copy()}.items())
        return {str(rows): round(calls.compute_s / calls.count * 1e3, 3) for rows, calls in found}

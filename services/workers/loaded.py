"""A model in a worker's memory, and what losing it would cost."""

import math
from dataclasses import dataclass, field

from schemas.catalogue import ModelSpec
from services.workers.batches import Line
from services.workers.counters import Counters
from services.workers.engine import AnyEngine
from services.workers.memory import Size


HALF_LIFE_S = 120.0
"""After this long without use a model counts as used half as much."""
FADE_S = 1.0
"""It fades in steps of at least so much: cheap for those who are used all the time."""
PACE_WEIGHT = 0.3
"""Of the newest inference in a model's pace."""


@dataclass(eq=False)
class Loaded:
    """A model in memory."""

    name: str
    spec: ModelSpec
    engine: AnyEngine
    counters: Counters = field(default_factory=Counters)
    line: Line | None = None
    """Of those who wait for an engine that computes in threads."""
    size_bytes: int = 0
    """What loading and warming it took, measured."""
    device_bytes: int = 0
    """Of the memory of GPUs, likewise."""
    load_s: float = 0.0
    warm_s: float = 0.0
    calibrate_s: float = 0.0
    """What measuring its latency took."""
    pace_s: float | None = None
    """How long an inference takes lately, waiting included."""
    leases: int = 0
    """Who uses it at this moment."""
    use: float = 0.0
    """How often it was used, fading; as of `used_at`."""
    used_at: float = 0.0
    cost_s: float = 0.0
    """What loading and warming it again would take: the quickest time so far."""
    is_closing: bool = False

    @property
    def size(self) -> Size:
        """What it takes of both memories."""
        return Size(self.size_bytes, self.device_bytes)

    @property
    def is_idle(self) -> bool:
        """Whether nobody uses it, not even a thread that nobody waits for any more."""
        return not self.leases and (self.line is None or not self.line.busy)

    def take(self, now: float) -> None:
        """Lease it once more."""
        self.leases += 1
        if now - self.used_at > FADE_S:
            self.use *= math.exp2((self.used_at - now) / HALF_LIFE_S)
            self.used_at = now
        self.use += 1.0

    def note(self, took_s: float) -> None:
        """Take note of one more inference."""
        past_s = took_s if self.pace_s is None else self.pace_s
        self.pace_s = past_s + PACE_WEIGHT * (took_s - past_s)

    def worth(self, now: float) -> float:
        """Return what losing it would cost, seconds a byte: time to load it again times use."""
        use = self.use * math.exp2((self.used_at - now) / HALF_LIFE_S)
        return self.cost_s * use / max(1, self.size_bytes + self.device_bytes)

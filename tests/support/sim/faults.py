"""What goes wrong, and where: named points at the boundary between a process and the server.

All that a process does to the world is what it sends, so a crash anywhere in its code is the same
as a crash at one of these points: before something arrived (`commit.before`), after it took effect
but before the process could know (`commit.after`), or a moment after it knew (`commit.soon`).
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from typing_extensions import override


if TYPE_CHECKING:
    from tests.support.sim.consumers import Consumer
    from tests.support.sim.loop import Process
    from tests.support.sim.network import Link

Phase = Literal["before", "after", "soon"]
PHASES: tuple[Phase, ...] = ("before", "after", "soon")
KINDS = (
    "commit",
    "task",
    "result",
    "topic",
    "snapshot",
    "bucket",
    "ack",
    "nak",
    "wip",
    "pull",
    "api",
)
"""What is sent: a commit, a task, a result, an emitted message, a snapshot, a value of a bucket, an
ack, a nak, a sign of life, a request for messages, any other request."""
FAILPOINTS = tuple(f"{kind}.{phase}" for kind in KINDS for phase in PHASES)
VERDICTS = {b"+ACK": "ack", b"-NAK": "nak", b"+WPI": "wip", b"+TER": "ack"}


def kind_of(subject: str, body: bytes) -> str:
    """Return what a published message is."""
    if subject.startswith("$JS.ACK."):
        return VERDICTS.get(body[:4], "ack")
    if subject.startswith("$JS.API.CONSUMER.MSG.NEXT."):
        return "pull"
    if subject.startswith("$JS.API."):
        return "api"
    if subject.startswith("$KV."):
        return "bucket"
    tokens = subject.split(".")
    kind = tokens[3] if len(tokens) > 3 else "other"
    return "commit" if kind == "event" else kind


class Faults:
    """No faults."""

    def before(self, link: Link, subject: str, body: bytes) -> None:
        """Something arrived and has not taken effect yet."""

    def after(self, link: Link, subject: str, body: bytes) -> None:
        """Something took effect; its answer has not left yet."""

    def deliveries(self, link: Link | None, consumer: Consumer) -> int:
        """Return how many times a delivery is made."""
        return 1


class Victims(Protocol):
    """What can be done to the world."""

    def crash(self, process: Process) -> None:
        """Kill a process; it is started again after a while."""

    def pause(self, process: Process, seconds: float) -> None:
        """Stop a process for a while."""

    def later(self, seconds: float, call: object, *args: object) -> None:
        """Do something later."""

    def now(self) -> float:
        """Return the time, seconds since the start."""


@dataclass
class Dose:
    """How often one kind of fault happens."""

    chances: dict[str, float]
    """At each point."""
    left: int
    """How often at most."""


DOSES: dict[str, tuple[float, int]] = {
    "crash.before": (0.05, 3),
    "crash.after": (0.05, 3),
    "crash.soon": (0.05, 3),
    "cut.before": (0.05, 4),
    "cut.after": (0.05, 4),
    "stall": (0.02, 4),
    "pause": (0.02, 3),
    "redeliver": (0.2, 12),
    "duplicate": (0.2, 12),
}
"""Most likely chance at each point, and most occurrences, of each kind of fault."""
FREQUENT = {"api", "pull", "wip"}
RARE_TIMES = 5
"""What is sent rarely fails more often."""


@dataclass
class SeededFaults(Faults):
    """Draws faults from a seed until everything heals.

    Args:
        chance: Where they are drawn from.
        victims: Whom they happen to.
        heals_at: When they end, seconds since the start.
        failpoint: A point at which a process is killed for certain, the `visit`th time it comes by.
    """

    chance: random.Random
    victims: Victims
    heals_at: float
    failpoint: str = ""
    visit: int = 1
    active: bool = False
    """Whether anything goes wrong yet: not while the scenario is set up."""
    happened: Counter[str] = field(default_factory=Counter)
    """What went wrong, by kind and point."""
    _doses: dict[str, Dose] = field(default_factory=dict)
    _visits: int = 0

    def __post_init__(self) -> None:
        """Draw what this seed is about."""
        for name in self.chance.sample(sorted(DOSES), self.chance.randint(1, 4)):
            most, count = DOSES[name]
            kinds = frozenset(self.chance.sample(KINDS, self.chance.randint(1, len(KINDS))))
            chances = {
                kind: most * self.chance.random() * (1 if kind in FREQUENT else RARE_TIMES)
                for kind in sorted(kinds)
            }
            self._doses[name] = Dose({**chances, "": most * self.chance.random()}, count)

    @override
    def before(self, link: Link, subject: str, body: bytes) -> None:
        kind = kind_of(subject, body)
        if self._crashes(link, kind, "before"):
            assert link.process is not None
            link.cut()
            self.victims.crash(link.process)
        elif self._draw("cut.before", kind):
            link.cut()

    @override
    def after(self, link: Link, subject: str, body: bytes) -> None:
        kind = kind_of(subject, body)
        process = link.process
        if self._crashes(link, kind, "after") and process is not None:
            self.victims.crash(process)
        elif self._crashes(link, kind, "soon") and process is not None:
            self.victims.later(self.chance.random() * 0.004, self.victims.crash, process)
        elif self._draw("cut.after", kind):
            link.cut()
        elif self._draw("stall", kind):
            link.slow_until = self.victims.now() + self.chance.uniform(0.2, 8.0)
        elif process is not None and process.mortal and self._draw("pause", kind):
            self.victims.pause(process, self.chance.uniform(0.2, 4.0))

    @override
    def deliveries(self, link: Link | None, consumer: Consumer) -> int:
        if self._draw("redeliver", ""):
            seq = consumer.delivered_seq
            self.victims.later(self.chance.random() * 0.3, consumer.hasten, seq)
        return 2 if self._draw("duplicate", "") else 1

    def _crashes(self, link: Link, kind: str, phase: Phase) -> bool:
        process = link.process
        if process is None or not process.mortal or not process.alive:
            return False
        if self.failpoint == f"{kind}.{phase}":
            self._visits += 1
            if self._visits == self.visit:
                self.happened[f"failpoint {self.failpoint}"] += 1
                return True
        return self._draw(f"crash.{phase}", kind)

    def _draw(self, name: str, kind: str) -> bool:
        dose = self._doses.get(name)
        if not self.active or dose is None or dose.left <= 0 or self.victims.now() >= self.heals_at:
            return False
        if kind not in dose.chances or self.chance.random() >= dose.chances[kind]:
            return False
        dose.left -= 1
        self.happened[f"{name} {kind}".strip()] += 1
        return True

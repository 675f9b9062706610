"""How the several ways to do a node are doing: what this orchestrator saw of their answers.

Moving averages of latency, queueing and errors, and a circuit breaker for each way. Every
orchestrator has its own view; the decision that uses it records the figures it saw.
"""

from dataclasses import dataclass, field
from typing import Literal

from events.catalog import Figures, NodeCompleted, NodeFailed, NodeScheduled
from events.state import NodeState
from services.orchestrator.runs import Decision


WEIGHT = 0.2
"""Of the newest answer in the moving averages."""
FAILURES_OPEN = 5
"""Failures in a row that open a circuit."""
COOL_DOWN_S = 10.0
COOL_DOWN_MAX_S = 300.0
"""A circuit stays open this long, twice as long after each failed probe."""
PROBE_S = 30.0
"""A probe that has not answered after this long makes room for another."""
ROUTES_MAX = 4096
INNOCENT = {"INVALID_ARGUMENT", "NOT_FOUND", "CANCELLED", "FAILED_PRECONDITION"}
"""Errors that say something of the input and nothing of the way."""


@dataclass
class _Way:
    """One way to do nodes, as seen from here."""

    name: str
    answers: int = 0
    latency_ms: float = 0.0
    queue_ms: float = 0.0
    error_rate: float = 0.0
    failures: int = 0
    open_until: float = 0.0
    cool_down_s: float = COOL_DOWN_S
    probe_at: float = -PROBE_S

    def answered(self, latency_ms: float, queue_ms: float) -> None:
        """Take a good answer: the circuit closes."""
        self._count(error=False)
        if self.answers == 1:
            self.latency_ms, self.queue_ms = latency_ms, queue_ms
        self.latency_ms += WEIGHT * (latency_ms - self.latency_ms)
        self.queue_ms += WEIGHT * (queue_ms - self.queue_ms)
        self.failures, self.open_until, self.cool_down_s = 0, 0.0, COOL_DOWN_S

    def failed(self, now: float) -> None:
        """Take a failure: too many in a row, or a failed probe, open the circuit."""
        self._count(error=True)
        self.failures += 1
        if self.open_until:
            self.cool_down_s = min(2 * self.cool_down_s, COOL_DOWN_MAX_S)
        if self.open_until or self.failures >= FAILURES_OPEN:
            self.open_until = now + self.cool_down_s
            self.probe_at = now - PROBE_S

    def figures(self, now: float) -> Figures:
        """Return what a decision may know."""
        state: Literal["closed", "open", "half_open"] = "closed"
        if self.open_until:
            probing = now - self.probe_at < PROBE_S
            state = "open" if now < self.open_until or probing else "half_open"
        return Figures(
            route=self.name,
            state=state,
            answers=self.answers,
            latency_ms=round(self.latency_ms, 3),
            queue_ms=round(self.queue_ms, 3),
            error_rate=round(self.error_rate, 4),
        )

    def _count(self, *, error: bool) -> None:
        self.answers += 1
        self.error_rate += WEIGHT * (error - self.error_rate)


@dataclass
class Routing:
    """Watches decisions; tells how each way is doing."""

    _ways: dict[str, _Way] = field(default_factory=dict)

    def health(self, now: float) -> dict[str, Figures]:
        """Return how each way is doing, by `pool/model`."""
        return {name: way.figures(now) for name, way in self._ways.items()}

    def observe(self, decision: Decision, now: float) -> None:
        """Learn from what a decision recorded about nodes that have several ways."""
        for event in decision.events:
            if not isinstance(event, NodeScheduled | NodeCompleted | NodeFailed):
                continue
            state = decision.state
            node = None if state is None else state.node(event.node_id)
            if state is None or node is None or not node.tried:
                continue
            name = state.planned(event.node_id).routes[node.route].name
            self._learn(name, event, node, now)

    def _learn(
        self,
        name: str,
        event: NodeScheduled | NodeCompleted | NodeFailed,
        node: NodeState,
        now: float,
    ) -> None:
        if name not in self._ways and len(self._ways) >= ROUTES_MAX:
            self._ways.pop(next(iter(self._ways)))
        way = self._ways.setdefault(name, _Way(name))
        match event:
            case NodeCompleted():
                latency_ms = max(0.0, event.at - node.scheduled_at) * 1000
                way.answered(latency_ms, event.timings.queue_ms)
            case NodeFailed() if event.error.code not in INNOCENT:
                way.failed(now)
            case NodeScheduled() if event.route is not None:
                chosen = event.route.figures[event.route.index]
                if chosen.state == "half_open":
                    way.probe_at = now
            case _:
                pass  # nothing to learn

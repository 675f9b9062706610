"""A run's log as the API shows it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from events.catalog import SHORT_NAMES, Event, NodeCompleted, NodeFailed, NodeScheduled
from events.evolve import fold
from events.state import RunState
from events.store import History
from events.subjects import RunKey
from schemas.api import EventView, NodeView, RunView
from schemas.errors import NotFound
from schemas.plan import PlanNode
from schemas.values import Wire, to_json
from services.gateway.waiters import Landed


TERMINAL = {"RunCompleted", "RunFailed", "RunRejected", "RunCancelled"}


@dataclass(frozen=True)
class Recorded:
    """One event with its place."""

    ordinal: int
    sequence: int
    commit: int
    event: Event

    @property
    def type(self) -> str:
        """Registered short name."""
        return SHORT_NAMES[type(self.event)]

    @property
    def terminal(self) -> bool:
        """Whether nothing can follow."""
        return self.type in TERMINAL


@dataclass
class Tape:
    """Numbers the events of a run as its commits arrive."""

    records: list[Recorded] = field(default_factory=list)

    def add(self, landed: Landed) -> list[Recorded]:
        """Append a commit's events and return them."""
        first = len(self.records) + 1
        fresh = [
            Recorded(first + offset, landed.sequence, landed.commit.originator_version, event)
            for offset, event in enumerate(landed.commit.events)
        ]
        self.records.extend(fresh)
        return fresh

    @property
    def terminal(self) -> bool:
        """Whether the run is over."""
        return bool(self.records) and self.records[-1].terminal

    @classmethod
    def of(cls, history: History) -> "Tape":
        """Return the tape of a whole log."""
        tape = cls()
        for commit, sequence in zip(history.commits, history.sequences, strict=True):
            tape.add(Landed(commit, sequence))
        return tape


def event_view(recorded: Recorded) -> EventView:
    """Return one event as the API shows it."""
    data = recorded.event.model_dump(exclude={"at"})
    return EventView(
        id=recorded.ordinal,
        sequence=recorded.sequence,
        commit=recorded.commit,
        type=recorded.type,
        at=recorded.event.at,
        data=to_json(data),
    )


def run_view(key: RunKey, records: Sequence[Recorded]) -> RunView:
    """Fold events into what the API shows of a run.

    Raises:
        NotFound: There are none.
    """
    state = fold(recorded.event for recorded in records)
    if state is None:
        raise NotFound(f"no run {key.run_id}", field="run_id")
    facts = _node_facts(records)
    return RunView(
        run_id=key.run_id,
        status=state.status,
        workflow=state.workflow,
        version=state.version,
        inputs=to_json(state.inputs),
        nodes=tuple(_node_view(node, state, facts) for node in state.plan.nodes),
        outputs=None if state.outputs is None else to_json(state.outputs),
        error=state.error,
        correlation_id=state.correlation_id,
        events=len(records),
        started_at=state.started_at,
        updated_at=state.updated_at,
        duration_ms=_ms(state.started_at, state.updated_at),
    )


def accepted_view(key: RunKey, workflow: str, version: int, inputs: Wire, at: float) -> RunView:
    """Return a run that is stored and acknowledged, but not yet begun."""
    return RunView(
        run_id=key.run_id,
        status="accepted",
        workflow=workflow,
        version=version,
        inputs=to_json(inputs),
        started_at=at,
        updated_at=at,
        duration_ms=0.0,
    )


def _node_facts(records: Sequence[Recorded]) -> dict[str, dict[str, Any]]:
    """Return what the state does not keep of each node: who ran it, when, and for how long."""
    facts: dict[str, dict[str, Any]] = {}
    for recorded in records:
        match recorded.event:
            case NodeScheduled(node_id=node_id, at=at):
                facts[node_id] = {"scheduled_at": at}
            case NodeCompleted() as event:
                facts[event.node_id] |= {
                    "finished_at": event.at,
                    "model": event.model,
                    "worker": event.worker,
                    "timings": event.timings,
                }
            case NodeFailed(node_id=node_id, at=at):
                facts[node_id] |= {"finished_at": at}
            case _:
                pass  # the others are no node's
    return facts


def _node_view(node: PlanNode, state: RunState, facts: dict[str, dict[str, Any]]) -> NodeView:
    known = state.nodes.get(node.id)
    if known is None:
        return NodeView(id=node.id, status="pending", model=node.model)
    return NodeView(
        id=node.id,
        status=known.status,
        attempt=known.attempt,
        outputs=None if known.outputs is None else to_json(known.outputs),
        error=known.error,
        **{"model": node.model, **facts.get(node.id, {})},
    )


def _ms(start: float, end: float) -> float:
    return round(max(0.0, end - start) * 1000, 3)

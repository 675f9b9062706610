"""A run's log as the API shows it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from events.catalog import (
    SHORT_NAMES,
    Event,
    NodeCompleted,
    NodeFailed,
    NodeKept,
    NodeOpened,
    NodeQueued,
    NodeScheduled,
    NodeSkipped,
    RunStarted,
)
from events.codec import Commit
from events.evolve import fold
from events.paths import scope_of
from events.state import RunState
from events.store import History
from events.subjects import RunKey
from schemas.api import EventView, ForkView, KeptView, NodeView, NodeViewStatus, RunView
from schemas.errors import NotFound
from schemas.plan import adaptations
from schemas.values import Wire, to_json


TERMINAL = {"RunCompleted", "RunFailed", "RunRejected", "RunCancelled"}
INSIDE_MAX = 500
"""Nodes inside control nodes that a view shows; the events have them all."""


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

    def add(self, commit: Commit, sequence: int) -> list[Recorded]:
        """Append a commit's events and return them."""
        first = len(self.records) + 1
        fresh = [
            Recorded(first + offset, sequence, commit.originator_version, event)
            for offset, event in enumerate(commit.events)
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
            tape.add(commit, sequence)
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
    return RunView(
        run_id=key.run_id,
        status=state.status,
        workflow=state.workflow,
        version=state.version,
        inputs=to_json(state.inputs),
        nodes=_node_views(state, _node_facts(records)),
        outputs=None if state.outputs is None else to_json(state.outputs),
        error=state.error,
        correlation_id=state.correlation_id,
        forked_from=_forked_from(records[0].event),
        events=len(records),
        started_at=state.started_at,
        updated_at=state.updated_at,
        duration_ms=_ms(state.started_at, state.updated_at),
    )


def _forked_from(first: Event) -> ForkView | None:
    origin = first.forked_from if isinstance(first, RunStarted) else None
    if origin is None:
        return None
    return ForkView(run_id=origin.run_id, at=origin.at, changes=to_json(origin.changes))


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


NodeEvent = (
    NodeQueued | NodeScheduled | NodeOpened | NodeCompleted | NodeKept | NodeFailed | NodeSkipped
)


@dataclass
class _Facts:
    """What a run's events say of one node."""

    status: NodeViewStatus = "pending"
    attempt: int = 0
    shown: dict[str, Any] = field(default_factory=dict)
    """Fields of the view as they are now."""


def _node_facts(records: Sequence[Recorded]) -> dict[str, _Facts]:
    """Return what the events say of each node, by path, in the order they began."""
    facts: dict[str, _Facts] = {}
    for recorded in records:
        event = recorded.event
        if not isinstance(event, NodeEvent):
            continue
        _note(facts.setdefault(event.node_id, _Facts()), event)
    return facts


def _note(known: _Facts, event: NodeEvent) -> None:
    """Take note of one event of a node."""
    match event:
        case NodeQueued():
            known.status, known.shown = "queued", {"scheduled_at": event.at}
        case NodeScheduled() | NodeOpened():
            known.status = "scheduled" if isinstance(event, NodeScheduled) else "open"
            known.attempt = event.attempt
            known.shown = {"scheduled_at": event.at}
        case NodeCompleted():
            known.status, known.attempt = "completed", event.attempt
            known.shown |= {
                "finished_at": event.at,
                "model": event.model,
                "worker": event.worker or None,
                "timings": event.timings if event.worker else None,
                "outputs": None if event.outputs is None else to_json(event.outputs),
            }
        case NodeKept():
            known.status, known.attempt = "completed", event.attempt
            known.shown = {
                "model": event.model,
                "worker": event.worker or None,
                "timings": event.timings if event.worker else None,
                "outputs": to_json(event.outputs),
                "kept_from": KeptView(run_id=event.run_id, event=event.event),
            }
        case NodeFailed():
            known.status = "failed" if event.retry_at is None else "waiting"
            known.shown |= {"finished_at": event.at, "error": event.error}
        case NodeSkipped():
            known.status = "skipped"
            known.shown |= {"finished_at": event.at}


def _node_views(state: RunState, facts: dict[str, _Facts]) -> tuple[NodeView, ...]:
    """Return the nodes of the outermost graph, then what began inside of control nodes."""
    views = [_node_view(state, node.id, facts.get(node.id, _Facts())) for node in state.plan.nodes]
    inside = (path for path in facts if scope_of(path))
    views += [_node_view(state, path, facts[path]) for path in islice(inside, INSIDE_MAX)]
    return tuple(views)


def _node_view(state: RunState, path: str, facts: _Facts) -> NodeView:
    shown = dict(facts.shown)
    known = state.nodes.get(path)
    if known is not None and known.outputs is not None:
        shown["outputs"] = to_json(known.outputs)
    planned = state.planned(path)
    return NodeView(
        id=path,
        status=facts.status,
        attempt=facts.attempt,
        adapted={name: item.adapter for name, item in adaptations(planned.bindings).items()},
        **{"model": planned.model, **shown},
    )


def _ms(start: float, end: float) -> float:
    return round(max(0.0, end - start) * 1000, 3)

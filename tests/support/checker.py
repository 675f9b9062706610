"""What must hold of every history, whatever happened while it grew: one offline checker for all.

It reads what clients were told (`Submission`) and what the log holds in the end (`Recorded`), never
what a service believes. The simulation, the killed processes and the power cuts all use it.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from events.catalog import (
    TERMINAL,
    Event,
    NodeCompleted,
    NodeFailed,
    NodeOpened,
    NodeScheduled,
    NodeSkipped,
    RunCancelled,
    RunCompleted,
    RunRejected,
    RunStarted,
    ScopeClosed,
    SignalReceived,
)
from events.evolve import evolve
from events.jetstream import JetStreamEventStore
from events.paths import is_inside, node_id_of, node_path, scope_of
from events.state import DECIDED, RunState
from events.subjects import RunKey
from schemas.messages import Header


EARLY_S = 1e-3
"""Times are written with milliseconds."""


@dataclass(frozen=True)
class Recorded:
    """One commit as the log holds it."""

    sequence: int
    """In the whole log."""
    version: int
    """In its run, from 1."""
    previous: str
    """The digest it says the commit before has."""
    data: bytes
    """As stored."""
    events: tuple[Event, ...]
    stored_at: float | None = None
    """When the server stored it, seconds since the epoch."""


@dataclass(frozen=True)
class Submission:
    """What a client asked for, and whether it was told that this was taken."""

    run_id: str
    workflow: str
    inputs: Mapping[str, Any]
    acked: bool
    outputs: Mapping[str, Any] | None = None
    """What the run gives if it completes; None when that cannot be told."""
    ends: frozenset[str] = frozenset({"completed"})
    """How it may end."""


async def recorded(store: JetStreamEventStore, keys: Iterable[RunKey]) -> dict[str, list[Recorded]]:
    """Read runs as a server holds them, whatever is wrong with them.

    Raises:
        StoreUnavailable: The log cannot be reached.
        DataLoss: A commit cannot be decoded.
    """
    log: dict[str, list[Recorded]] = {}
    for key in keys:
        log[key.run_id] = [
            Recorded(
                item.sequence,
                item.version,
                item.headers.get(Header.PREVIOUS, ""),
                item.data,
                tuple((await store.decoder(item))().events),
            )
            for item in await store.stored(key)
        ]
    return log


def check(
    log: Mapping[str, Sequence[Recorded]],
    submissions: Iterable[Submission],
    *,
    complete: bool = True,
) -> list[str]:
    """Return what is wrong with a log; empty when nothing is.

    Args:
        log: The commits of each run, by run id.
        submissions: What clients asked for.
        complete: Whether every run must be over.
    """
    found: list[str] = []
    known = set()
    for wanted in submissions:
        known.add(wanted.run_id)
        commits = log.get(wanted.run_id, ())
        if commits:
            found += [f"{wanted.run_id}: {text}" for text in _as_asked(wanted, commits)]
        elif wanted.acked:
            found.append(f"{wanted.run_id}: was acknowledged and is lost")
    for run_id, commits in log.items():
        if run_id not in known:
            found.append(f"{run_id}: nobody asked for it")
        events = [event for commit in commits for event in commit.events]
        texts = chain(commits) + violations(events, complete=complete) + _early(commits)
        found += [f"{run_id}: {text}" for text in texts]
    return found


def _as_asked(wanted: Submission, commits: Sequence[Recorded]) -> list[str]:
    """Compare a run with what was asked for."""
    found = []
    first, last = commits[0].events[0], commits[-1].events[-1]
    if isinstance(first, RunStarted):
        if (first.workflow, first.inputs) != (wanted.workflow, dict(wanted.inputs)):
            found.append(f"runs {first.workflow} with {first.inputs}")
    elif "rejected" not in wanted.ends:
        found.append("was rejected")
    end = _ending(last)
    if end and end not in wanted.ends:
        found.append(f"ended {end}: {last}")
    if isinstance(last, RunCompleted) and wanted.outputs is not None:
        try:
            state = _folded(commits)
        except (AssertionError, KeyError) as error:
            return [*found, f"cannot be folded: {error!r}"]
        if state is not None and state.outputs != wanted.outputs:
            found.append(f"gave {state.outputs}, not {wanted.outputs}")
    return found


def _folded(commits: Sequence[Recorded]) -> RunState | None:
    state: RunState | None = None
    for commit in commits:
        for event in commit.events:
            state = evolve(state, event)
    return state


def _ending(event: Event) -> str:
    return type(event).__name__.removeprefix("Run").lower() if isinstance(event, TERMINAL) else ""


def chain(commits: Sequence[Recorded]) -> list[str]:
    """Return where a run's log is no single line: versions, order, digests."""
    found = []
    digest, sequence = "", 0
    for number, commit in enumerate(commits, start=1):
        if commit.version != number:
            found.append(f"commit {number} has version {commit.version}")
        if commit.sequence <= sequence:
            found.append(f"commit {number} is out of order")
        if commit.previous != digest:
            found.append(f"commit {number} does not follow the one before")
        digest, sequence = hashlib.sha256(commit.data).hexdigest(), commit.sequence
    return found


def _early(commits: Sequence[Recorded]) -> list[str]:
    """Return what the server stored before the time that is written in it."""
    return [
        f"commit {commit.version} says {commit.events[-1].at}, was stored at {commit.stored_at}"
        for commit in commits
        if commit.stored_at is not None and commit.stored_at + EARLY_S < commit.events[-1].at
    ]


def violations(events: Sequence[Event], *, complete: bool = True) -> list[str]:
    """Return what is wrong with the events of one run; empty when nothing is."""
    found: list[str] = []
    starts = [
        position
        for position, event in enumerate(events)
        if isinstance(event, RunStarted | RunRejected)
    ]
    if starts != [0]:
        found.append(f"{len(starts)} starts")
    ends = [position for position, event in enumerate(events) if isinstance(event, TERMINAL)]
    if len(ends) > 1 or (complete and not ends):
        found.append(f"{len(ends)} ends")
    elif ends and ends[0] != len(events) - 1:
        found.append("events after the end")
    return found + _Reader().read(events)


@dataclass
class _Attempt:
    """An attempt under way."""

    number: int
    deadline: float
    by_worker: bool


@dataclass
class _Reader:
    """Reads a run's events in order and notes what may not be."""

    state: RunState | None = None
    open: dict[str, list[_Attempt]] = field(default_factory=dict)
    """By path; more than one only where a node is hedged."""
    retry_at: dict[str, float] = field(default_factory=dict)
    seen: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    signals: Counter[str] = field(default_factory=Counter)
    found: list[str] = field(default_factory=list)

    def read(self, events: Sequence[Event]) -> list[str]:
        """Return what is wrong."""
        at = 0.0
        for event in events:
            if isinstance(event, NodeScheduled | NodeOpened) and self.state is not None:
                self._inputs_there(event.node_id)
            self._look(event)
            try:
                self.state = evolve(self.state, event)
            except (AssertionError, KeyError, AttributeError) as error:
                self.found.append(f"{type(event).__name__} cannot be folded: {error!r}")
                return self.found
            at = max(at, event.at)
        if events and isinstance(events[-1], RunCompleted):
            self.found += [f"{path}: never ended" for path in sorted(self.open)]
        repeated = [(key, count) for key, count in self.seen.items() if count > 1]
        self.found += [f"{path}/{number}: {what} {n} times" for (what, path, number), n in repeated]
        self.found += [f"signal {name}: {n} times" for name, n in self.signals.items() if n > 1]
        return self.found

    def _look(self, event: Event) -> None:
        match event:
            case NodeScheduled():
                self._scheduled(event)
            case NodeOpened():
                self.open[event.node_id] = [_Attempt(event.attempt, event.deadline, False)]
            case NodeCompleted() | NodeFailed():
                self._answered(event)
            case NodeSkipped():
                self._close(event.node_id)
            case ScopeClosed():
                self._forget(event.scope)
            case SignalReceived():
                self.signals[event.signal_id] += 1
            case RunCancelled():
                self.open.clear()
            case _:
                pass  # says nothing of nodes

    def _scheduled(self, event: NodeScheduled) -> None:
        path = event.node_id
        self.seen["scheduled", path, event.attempt] += 1
        if event.at + EARLY_S < self.retry_at.pop(path, 0.0):
            self.found.append(f"{path}/{event.attempt}: begun before its time")
        under_way = self.open.setdefault(path, [])
        if under_way and not event.hedge:
            self.found.append(f"{path}/{event.attempt}: begun while another attempt was under way")
        kind = self._kind(path)
        under_way.append(_Attempt(event.attempt, event.deadline, kind in {"", "model", "emit"}))

    def _answered(self, event: NodeCompleted | NodeFailed) -> None:
        path = event.node_id
        attempts = self.open.get(path, [])
        attempt = next((item for item in attempts if item.number == event.attempt), None)
        self.seen["answered", path, event.attempt] += 1
        if isinstance(event, NodeCompleted):
            self.seen["completed", path, 0] += 1
        by_worker = isinstance(event, NodeCompleted) and event.worker != ""
        if attempt is None and (attempts or by_worker):
            self.found.append(f"{path}/{event.attempt}: answered, and nobody waited for it")
        if attempt is not None and event.at + EARLY_S < attempt.deadline:
            kind = self._kind(path)
            late = isinstance(event, NodeFailed) and event.error.code == "DEADLINE_EXCEEDED"
            late = late and kind in {"model", "emit"}  # a control node hands on what failed inside
            delay = isinstance(event, NodeCompleted) and kind == "delay"
            if (late and not _run_is_late(self.state, event.at)) or delay:
                self.found.append(f"{path}/{event.attempt}: its time was over too early")
        if isinstance(event, NodeFailed) and event.retry_at is not None:
            self.retry_at[path] = event.retry_at
        self._close(path)

    def _close(self, path: str) -> None:
        self.open.pop(path, None)
        for inside in [other for other in self.open if other.startswith(f"{path}[")]:
            del self.open[inside]

    def _forget(self, scope: str) -> None:
        for path in [path for path in self.open if is_inside(path, scope)]:
            del self.open[path]

    def _kind(self, path: str) -> str:
        try:
            return "" if self.state is None else self.state.planned(path).kind
        except (KeyError, StopIteration):
            return ""

    def _inputs_there(self, path: str) -> None:
        """A node that joins all its sources begins when each is decided."""
        assert self.state is not None
        try:
            planned = self.state.planned(path)
        except (KeyError, StopIteration):
            self.found.append(f"{path}: is in no plan")
            return
        nodes, scope = self.state.nodes_of(scope_of(path)), scope_of(path)
        open_ = [
            node_path(scope, source)
            for source in planned.sources
            if source not in nodes or nodes[source].status not in DECIDED
        ]
        if open_ and not planned.join:
            self.found.append(f"{node_id_of(path)}: begun before {', '.join(open_)}")


def _run_is_late(state: RunState | None, at: float) -> bool:
    deadline = None if state is None else state.deadline
    return deadline is not None and deadline <= at + EARLY_S

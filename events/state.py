"""A run as its log has it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from events.catalog import RunStatus
from events.paths import ROOT, node_id_of, node_path, scope_of, steps_of
from schemas.messages import Fault
from schemas.plan import DISPATCHED, Plan, PlanNode
from schemas.values import Wire


T = TypeVar("T")
NodeStatus = Literal["queued", "scheduled", "waiting", "open", "completed", "failed", "skipped"]
DECIDED: frozenset[NodeStatus] = frozenset({"completed", "skipped"})
TIMED: frozenset[NodeStatus] = frozenset({"scheduled", "waiting", "open"})
BUSY: frozenset[NodeStatus] = TIMED | {"queued"}


def changed(record: T, **changes: Any) -> T:
    """Return a copy of a frozen record with some fields changed.

    `dataclasses.replace` would call the constructor, at five times the cost; a state is copied for
    every event.
    """
    copy = object.__new__(type(record))
    copy.__dict__.update(record.__dict__, **changes)
    return copy


@dataclass(frozen=True)
class Progress:
    """How far a control node is."""

    total: int | None = None
    opened: int = 0
    closed: int = 0
    variables: Wire = field(default_factory=dict)
    """Of a loop's next iteration."""
    results: dict[str, Any] = field(default_factory=dict)
    """What closed scopes gave, by label; of a loop only the last, as `last`."""
    phase: str = ""
    """Label of the scope that closed last."""
    error: Fault | None = None
    """A failure that nothing has caught."""
    caught: Fault | None = None
    ended: bool = False
    """Whether no further iteration begins."""


@dataclass(frozen=True)
class NodeState:
    """One node as the log has it; a node with no event yet has no state."""

    status: NodeStatus
    attempt: int
    scheduled_at: float
    deadline: float
    """`scheduled`, `open`: when it is given up; `waiting`: when the next attempt begins."""
    outputs: Wire | None = None
    error: Fault | None = None
    progress: Progress | None = None
    tried: tuple[int, ...] = ()
    """Which ways its attempts took, where it has several; the last is the current one."""
    rivals: tuple[int, ...] = ()
    """Earlier attempts that go on beside this one; the first answer counts."""

    gate: str = ""
    """Key of the gate that it waits for or is inside of."""
    limit: int = 0
    """How many may be inside."""

    @property
    def is_busy(self) -> bool:
        """Whether it has begun, or is to begin, and is not over."""
        return self.status in BUSY

    @property
    def route(self) -> int:
        """Which way the current attempt takes; 0 is the node's own."""
        return self.tried[-1] if self.tried else 0


@dataclass(frozen=True)
class Scope:
    """One graph under way inside a control node."""

    inputs: Wire
    nodes: dict[str, NodeState] = field(default_factory=dict)
    cleanup_of: str | None = None


@dataclass(frozen=True)
class Undo:
    """A compensation that would run if its scope failed."""

    scope: str
    """The scope it would run as."""
    outputs: Wire
    """What the node gave that it undoes."""


@dataclass(frozen=True)
class Cleanup:
    """A scope that fails or is cancelled, and what is still to be undone."""

    ending: Literal["failed", "cancelled"]
    node_id: str
    error: Fault
    steps: tuple[Undo, ...]


@dataclass(frozen=True)
class Signal:
    """A signal that no node has asked for yet."""

    name: str
    payload: Any


@dataclass(frozen=True)
class RunState:
    """A run folded from its log."""

    status: RunStatus
    workflow: str
    version: int
    inputs_digest: str
    plan: Plan
    inputs: Wire
    correlation_id: str
    started_at: float
    updated_at: float
    nodes: dict[str, NodeState] = field(default_factory=dict)
    """Of the outermost graph."""
    outputs: dict[str, Any] | None = None
    error: Fault | None = None
    scopes: dict[str, Scope] = field(default_factory=dict)
    """The graphs under way inside control nodes; what is over is forgotten."""
    expanded: dict[str, Plan] = field(default_factory=dict)
    """The graphs that dynamic nodes were given, by path."""
    undo: tuple[Undo, ...] = ()
    """Compensations in the order of what they would undo."""
    cleanups: dict[str, Cleanup] = field(default_factory=dict)
    signals: tuple[Signal, ...] = ()
    signal_ids: tuple[str, ...] = ()

    @property
    def terminal(self) -> bool:
        """Whether the run is over; nothing is ever appended after that."""
        return self.status not in {"running", "paused"}

    @property
    def is_gated(self) -> bool:
        """Whether nodes of it may wait for gates."""
        return self.plan.gated or any(plan.gated for plan in self.expanded.values())

    @property
    def deadline(self) -> float | None:
        """When the whole run is given up, seconds since the epoch."""
        return self.started_at + self.plan.timeout_s if self.plan.timeout_s else None

    def plan_of(self, scope: str) -> Plan:
        """Return the graph that a scope runs."""
        plan, at = self.plan, ROOT
        for node_id, label in steps_of(scope):
            path = node_path(at, node_id)
            found = self.expanded.get(path) if label == "body" else None
            bodies = plan.node(node_id).bodies if found is None else {}
            plan = found or bodies[label if label in bodies else "body"]
            at = f"{path}[{label}]"
        return plan

    def planned(self, path: str) -> PlanNode:
        """Return a node's plan."""
        return self.plan_of(scope_of(path)).node(node_id_of(path))

    def nodes_of(self, scope: str) -> dict[str, NodeState]:
        """Return the nodes of a scope by id; empty once it is over."""
        if scope == ROOT:
            return self.nodes
        found = self.scopes.get(scope)
        return {} if found is None else found.nodes

    def node(self, path: str) -> NodeState | None:
        """Return a node's state, unless it has none or its scope is over."""
        return self.nodes_of(scope_of(path)).get(node_id_of(path))

    def is_under_way(self, path: str) -> bool:
        """Tell whether a path is that of a node of a graph under way."""
        scope = scope_of(path)
        if scope != ROOT and scope not in self.scopes:
            return False
        return node_id_of(path) in self.plan_of(scope).by_id

    def inputs_of(self, scope: str) -> Wire:
        """Return the inputs of a scope."""
        return self.inputs if scope == ROOT else self.scopes[scope].inputs

    def active(self) -> Iterator[tuple[str, NodeState]]:
        """Yield every node of every graph under way, by path."""
        yield from self.nodes.items()
        for scope, found in self.scopes.items():
            for node_id, node in found.nodes.items():
                yield node_path(scope, node_id), node

    def open_nodes(self) -> list[str]:
        """Return the paths of nodes that somebody outside should be busy with."""
        if self.terminal:
            return []
        return [
            path
            for path, node in self.active()
            if node.status == "scheduled" and self.planned(path).kind in DISPATCHED
        ]

    def stalled(self, path: str, node: NodeState) -> bool:
        """Tell whether a control node could go on, but the turn that brought it here was over."""
        progress = node.progress
        if node.status != "open" or progress is None:
            return False
        planned = self.planned(path)
        if planned.kind == "loop":
            return progress.opened == progress.closed
        if planned.kind != "foreach" or progress.ended or progress.total is None:
            return False
        busy = progress.opened - progress.closed
        return progress.opened < progress.total and busy < planned.params["max_parallel"]

    def hedge_at(self, path: str, node: NodeState) -> float | None:
        """Return when another way is asked as well, if one is to be."""
        if node.status != "scheduled" or not node.tried or node.rivals:
            return None
        after_s = self.planned(path).hedge_after_s
        return node.scheduled_at + after_s if after_s else None

    def wake_at(self) -> float | None:
        """Return the earliest time at which the clock matters to this run."""
        if self.status != "running":
            return None
        times = [node.deadline for _, node in self.active() if node.status in TIMED]
        times += [
            at for path, node in self.active() if (at := self.hedge_at(path, node)) is not None
        ]
        if self.deadline is not None and ROOT not in self.cleanups:
            times.append(self.deadline)
        if any(self.stalled(path, node) for path, node in self.active() if node.status == "open"):
            times.append(self.updated_at)
        return min(times, default=None)

    def gave(self, scope: str) -> Wire:
        """Return what a scope's graph gave: its only sink's outputs, or each sink's by its id."""
        sinks = self.plan_of(scope).outputs
        by_sink = self.sink_outputs(scope)
        return by_sink.get(sinks[0], {}) if len(sinks) == 1 else by_sink

    def sink_outputs(self, scope: str) -> dict[str, Any]:
        """Return the outputs of a scope's sinks by id, the skipped ones left out."""
        nodes = self.nodes_of(scope)
        return {
            sink: nodes[sink].outputs or {}
            for sink in self.plan_of(scope).outputs
            if sink in nodes and nodes[sink].status == "completed"
        }

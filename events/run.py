"""The Run aggregate: `decide(state, command) -> events` and `evolve(state, event) -> state`.

Pure: no clock, no random, no I/O, so a replay is exact.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Literal

from events.catalog import (
    Event,
    NodeCompleted,
    NodeFailed,
    NodeScheduled,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunRejected,
    RunStarted,
    RunStatus,
)
from events.commands import CancelRun, CheckClock, Command, RecordResult, RejectRun, StartRun
from schemas.messages import Fault, TaskResult
from schemas.plan import RUN_INPUT, Plan, PlanNode
from schemas.values import Wire


REDUCER_VERSION = 1
"""Raise it when `evolve` changes meaning; snapshots of another version are ignored."""

NodeStatus = Literal["scheduled", "waiting", "completed", "failed"]


@dataclass(frozen=True)
class NodeState:
    """One node as the log has it; a node with no event yet has no state."""

    status: NodeStatus
    attempt: int
    scheduled_at: float
    deadline: float
    """`scheduled`: when the attempt is given up; `waiting`: when the next one begins."""
    outputs: Wire | None = None
    error: Fault | None = None


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
    outputs: dict[str, Any] | None = None
    error: Fault | None = None

    @property
    def terminal(self) -> bool:
        """Whether the run is over; nothing is ever appended after that."""
        return self.status != "running"

    def open_nodes(self) -> list[str]:
        """Return the nodes that a worker should be busy with."""
        if self.terminal:
            return []
        return [node_id for node_id, node in self.nodes.items() if node.status == "scheduled"]

    def wake_at(self) -> float | None:
        """Return the earliest time at which the clock matters to this run."""
        if self.terminal:
            return None
        times = [
            node.deadline for node in self.nodes.values() if node.status in {"scheduled", "waiting"}
        ]
        return min(times, default=None)


def decide(state: RunState | None, command: Command) -> list[Event]:
    """Return what happens; nothing, when the command is stale or already done."""
    match command:
        case StartRun():
            return _start(command) if state is None else []
        case RejectRun():
            return _reject(command) if state is None else []
        case RecordResult(result=result, at=at):
            return _record(state, result, at) if state and not state.terminal else []
        case CheckClock(at=at):
            return _check_clock(state, at) if state and not state.terminal else []
        case CancelRun(reason=reason, at=at):
            return [RunCancelled(at=at, reason=reason)] if state and not state.terminal else []


def evolve(state: RunState | None, event: Event) -> RunState:
    """Return the state after an event."""
    match event:
        case RunStarted():
            return _started(event)
        case RunRejected():
            return RunState(
                status="rejected",
                workflow=event.workflow,
                version=0,
                inputs_digest=event.inputs_digest,
                plan=Plan(nodes=(), outputs=()),
                inputs={},
                correlation_id="",
                started_at=event.at,
                updated_at=event.at,
                error=event.error,
            )
        case _:
            pass  # every other event needs a state
    assert state is not None, "the first event of a run is RunStarted or RunRejected"
    match event:
        case NodeScheduled() | NodeCompleted() | NodeFailed():
            nodes = {**state.nodes, event.node_id: _evolve_node(state, event)}
            return replace(state, nodes=nodes, updated_at=event.at)
        case RunCompleted():
            return replace(state, status="completed", outputs=event.outputs, updated_at=event.at)
        case RunFailed():
            return replace(state, status="failed", error=event.error, updated_at=event.at)
        case RunCancelled():
            error = Fault(code="CANCELLED", message=event.reason or "cancelled")
            return replace(state, status="cancelled", error=error, updated_at=event.at)


def fold(events: Iterable[Event], state: RunState | None = None) -> RunState | None:
    """Fold events into a state."""
    return reduce(evolve, events, state)


def node_inputs(state: RunState, node: PlanNode) -> Wire:
    """Return the inputs of a node whose sources are complete."""
    inputs: Wire = {}
    for name, binding in node.bindings.items():
        source = state.inputs if binding.node == RUN_INPUT else _outputs(state, binding.node)
        if not binding.output:
            inputs[name] = source
        elif binding.output in source:
            inputs[name] = source[binding.output]
    return inputs


def _outputs(state: RunState, node_id: str) -> Wire:
    return state.nodes[node_id].outputs or {}


def _started(event: RunStarted) -> RunState:
    return RunState(
        status="running",
        workflow=event.workflow,
        version=event.version,
        inputs_digest=event.inputs_digest,
        plan=event.plan,
        inputs=event.inputs,
        correlation_id=event.correlation_id,
        started_at=event.at,
        updated_at=event.at,
    )


def _evolve_node(state: RunState, event: NodeScheduled | NodeCompleted | NodeFailed) -> NodeState:
    if isinstance(event, NodeScheduled):
        return NodeState(
            status="scheduled",
            attempt=event.attempt,
            scheduled_at=event.at,
            deadline=event.deadline,
        )
    node = state.nodes[event.node_id]
    if isinstance(event, NodeCompleted):
        return replace(node, status="completed", outputs=event.outputs)
    if event.retry_at is None:
        return replace(node, status="failed", error=event.error)
    return replace(node, status="waiting", error=event.error, deadline=event.retry_at)


def _start(command: StartRun) -> list[Event]:
    started = RunStarted(
        at=command.at,
        workflow=command.workflow,
        version=command.version,
        digest=command.digest,
        plan=command.plan,
        inputs=command.inputs,
        inputs_digest=command.inputs_digest,
        correlation_id=command.correlation_id,
    )
    return [started, *_schedule_ready(_started(started), command.at)]


def _reject(command: RejectRun) -> list[Event]:
    return [
        RunRejected(
            at=command.at,
            workflow=command.workflow,
            inputs_digest=command.inputs_digest,
            error=command.error,
        )
    ]


def _schedule_ready(state: RunState, at: float) -> list[Event]:
    """Schedule every untouched node whose sources are all complete."""
    done = {node_id for node_id, node in state.nodes.items() if node.status == "completed"}
    return [
        NodeScheduled(at=at, node_id=node.id, attempt=1, deadline=at + node.timeout_s)
        for node in state.plan.nodes
        if node.id not in state.nodes and done.issuperset(node.sources)
    ]


def _record(state: RunState, result: TaskResult, at: float) -> list[Event]:
    node = state.nodes.get(result.node_id)
    if node is None or node.status != "scheduled" or node.attempt != result.attempt:
        return []
    if result.error is not None:
        return _fail(state, result.node_id, result.error, at)
    completed = NodeCompleted(
        at=at,
        node_id=result.node_id,
        attempt=result.attempt,
        outputs=result.outputs or {},
        model=result.model,
        worker=result.worker,
        timings=result.timings,
    )
    after = evolve(state, completed)
    events: list[Event] = [completed, *_schedule_ready(after, at)]
    done = {node_id for node_id, node in after.nodes.items() if node.status == "completed"}
    if all(node.id in done for node in after.plan.nodes):
        outputs = {sink: _outputs(after, sink) for sink in after.plan.outputs}
        events.append(RunCompleted(at=at, outputs=outputs))
    return events


def _fail(state: RunState, node_id: str, error: Fault, at: float) -> list[Event]:
    attempt = state.nodes[node_id].attempt
    retry = state.plan.node(node_id).retry
    if error.retryable and attempt < retry.max_attempts:
        delay = min(retry.initial_delay_s * 2 ** (attempt - 1), retry.max_delay_s)
        return [
            NodeFailed(at=at, node_id=node_id, attempt=attempt, error=error, retry_at=at + delay)
        ]
    return [
        NodeFailed(at=at, node_id=node_id, attempt=attempt, error=error),
        RunFailed(at=at, node_id=node_id, error=error),
    ]


def _check_clock(state: RunState, at: float) -> list[Event]:
    events: list[Event] = []
    for node_id, node in state.nodes.items():
        if node.deadline > at:
            continue
        if node.status == "waiting":
            timeout_s = state.plan.node(node_id).timeout_s
            events.append(
                NodeScheduled(
                    at=at, node_id=node_id, attempt=node.attempt + 1, deadline=at + timeout_s
                )
            )
        elif node.status == "scheduled":
            late = Fault(
                code="DEADLINE_EXCEEDED",
                message=f"node '{node_id}' did not answer within its timeout",
                retryable=True,
            )
            events.extend(_fail(state, node_id, late, at))
            if isinstance(events[-1], RunFailed):
                return events
    return events

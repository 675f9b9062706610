"""How each event changes a run's state: `evolve(state, event) -> state`.

Pure: no clock, no random, no I/O, and no expression is ever evaluated here, so a replay is exact.
"""

from collections.abc import Iterable
from functools import reduce
from typing import Any

from events.catalog import (
    CleanupStarted,
    Event,
    NodeCompleted,
    NodeFailed,
    NodeKept,
    NodeOpened,
    NodeQueued,
    NodeScheduled,
    NodeSkipped,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunPaused,
    RunRejected,
    RunResumed,
    RunStarted,
    ScopeClosed,
    ScopeOpened,
    SignalReceived,
)
from events.paths import ROOT, is_inside, node_id_of, owner_of, scope_of
from events.state import Cleanup, NodeState, Progress, RunState, Scope, Signal, Undo, changed
from schemas.messages import Fault
from schemas.plan import Plan, PlanNode
from schemas.values import Wire


REDUCER_VERSION = 2
"""Raise it when `evolve` changes meaning; snapshots of another version are ignored."""
SIGNAL_IDS_KEPT = 256


def fold(events: Iterable[Event], state: RunState | None = None) -> RunState | None:
    """Fold events into a state."""
    return reduce(evolve, events, state)


def evolve(state: RunState | None, event: Event) -> RunState:
    """Return the state after an event."""
    match event:
        case RunStarted():
            return started(event)
        case RunRejected():
            return _rejected(event)
        case _:
            pass  # every other event needs a state
    assert state is not None, "the first event of a run is RunStarted or RunRejected"
    return changed(_evolve(state, event), updated_at=event.at)


def _evolve(state: RunState, event: Event) -> RunState:  # noqa: C901, PLR0911 - a case each
    match event:
        case (
            NodeQueued()
            | NodeScheduled()
            | NodeCompleted()
            | NodeFailed()
            | NodeSkipped()
            | NodeOpened()
        ):
            return _node_changed(state, event)
        case NodeKept():
            node = NodeState("completed", event.attempt, event.at, event.at, outputs=event.outputs)
            return _with_node(state, scope_of(event.node_id), node_id_of(event.node_id), node)
        case ScopeOpened():
            return _scope_opened(state, event)
        case ScopeClosed():
            return _scope_closed(state, event)
        case CleanupStarted():
            return _cleanup_started(state, event)
        case SignalReceived():
            kept = (*state.signal_ids, event.signal_id)[-SIGNAL_IDS_KEPT:]
            signals = (*state.signals, Signal(event.name, event.payload))
            return changed(state, signals=signals, signal_ids=kept)
        case RunPaused():
            return changed(state, status="paused")
        case RunResumed():
            return changed(state, status="running")
        case RunCompleted():
            outputs = state.sink_outputs(ROOT) if event.outputs is None else event.outputs
            return changed(state, status="completed", outputs=outputs)
        case RunFailed():
            return changed(state, status="failed", error=event.error)
        case RunCancelled():
            error = Fault(code="CANCELLED", message=event.reason or "cancelled")
            return changed(state, status="cancelled", error=error)
        case RunStarted() | RunRejected():
            raise AssertionError("handled before")


def started(event: RunStarted) -> RunState:
    """Return the state of a run that has just begun."""
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


def _rejected(event: RunRejected) -> RunState:
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


NodeEvent = NodeQueued | NodeScheduled | NodeCompleted | NodeFailed | NodeSkipped | NodeOpened


def _node_changed(state: RunState, event: NodeEvent) -> RunState:
    scope, node_id = scope_of(event.node_id), node_id_of(event.node_id)
    before = state.nodes_of(scope).get(node_id)
    state = _with_node(state, scope, node_id, _evolve_node(state, before, event))
    if before is not None and before.status == "open":
        state = _without_scopes(state, f"{event.node_id}[")
    match event:
        case NodeOpened(plan=Plan() as plan):
            return changed(state, expanded={**state.expanded, event.node_id: plan})
        case NodeCompleted():
            return _after_completion(state, event)
        case _:
            return state


def _evolve_node(  # noqa: C901, PLR0911 - a case each
    state: RunState, node: NodeState | None, event: NodeEvent
) -> NodeState:
    match event:
        case NodeQueued():
            attempt = 0 if node is None else node.attempt
            return NodeState(
                "queued", attempt, event.at, event.at, gate=event.key, limit=event.limit
            )
        case NodeScheduled():
            return _scheduled(node, event)
        case NodeOpened():
            progress = Progress(total=event.total, variables=event.variables)
            opened = NodeState("open", event.attempt, event.at, event.deadline, progress=progress)
            return opened if node is None else changed(opened, gate=node.gate, limit=node.limit)
        case NodeCompleted():
            known = node or NodeState("completed", event.attempt, event.at, event.at)
            outputs = event.outputs
            if outputs is None:
                outputs = control_outputs(state.planned(event.node_id), known.progress)
            return changed(known, status="completed", outputs=outputs, progress=None)
        case NodeSkipped():
            known = node or NodeState("skipped", 0, event.at, event.at)
            return changed(known, status="skipped", outputs=None, progress=None)
        case NodeFailed():
            known = node or NodeState("failed", event.attempt, event.at, event.at)
            if event.retry_at is None:
                return changed(known, status="failed", error=event.error, progress=None)
            return changed(known, status="waiting", error=event.error, deadline=event.retry_at)


def _scheduled(node: NodeState | None, event: NodeScheduled) -> NodeState:
    tried = node.tried if node is not None else ()
    if event.route is not None:
        tried = (*tried, event.route.index)
    rivals = (node.attempt,) if node is not None and event.hedge else ()
    begun = NodeState(
        "scheduled", event.attempt, event.at, event.deadline, tried=tried, rivals=rivals
    )
    return begun if node is None else changed(begun, gate=node.gate, limit=node.limit)


def control_outputs(planned: PlanNode, progress: Progress | None) -> Wire:
    """Return what a control node gives once its graphs are through."""
    if progress is None:
        return {}
    results = progress.results
    match planned.kind:
        case "loop":
            names = {name: value for name, value in progress.variables.items() if name != "index"}
            return {**results.get("last", {}), **names, "iterations": progress.closed}
        case "foreach":
            numbers = (str(number) for number in range(progress.opened))
            items = [results[number] for number in numbers if number in results]
            return {"items": items, "count": len(items)}
        case "try" if progress.caught is not None:
            return {**results.get("catch", {}), "error": progress.caught.model_dump()}
        case _:
            body: Wire = results.get("body", {})
            return body


def _after_completion(state: RunState, event: NodeCompleted) -> RunState:
    """Remember how to undo it, and take the signal it was waiting for out of the line."""
    planned = state.planned(event.node_id)
    node = state.node(event.node_id)
    outputs = (node.outputs if node is not None else None) or {}
    if "compensate" in planned.bodies:
        undo = Undo(f"{event.node_id}[compensate]", outputs)
        state = changed(state, undo=(*state.undo, undo))
    if planned.kind == "signal" and not outputs.get("timed_out"):
        name = planned.params["name"]
        for place, signal in enumerate(state.signals):
            if signal.name == name:
                rest = state.signals[:place] + state.signals[place + 1 :]
                return changed(state, signals=rest)
    return state


def _scope_opened(state: RunState, event: ScopeOpened) -> RunState:
    scopes = {**state.scopes, event.scope: Scope(event.inputs, cleanup_of=event.cleanup_of)}
    state = changed(state, scopes=scopes)
    if event.cleanup_of is not None:
        cleanup = state.cleanups[event.cleanup_of]
        rest = tuple(step for step in cleanup.steps if step.scope != event.scope)
        cleanups = {**state.cleanups, event.cleanup_of: changed(cleanup, steps=rest)}
        return changed(state, cleanups=cleanups)
    owner, _ = owner_of(event.scope)
    return _with_progress(state, owner, lambda now: changed(now, opened=now.opened + 1))


def _scope_closed(state: RunState, event: ScopeClosed) -> RunState:
    owner, label = owner_of(event.scope)
    is_cleanup = state.scopes[event.scope].cleanup_of is not None
    gave = state.gave(event.scope) if event.status == "completed" else {}
    if event.collected is not None:
        gave = event.collected["value"]
    state = _without_scopes(state, event.scope)
    if is_cleanup:
        return state
    kind = state.planned(owner).kind

    def closed(now: Progress) -> Progress:
        now = changed(now, closed=now.closed + 1, phase=label, ended=now.ended or event.last)
        if event.status == "failed":
            return changed(now, error=event.error)
        if kind == "try":
            return _after_try(now, label, gave)
        if kind == "loop":
            variables = {**now.variables, **event.variables}
            return changed(now, results={"last": gave}, variables=variables)
        return changed(now, results={**now.results, label: gave})

    return _with_progress(state, owner, closed)


def _after_try(now: Progress, label: str, gave: Wire) -> Progress:
    if label == "catch":
        return changed(now, results={**now.results, label: gave}, caught=now.error, error=None)
    return changed(now, results={**now.results, label: gave})


def _cleanup_started(state: RunState, event: CleanupStarted) -> RunState:
    """Forget what was under way in the scope, and what is going to be undone."""
    kept = {
        node_id: node for node_id, node in state.nodes_of(event.scope).items() if not node.is_busy
    }
    outputs = {undo.scope: undo.outputs for undo in state.undo}
    steps = tuple(Undo(step, outputs.get(step, {})) for step in event.steps)
    cleanup = Cleanup(event.ending, event.node_id, event.error, steps)
    state = _without_scopes(state, f"{event.scope}/" if event.scope else "")
    if event.scope:
        scope = changed(state.scopes[event.scope], nodes=kept)
        state = changed(state, scopes={**state.scopes, event.scope: scope})
    else:
        state = changed(state, nodes=kept)
    return changed(
        state,
        undo=tuple(undo for undo in state.undo if not is_inside(undo.scope, event.scope)),
        cleanups={**state.cleanups, event.scope: cleanup},
    )


def _without_scopes(state: RunState, prefix: str) -> RunState:
    """Forget every scope whose path begins like this, and its cleanup."""
    if not state.scopes:
        return state
    scopes = {path: scope for path, scope in state.scopes.items() if not path.startswith(prefix)}
    cleanups = {
        path: cleanup
        for path, cleanup in state.cleanups.items()
        if path == ROOT or not path.startswith(prefix)
    }
    return changed(state, scopes=scopes, cleanups=cleanups)


def _with_node(state: RunState, scope: str, node_id: str, node: NodeState) -> RunState:
    if scope == ROOT:
        return changed(state, nodes={**state.nodes, node_id: node})
    known = state.scopes[scope]
    with_node = changed(known, nodes={**known.nodes, node_id: node})
    return changed(state, scopes={**state.scopes, scope: with_node})


def _with_progress(state: RunState, path: str, change: Any) -> RunState:
    node = state.node(path)
    assert node is not None
    assert node.progress is not None
    further = changed(node, progress=change(node.progress))
    return _with_node(state, scope_of(path), node_id_of(path), further)

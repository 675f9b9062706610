"""The Run aggregate: `decide(state, command) -> events`.

Pure: no clock, no random, no I/O; time and noise arrive inside the command. What needs several
steps is a `Turn`; how an event changes the state stands in `events.state`.
"""

from collections.abc import Iterator

from events import controls
from events.catalog import (
    Event,
    NodeCompleted,
    NodeSkipped,
    RunPaused,
    RunRejected,
    RunResumed,
    RunStarted,
    SignalReceived,
)
from events.commands import (
    Advice,
    CancelRun,
    CheckClock,
    Command,
    ExpandNode,
    GrantNode,
    PauseRun,
    RecordResult,
    RejectRun,
    ResumeRun,
    RetryNode,
    SignalRun,
    SkipNode,
    StartRun,
)
from events.evolve import evolve, started
from events.paths import ROOT, scope_of
from events.state import DECIDED, TIMED, NodeState, RunState
from events.turn import Turn
from schemas.messages import Fault, TaskResult
from schemas.plan import DISPATCHED


SIGNALS_MAX = 1_000
"""Signals a run keeps that no node has asked for; more are dropped."""
BY_HAND = "by-hand"


def decide(
    state: RunState | None,
    command: Command,
    advice: Advice = Advice(),  # noqa: B008 - frozen
) -> list[Event]:
    """Return what happens; nothing, when the command is stale or already done."""
    return decided(state, command, advice)[0]


def decided(
    state: RunState | None, command: Command, advice: Advice
) -> tuple[list[Event], RunState | None]:
    """Return what happens, as `decide` does, and the state after it: what a fold of it gives."""
    match command:
        case StartRun():
            turn = _start(command, advice) if state is None else None
        case RejectRun():
            turn = _reject(command) if state is None else None
        case _:
            begun = state is not None and not state.terminal
            turn = _decide(state, command, advice) if begun and state is not None else None
    return ([], state) if turn is None else (turn.events, turn.state)


def _decide(state: RunState, command: Command, advice: Advice) -> Turn | None:  # noqa: C901, PLR0911 - a case each
    match command:
        case RecordResult():
            return _record(state, command, advice)
        case CheckClock():
            return _check_clock(state, command, advice) if state.status == "running" else None
        case CancelRun():
            return _cancel(state, command, advice)
        case PauseRun(reason=reason, at=at):
            return (
                _only(state, RunPaused(at=at, reason=reason)) if state.status == "running" else None
            )
        case ResumeRun(at=at):
            return _resume(state, at, advice) if state.status == "paused" else None
        case SignalRun():
            return _signal(state, command, advice)
        case SkipNode():
            return _skip(state, command, advice)
        case RetryNode():
            return _retry(state, command, advice)
        case GrantNode():
            return _grant(state, command, advice) if state.status == "running" else None
        case ExpandNode():
            return _expand(state, command, advice)
        case StartRun() | RejectRun():
            raise AssertionError("handled before")


def _only(state: RunState | None, event: Event) -> Turn:
    """Return the turn of a single event."""
    turn = Turn(evolve(state, event), event.at)
    turn.events.append(event)
    return turn


def _start(command: StartRun, advice: Advice) -> Turn:
    begun = RunStarted(
        at=command.at,
        workflow=command.workflow,
        version=command.version,
        digest=command.digest,
        plan=command.plan,
        inputs=command.inputs,
        inputs_digest=command.inputs_digest,
        correlation_id=command.correlation_id,
        forked_from=command.forked_from,
    )
    turn = Turn(started(begun), command.at, advice)
    for kept in command.kept:
        turn.happen(kept)
    turn.advance(ROOT)
    turn.finish()
    turn.events.insert(0, begun)
    return turn


def _reject(command: RejectRun) -> Turn:
    rejected = RunRejected(
        at=command.at,
        workflow=command.workflow,
        inputs_digest=command.inputs_digest,
        error=command.error,
    )
    return _only(None, rejected)


def _record(state: RunState, command: RecordResult, advice: Advice) -> Turn:
    """Record a worker's result, and those of the nodes that it went on with."""
    turn = Turn(state, command.at, advice)
    for result in (command.result, *command.result.then):
        if not _is_awaited(turn.state, result):
            break
        if result.error is not None:
            turn.fail(result.node_id, result.error)
        else:
            turn.happen(
                NodeCompleted(
                    at=command.at,
                    node_id=result.node_id,
                    attempt=result.attempt,
                    outputs=result.outputs or {},
                    model=result.model,
                    worker=result.worker,
                    timings=result.timings,
                    memo_of=result.memo_of,
                )
            )
            turn.advance(scope_of(result.node_id))
        turn.finish()
    return turn


def _is_awaited(state: RunState, result: TaskResult) -> bool:
    """Tell whether a result is that of an attempt under way."""
    node = None if state.terminal else state.node(result.node_id)
    if node is None or node.status != "scheduled":
        return False
    if result.attempt not in {node.attempt, *node.rivals}:
        return False
    if state.planned(result.node_id).kind not in DISPATCHED:
        return False
    # An earlier attempt that failed beside the current one: that one may still answer.
    return result.error is None or not node.rivals or result.attempt == node.attempt


def _check_clock(state: RunState, command: CheckClock, advice: Advice) -> Turn | None:
    turn = Turn(state, command.at, advice)
    deadline = state.deadline
    if deadline is not None and deadline <= command.at and ROOT not in state.cleanups:
        late = Fault(code="DEADLINE_EXCEEDED", message="the run took longer than its timeout_s")
        turn.end(ROOT, "failed", late)
        return turn.finish()
    for path in _due(state, command.at):
        node = turn.state.node(path)
        if turn.state.status == "running" and node is not None and node.status in TIMED:
            _wake(turn, path, node)
    return turn.finish()


def _due(state: RunState, at: float) -> Iterator[str]:
    """Yield the nodes whose time has come."""
    for path, node in state.active():
        if node.status not in TIMED:
            continue
        hedge_at = state.hedge_at(path, node)
        hedges = hedge_at is not None and hedge_at <= at
        if node.deadline <= at or hedges or state.stalled(path, node):
            yield path


def _wake(turn: Turn, path: str, node: NodeState) -> None:
    planned = turn.state.planned(path)
    if node.status == "waiting":
        turn.schedule(path, planned, node.attempt + 1)
    elif node.deadline > turn.at and node.status == "scheduled":
        turn.schedule(path, planned, node.attempt + 1, hedge=True)
    elif node.deadline > turn.at:
        turn.proceed(path)
    elif node.status == "scheduled" and planned.kind not in DISPATCHED:
        controls.expire(turn, path, planned)
    else:
        message = f"node '{path}' did not answer within its timeout"
        turn.fail(path, Fault(code="DEADLINE_EXCEEDED", message=message, retryable=True))


def _cancel(state: RunState, command: CancelRun, advice: Advice) -> Turn | None:
    if ROOT in state.cleanups:
        return None  # it is ending already
    turn = Turn(state, command.at, advice)
    if state.status == "paused":
        turn.happen(RunResumed(at=command.at))
    turn.end(ROOT, "cancelled", Fault(code="CANCELLED", message=command.reason or "cancelled"))
    return turn.finish()


def _resume(state: RunState, at: float, advice: Advice) -> Turn | None:
    turn = Turn(state, at, advice)
    turn.happen(RunResumed(at=at))
    for scope in (ROOT, *state.scopes):
        turn.advance(scope)
    for path, node in state.active():
        if node.status == "open":
            turn.proceed(path)
        if node.status == "scheduled" and state.planned(path).kind == "signal":
            controls.deliver(turn, state.planned(path).params["name"])
    return turn.finish()


def _signal(state: RunState, command: SignalRun, advice: Advice) -> Turn | None:
    if command.signal_id in state.signal_ids or len(state.signals) >= SIGNALS_MAX:
        return None
    turn = Turn(state, command.at, advice)
    turn.happen(
        SignalReceived(
            at=command.at,
            name=command.name,
            signal_id=command.signal_id,
            payload=command.payload,
        )
    )
    if state.status == "running":
        controls.deliver(turn, command.name)
    return turn.finish()


def _skip(state: RunState, command: SkipNode, advice: Advice) -> Turn | None:
    if not state.is_under_way(command.node_id):
        return None
    node = state.node(command.node_id)
    if node is not None and node.status in DECIDED:
        return None
    turn = _woken(state, command.at, advice, failed=node is not None and node.status == "failed")
    if command.outputs is not None:
        attempt = 1 if node is None else max(1, node.attempt)
        turn.complete(command.node_id, command.outputs, by=BY_HAND, attempt=attempt)
    else:
        reason = command.reason or "skipped by hand"
        turn.happen(NodeSkipped(at=command.at, node_id=command.node_id, reason=reason))
        turn.advance(scope_of(command.node_id))
    return turn.finish()


def _retry(state: RunState, command: RetryNode, advice: Advice) -> Turn | None:
    node = state.node(command.node_id)
    if node is None or node.status not in {"failed", "waiting"}:
        return None
    planned = state.planned(command.node_id)
    turn = _woken(state, command.at, advice, failed=node.status == "failed")
    if planned.gate is not None and node.status == "failed":
        turn.queue(command.node_id, planned)
    elif planned.kind in DISPATCHED:
        turn.schedule(command.node_id, planned, node.attempt + 1)
    else:
        turn.restart(command.node_id, planned)
    return turn.finish()


def _woken(state: RunState, at: float, advice: Advice, *, failed: bool) -> Turn:
    """Return a turn of a run that goes on if it was paused because a node failed."""
    turn = Turn(state, at, advice)
    if failed and state.status == "paused":
        turn.happen(RunResumed(at=at))
        for scope in (ROOT, *state.scopes):
            turn.advance(scope)
    return turn


def _grant(state: RunState, command: GrantNode, advice: Advice) -> Turn | None:
    if not state.is_under_way(command.node_id):
        return None
    turn = Turn(state, command.at, advice)
    turn.grant(command.node_id)
    return turn.finish()


def _expand(state: RunState, command: ExpandNode, advice: Advice) -> Turn | None:
    node = state.node(command.node_id)
    if node is None or node.status != "scheduled" or node.attempt != command.attempt:
        return None
    turn = Turn(state, command.at, advice)
    if command.plan is None:
        error = command.error or Fault(code="INVALID_ARGUMENT", message="no graph")
        turn.fail(command.node_id, error)
    else:
        controls.expand(turn, command.node_id, node, command.plan)
    return turn.finish()

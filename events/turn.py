"""One decision under way: what has happened so far, the state after it, and what is still to do.

A turn takes a run as far as it can go without anybody outside: it begins every node that is ready,
computes what needs no worker, opens and closes scopes. It stops after EVENTS_MAX events; what is
left is then due at once (`RunState.wake_at`), so a loop that needs no worker cannot hold everybody.
"""

from collections import deque
from collections.abc import Iterator
from typing import Literal, Self

from events import controls
from events.catalog import (
    CleanupStarted,
    Event,
    NodeCompleted,
    NodeFailed,
    NodeQueued,
    NodeScheduled,
    NodeSkipped,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunPaused,
    ScopeClosed,
    ScopeOpened,
)
from events.commands import Advice
from events.evolve import evolve
from events.paths import ROOT, is_inside, node_path, outwards, owner_of, scope_of
from events.routes import choose
from events.state import DECIDED, RunState
from events.view import evaluate, look_up, missing_inputs, node_inputs
from schemas.errors import InvalidArgument
from schemas.messages import Fault
from schemas.plan import DISPATCHED, PlanNode
from schemas.values import Wire


EVENTS_MAX = 256
"""Events of one decision, give or take those of one node."""

NOT_TAKEN = "no edge to it was taken"

Verdict = Literal["begin", "skip", "wait"]
Ending = Literal["failed", "cancelled"]


class Turn:
    """Decides and evolves step by step.

    Args:
        state: The run before.
        at: Seconds since the epoch.
        advice: What nobody inside can know: noise, and how the ways to do a node are doing.
    """

    def __init__(self, state: RunState, at: float, advice: Advice = Advice()) -> None:  # noqa: B008
        self.state = state
        self.at = at
        self.advice = advice
        self.events: list[Event] = []
        self._scopes: deque[str] = deque()
        self._owners: deque[str] = deque()

    def is_long(self) -> bool:
        """Tell whether the turn should come to its end."""
        return len(self.events) >= EVENTS_MAX

    def happen(self, event: Event) -> None:
        """Record an event."""
        self.events.append(event)
        self.state = evolve(self.state, event)

    def advance(self, scope: str) -> None:
        """Look later for nodes of a scope that can begin."""
        if scope not in self._scopes:
            self._scopes.append(scope)

    def proceed(self, owner: str) -> None:
        """Look later for how a control node goes on."""
        if owner not in self._owners:
            self._owners.append(owner)

    def finish(self) -> Self:
        """Do all that is to be done."""
        while (self._scopes or self._owners) and self.state.status == "running":
            if self._scopes:
                self._advance(self._scopes.popleft())
            else:
                controls.proceed(self, self._owners.popleft())
        return self

    def complete(
        self, path: str, outputs: Wire | None, *, by: str, worker: str = "", attempt: int = 1
    ) -> None:
        """Complete a node without a worker."""
        self.happen(
            NodeCompleted(
                at=self.at,
                node_id=path,
                attempt=attempt,
                outputs=outputs,
                model=by,
                worker=worker,
            )
        )
        self.advance(scope_of(path))

    def fail(self, path: str, error: Fault) -> None:
        """Let a node's attempt fail: another one follows, or the scope fails with it."""
        planned, node = self.state.planned(path), self.state.node(path)
        attempt = 1 if node is None else max(1, node.attempt)
        retry = planned.retry
        opened = node is not None and node.status == "open"  # its graph failed, no attempt did
        if (
            planned.kind in DISPATCHED
            and not opened
            and retry.retries(error.code, retryable=error.retryable)
            and attempt < retry.max_attempts
        ):
            retry_at = self.at + retry.delay_s(attempt, self.advice.noise)
            self.happen(
                NodeFailed(
                    at=self.at, node_id=path, attempt=attempt, error=error, retry_at=retry_at
                )
            )
            return
        scope = scope_of(path)
        steps = self._cleanup_steps(scope)
        self.happen(NodeFailed(at=self.at, node_id=path, attempt=attempt, error=error))
        if self.state.plan.pause_on_failure and not self._is_caught(scope):
            self.happen(RunPaused(at=self.at, reason=f"node '{path}' failed: {error.message}"))
            return
        self.end(scope, "failed", error, path, steps)

    def end(
        self,
        scope: str,
        ending: Ending,
        error: Fault,
        path: str = "",
        steps: tuple[str, ...] | None = None,
    ) -> None:
        """Let a scope, or the run, fail or be cancelled; what must be undone comes first."""
        steps = self._cleanup_steps(scope) if steps is None else steps
        if not steps:
            self._close(scope, ending, error, path)
            return
        self.happen(
            CleanupStarted(
                at=self.at, scope=scope, ending=ending, node_id=path, error=error, steps=steps
            )
        )
        self._next_step(scope)

    def open(self, scope: str, inputs: Wire) -> None:
        """Begin a scope."""
        self.happen(ScopeOpened(at=self.at, scope=scope, inputs=inputs))
        self.advance(scope)

    def _close(self, scope: str, ending: Ending, error: Fault, path: str) -> None:
        if scope == ROOT:
            if ending == "cancelled":
                self.happen(RunCancelled(at=self.at, reason=error.message))
            else:
                self.happen(RunFailed(at=self.at, node_id=path, error=error))
            return
        parent = self.state.scopes[scope].cleanup_of
        self.happen(ScopeClosed(at=self.at, scope=scope, status="failed", error=error))
        if parent is None:
            self.proceed(owner_of(scope)[0])
        else:
            self._next_step(parent)

    def _next_step(self, scope: str) -> None:
        """Undo the next thing, or end the scope when all is undone."""
        cleanup = self.state.cleanups[scope]
        if not cleanup.steps:
            self._close(scope, cleanup.ending, cleanup.error, cleanup.node_id)
            return
        step = cleanup.steps[0]
        inputs = {"outputs": step.outputs, "error": cleanup.error.model_dump()}
        self.happen(ScopeOpened(at=self.at, scope=step.scope, inputs=inputs, cleanup_of=scope))
        self.advance(step.scope)

    def _cleanup_steps(self, scope: str) -> tuple[str, ...]:
        """Return what must run when a scope ends badly: compensations backwards, then finallys."""
        undo = [item.scope for item in reversed(self.state.undo) if is_inside(item.scope, scope)]
        finallys = [
            f"{path}[finally]"
            for path, node in self.state.active()
            if node.status == "open"
            and is_inside(path, scope)
            and "finally" in self.state.planned(path).bodies
            and node.progress is not None
            and node.progress.phase != "finally"
        ]
        return (*undo, *reversed(finallys))

    def _is_caught(self, scope: str) -> bool:
        """Tell whether a failure in a scope reaches a `catch`."""
        for around in outwards(scope):
            if around == ROOT:
                return False
            owner, label = owner_of(around)
            if label == "body" and "catch" in self.state.planned(owner).bodies:
                return True
        return False

    def _advance(self, scope: str) -> None:
        """Begin what is ready in a scope; close it when everything in it is decided."""
        if not self._goes_on(scope):
            return
        plan = self.state.plan_of(scope)
        for node in plan.nodes:
            if node.id in self.state.nodes_of(scope):
                continue
            verdict = self._verdict(scope, node)
            if verdict == "begin":
                self._begin(scope, node)
            elif verdict == "skip":
                path = node_path(scope, node.id)
                self.happen(NodeSkipped(at=self.at, node_id=path, reason=NOT_TAKEN))
            if not self._goes_on(scope):
                return
        nodes = self.state.nodes_of(scope)
        if all(node.id in nodes and nodes[node.id].status in DECIDED for node in plan.nodes):
            self._scope_done(scope)

    def _goes_on(self, scope: str) -> bool:
        """Tell whether nodes of a scope may begin."""
        if self.state.status != "running" or scope in self.state.cleanups:
            return False
        return scope == ROOT or scope in self.state.scopes

    def _scope_done(self, scope: str) -> None:
        if scope == ROOT:
            self.happen(RunCompleted(at=self.at))
            return
        parent = self.state.scopes[scope].cleanup_of
        if parent is not None:
            self.happen(ScopeClosed(at=self.at, scope=scope, status="completed"))
            self._next_step(parent)
            return
        owner, _ = owner_of(scope)
        try:
            self.happen(controls.closing(self.state, scope, self.at))
        except InvalidArgument as error:
            self.end(scope, "failed", Fault.of(error), owner)
            return
        self.proceed(owner)

    def _verdict(self, scope: str, node: PlanNode) -> Verdict:
        """Tell whether a node begins, is skipped, or waits for its sources."""
        if not node.sources:
            return "begin"
        nodes = self.state.nodes_of(scope)
        taken = open_ = 0
        for source in node.sources:
            known = nodes.get(source)
            if known is None or known.status not in DECIDED:
                open_ += 1
            elif known.status == "completed" and self._is_taken(scope, source, node):
                taken += 1
        if node.join:
            if taken >= node.join:
                return "begin"
            return "skip" if taken + open_ < node.join else "wait"
        if open_:
            return "wait"
        return "begin" if taken else "skip"

    def _is_taken(self, scope: str, source: str, node: PlanNode) -> bool:
        """Tell whether the edge from a completed source is taken."""
        for guard in node.guards:
            if guard.source != source:
                continue
            if guard.case and look_up(self.state, scope, source)["case"] != guard.case:
                return False
            if guard.when and not controls.truth(self.state, scope, guard.when):
                return False
        return True

    def _begin(self, scope: str, node: PlanNode) -> None:
        """Begin a node whose sources are decided."""
        path = node_path(scope, node.id)
        try:
            inputs = node_inputs(self.state, scope, node)
            lacking = ", ".join(missing_inputs(node, inputs))
            if lacking:
                reason = f"its input {lacking} comes from a node that was skipped"
                self.happen(NodeSkipped(at=self.at, node_id=path, reason=reason))
            elif node.gate is not None:
                self.queue(path, node)
            elif node.kind in DISPATCHED:
                self.schedule(path, node, 1)
            else:
                controls.begin(self, path, node, inputs)
        except InvalidArgument as error:
            self.fail(path, Fault.of(error))

    def queue(self, path: str, node: PlanNode) -> None:
        """Let a node wait for its turn.

        Raises:
            InvalidArgument: Its key cannot be computed, or is no text and no number.
        """
        assert node.gate is not None
        key = evaluate(self.state, scope_of(path), node.gate.key)
        if isinstance(key, bool) or not isinstance(key, str | int | float):
            raise InvalidArgument(f"node '{node.id}': its concurrency key is no text or number")
        self.happen(NodeQueued(at=self.at, node_id=path, key=str(key), limit=node.gate.limit))

    def grant(self, path: str) -> None:
        """Begin a node whose turn it is."""
        node, planned = self.state.node(path), self.state.planned(path)
        if node is None or node.status != "queued" or not self._goes_on(scope_of(path)):
            return
        if planned.kind in DISPATCHED:
            self.schedule(path, planned, node.attempt + 1)
        else:
            self.restart(path, planned)

    def _deadlines_around(self, path: str) -> Iterator[float]:
        """Yield the deadlines of what a node is a part of: control nodes under way, and the run."""
        for around in outwards(scope_of(path)):
            if around != ROOT:
                owner = self.state.node(owner_of(around)[0])
                if owner is not None and owner.status == "open":
                    yield owner.deadline
        if self.state.deadline is not None and ROOT not in self.state.cleanups:
            yield self.state.deadline

    def restart(self, path: str, node: PlanNode) -> None:
        """Begin a control node that failed once more."""
        try:
            inputs = node_inputs(self.state, scope_of(path), node)
            controls.begin(self, path, node, inputs)
        except InvalidArgument as error:
            self.fail(path, Fault.of(error))

    def schedule(
        self,
        path: str,
        node: PlanNode,
        attempt: int,
        *,
        timeout_s: float = 0.0,
        hedge: bool = False,
    ) -> None:
        """Schedule an attempt of a node, or a wait."""
        deadline = self.at + (timeout_s or node.attempt_s)
        deadline = min([deadline, *self._deadlines_around(path)])
        before = self.state.node(path)
        tried = before.tried if before is not None else ()
        self.happen(
            NodeScheduled(
                at=self.at,
                node_id=path,
                attempt=attempt,
                deadline=deadline,
                route=choose(node, self.advice.health, tried),
                hedge=hedge,
            )
        )

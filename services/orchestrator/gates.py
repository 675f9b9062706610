"""Lets nodes with a concurrency key begin when it is their turn.

The log says that a node is queued, and later that it began; the gate says whose turn it is. Between
the two a process may die, so gates are compared with the logs now and then.
"""

import asyncio
from collections.abc import Awaitable, Callable

from events.catalog import NodeQueued, RunResumed
from events.gates import Gate, GateStore, Place, gate_id
from events.state import NodeState, RunState
from events.subjects import RunKey
from schemas.errors import ClawdbotError, NotFound
from services.orchestrator.runs import Decision
from services.runtime import Clock
from services.telemetry import get_logger


log = get_logger()

CHECK_S = 5.0
"""How often gates are compared with the logs; what is younger is left alone."""
Turn = tuple[RunKey, str]
"""A node whose turn it is."""


class Gates:
    """Goes through the gates what decisions queued, and out of them what is over."""

    def __init__(self, store: GateStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def pass_through(self, key: RunKey, decision: Decision, *, stale: bool) -> list[Turn]:
        """Return the nodes, of this run and of others, that may begin after a decision.

        Raises:
            RetryableError: The gates do not answer, or too many wait.
        """
        turns: list[Turn] = []
        for name, path in decision.freed:
            turns += await self.leave(key, gate_id(name), path)
        for path, node in _queued(decision, stale=stale):
            place = Place(run_id=key.run_id, path=path, since=self._clock.now())
            change = await self._store.change(
                key.tenant,
                gate_id(node.gate),
                lambda gate, place=place, node=node: gate.entered(place, node.limit),  # type: ignore[misc]
            )
            if change.after.has(key.run_id, path):
                turns.append((key, path))
        return turns

    async def leave(self, key: RunKey, name: str, path: str) -> list[Turn]:
        """Take a node out of a gate; return those that may begin instead."""
        now = self._clock.now()
        change = await self._store.change(
            key.tenant, name, lambda gate: gate.left(key.run_id, path, now)
        )
        return [(RunKey(key.tenant, place.run_id), place.path) for place in change.admitted]

    async def check(self, state_of: Callable[[RunKey], Awaitable[RunState | None]]) -> list[Turn]:
        """Compare the gates with the logs; return the nodes that may begin.

        Raises:
            RetryableError: The gates or the log do not answer.
        """
        turns: list[Turn] = []
        for tenant, name, gate in await self._store.all():
            for place in (*gate.inside, *gate.waiting):
                if self._clock.now() - place.since >= CHECK_S:
                    key = RunKey(tenant, place.run_id)
                    turns += await self._look(key, name, gate, place, state_of)
        return turns

    async def _look(
        self,
        key: RunKey,
        name: str,
        gate: Gate,
        place: Place,
        state_of: Callable[[RunKey], Awaitable[RunState | None]],
    ) -> list[Turn]:
        try:
            state = await state_of(key)
        except NotFound:
            state = None  # retired
        node = None if state is None or state.terminal else state.node(place.path)
        if node is None or not node.is_busy:
            log.info("gate_mended", run_id=key.run_id, node_id=place.path)
            return await self.leave(key, name, place.path)
        may_begin = node.status == "queued" and gate.has(place.run_id, place.path)
        return [(key, place.path)] if may_begin else []


async def check_for_ever(check: Callable[[], Awaitable[None]]) -> None:
    """Compare gates with logs again and again."""
    while True:
        await asyncio.sleep(CHECK_S)
        try:
            await check()
        except ClawdbotError as error:
            log.info("gates_postponed", error=error.message)


def _queued(decision: Decision, *, stale: bool) -> list[tuple[str, NodeState]]:
    """Return the nodes that a decision queued; all that are queued where it may be told again."""
    state = decision.state
    if state is None or state.terminal:
        return []
    every = stale and not decision.events
    every = every or any(isinstance(event, RunResumed) for event in decision.events)
    fresh = {event.node_id for event in decision.events if isinstance(event, NodeQueued)}
    if not every and not fresh:
        return []
    return [
        (path, node)
        for path, node in state.active()
        if node.status == "queued" and (every or path in fresh)
    ]

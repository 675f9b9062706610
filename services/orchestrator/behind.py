"""Commits that follow their decisions, for workflows whose mode lets effects lead the log.

The decisions of one run are stored in their order; those that come while a commit is under way are
stored together as the next one.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from events.catalog import Event
from events.state import RunState
from schemas.errors import ClawdbotError, VersionConflict
from schemas.ids import new_id
from services.consumer import held
from services.telemetry import get_logger


log = get_logger()

DECISIONS_MAX = 16
"""Decisions in one commit; each brings at most what fits into a commit of its own."""


@dataclass(frozen=True)
class Decided:
    """What was decided, as it is going to be stored."""

    events: list[Event]
    state: RunState
    """After the events."""
    traceparent: str
    commit_id: str = field(default_factory=new_id)


class Behind:
    """The decisions of one run that wait to be stored.

    Args:
        store: Stores a commit; called again with the same one while the log is away.
    """

    def __init__(self, store: Callable[[Decided], Awaitable[None]]) -> None:
        self._store = store
        self._queue: list[tuple[Decided, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._newest: asyncio.Future[None] | None = None

    @property
    def pending(self) -> "asyncio.Future[None] | None":
        """What `add` returned last, unless that is stored, or given up, already."""
        return None if self._newest is None or self._newest.done() else self._newest

    @property
    def is_busy(self) -> bool:
        """Whether something is not stored yet."""
        return self._writing is not None and not self._writing.done()

    def add(self, decided: Decided) -> "asyncio.Future[None]":
        """Take a decision; the future tells when it is stored.

        It fails with VersionConflict if another process was first, DataLoss if the log is altered.
        """
        stored = self._newest = asyncio.get_running_loop().create_future()
        self._queue.append((decided, stored))
        if not self.is_busy:
            self._writing = asyncio.ensure_future(self._write())  # outlives a cancelled service
        return stored

    async def drained(self) -> None:
        """Return when everything is stored, or given up."""
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def _write(self) -> None:
        while self._queue:
            batch, self._queue = self._queue[:DECISIONS_MAX], self._queue[DECISIONS_MAX:]
            events = [event for decided, _ in batch for event in decided.events]
            newest, _ = batch[-1]
            try:
                merged = Decided(events, newest.state, newest.traceparent)
                await held(partial(self._store, merged), "commit_held")
            except ClawdbotError as error:
                lost = [stored for _, stored in (*batch, *self._queue)]
                self._queue = []
                _give_up(lost, error)
                return
            for _, stored in batch:
                if not stored.done():  # else whoever waited was cancelled
                    stored.set_result(None)


def _give_up(lost: "list[asyncio.Future[None]]", error: ClawdbotError) -> None:
    say = log.info if isinstance(error, VersionConflict) else log.error
    say("decisions_given_up", count=len(lost), error=error.message)
    for stored in lost:
        if not stored.done():
            stored.set_exception(error)
            stored.exception()  # nobody may be waiting for it

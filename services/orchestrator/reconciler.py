"""Puts back what the server's memory lost, and lets time pass for waiting runs."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from events.index import RunIndex
from events.subjects import RunKey
from schemas.errors import ClawdbotError, RetryableError
from services.orchestrator.handlers import Handlers
from services.runtime import Bus, Clock, Outgoing
from services.telemetry import get_logger


log = get_logger()

CONCURRENT_MAX = 32
WATCH_INTERVAL_S = 0.5


class Reconciler:
    """Rebuilds TASKS from the log whenever the streams in memory are new.

    Args:
        bus: Makes streams, tells when they were made, publishes.
        index: Knows the unfinished runs and when each must be looked at.
        handlers: Know what a run needs.
        clock: Tells what is due.
        interval_s: How often due runs are looked for.
    """

    def __init__(
        self, bus: Bus, index: RunIndex, handlers: Handlers, clock: Clock, interval_s: float
    ) -> None:
        self._bus = bus
        self._index = index
        self._handlers = handlers
        self._clock = clock
        self._interval_s = interval_s
        self._generation = ""
        self._refused: set[RunKey] = set()
        """Due runs that cannot be mended by trying again; the next `reconcile` looks at them."""
        self._owed: set[RunKey] = set()
        """Runs whose decided tasks could not be published yet."""

    async def watch(self) -> None:
        """Reconcile now, and again whenever the memory streams were made anew."""
        while True:
            try:
                generation = await self._bus.generation()
                if generation != self._generation:
                    count = await self.reconcile()
                    self._generation = generation
                    log.info("reconciled", runs=count)
            except ClawdbotError as error:
                log.info("reconcile_postponed", error=error.message)
            await self._bus.changed(WATCH_INTERVAL_S)

    async def reconcile(self) -> int:
        """Publish the open tasks of every unfinished run; return how many runs there are.

        Those that moved last come first: of many runs most only wait.
        """
        keys = self._index.unfinished()
        self._refused.clear()
        failures: list[ClawdbotError] = []
        left = iter(keys)

        async def republish() -> None:
            for key in left:
                try:
                    await self._bus.publish(await self._handlers.republish(key))
                except ClawdbotError as error:
                    failures.append(error)

        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENT_MAX):
                group.create_task(republish())
        for failure in failures:
            if failure.retryable:
                raise failure
            log.error("run_refused", error=failure.message, **failure.context)
        return len(keys)

    async def tick(self) -> None:
        """Look for runs whose time has come, for ever."""
        while True:
            await asyncio.sleep(self._interval_s)
            for key in [*self._owed]:
                await self._try(key, self._handlers.republish)
            for key in self._index.due(self._clock.now()):
                if key not in self._refused:
                    await self._try(key, self._handlers.check_clock)

    async def _try(
        self, key: RunKey, handle: Callable[[RunKey], Awaitable[Sequence[Outgoing]]]
    ) -> None:
        """Publish what a run needs; what was decided and could not be published is owed."""
        try:
            await self._bus.publish(await handle(key))
            self._owed.discard(key)
        except RetryableError as error:
            self._owed.add(key)
            log.info("clock_postponed", run_id=key.run_id, error=error.message)
        except ClawdbotError as error:
            self._owed.discard(key)
            self._refused.add(key)
            log.warning("run_refused", run_id=key.run_id, error=error.message, **error.context)

"""Reads every run again after the log was in doubt, and from time to time: is it whole?

What changes a log without changing its end is seen nowhere else: a flipped bit, a lost file of old
commits. A damaged run raises the alarm and loses its snapshot and its cached state, so whoever
writes to it next has to read it, and is refused.
"""

import asyncio
import contextlib
from dataclasses import dataclass

from events.index import RunIndex
from events.retention import Stores
from events.subjects import RunKey
from events.verify import verify
from schemas.errors import ClawdbotError, DataLoss
from services.orchestrator.history import HistoryWatch
from services.orchestrator.runs import Runs
from services.runtime import Clock
from services.telemetry import get_logger


log = get_logger()

BATCH = 10
"""Runs verified at the same time."""
LOOKS = 3
"""A run must look damaged so often, LOOK_AGAIN_S apart."""
LOOK_AGAIN_S = 0.5


@dataclass(frozen=True)
class Pace:
    """How fast and how often runs are verified."""

    runs_per_s: int
    interval_s: float
    """From one pass to the next while the log is not in doubt."""


class Verifier:
    """Verifies runs, the newest first, at a steady pace.

    Args:
        history: Says when the log was in doubt; takes the alarms.
        index: Knows which runs there are, and how many commits each had.
        stores: The log, and the snapshots of which damaged runs lose theirs.
        runs: Forgets damaged runs.
        clock: Tells how long a pass took.
        pace: How fast and how often.
    """

    def __init__(
        self,
        history: HistoryWatch,
        index: RunIndex,
        stores: Stores,
        runs: Runs,
        clock: Clock,
        pace: Pace,
    ) -> None:
        self._history = history
        self._index = index
        self._stores = stores
        self._runs = runs
        self._clock = clock
        self._pace = pace
        self._verified = 0
        """The opening of the gate after which every run was verified."""

    @property
    def intact(self) -> bool:
        """Whether every run was verified since the log was in doubt last, and none is damaged."""
        current = self._verified == self._history.openings
        return current and not self._history.damaged_runs

    async def run(self) -> None:
        """Verify all runs, again and again, for ever."""
        while True:
            await self._history.sound()
            opening, begun = self._history.openings, self._clock.now()
            count = await self._pass()
            self._verified = opening
            log.info(
                "history_verified",
                runs=count,
                damaged=self._history.damaged_runs,
                took_s=round(self._clock.now() - begun, 3),
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.interval_s):
                    await self._history.reopened(opening)

    async def _pass(self) -> int:
        """Verify all runs once; return how many there were."""
        count, last = 0, None
        while batch := self._index.backwards(last, BATCH):
            await self._history.sound()
            async with asyncio.TaskGroup() as group:
                for key in batch:
                    group.create_task(self._verify(key))
            count, last = count + len(batch), batch[-1]
            await asyncio.sleep(BATCH / self._pace.runs_per_s)
        return count

    async def _verify(self, key: RunKey) -> None:
        try:
            await self._look(key)
        except ClawdbotError as error:
            log.info("verification_postponed", run_id=key.run_id, error=error.message)

    async def _look(self, key: RunKey) -> None:
        reason = ""
        for look in range(LOOKS):
            if look:
                await asyncio.sleep(LOOK_AGAIN_S)
                await self._history.sound()
            try:
                await verify(self._stores.log, key, self._index.commits(key))
            except DataLoss as error:
                reason = error.message
            else:
                self._history.whole(key)
                return
        self._history.damaged(key, reason)
        self._runs.forget(key)
        await self._stores.snapshots.delete(key)

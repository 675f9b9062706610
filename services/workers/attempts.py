"""The attempts under way in a worker, and those that nobody waits for any more."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from events.subjects import RunKey
from schemas.messages import Abandoned, Task
from services.runtime import Clock


ABANDONED_MAX = 100_000
"""Abandoned attempts that a worker remembers; the oldest are forgotten, and would be computed."""

Reason = Literal["cancelled", "late"]
_Id = tuple[str, str, str, int]


class Stopped(Exception):
    """An attempt was stopped: nobody waits for its result.

    Args:
        reason: `cancelled`, or `late`: past its deadline.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class Attempts:
    """Knows what runs here; stops what nobody waits for.

    Args:
        clock: Tells which deadlines are past.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._running: dict[_Id, asyncio.Timeout] = {}
        self._abandoned: OrderedDict[_Id, None] = OrderedDict()

    def abandon(self, key: RunKey, abandoned: Abandoned) -> None:
        """Stop attempts that are under way, and remember those that may still come."""
        for path, number in abandoned.attempts:
            attempt = (key.tenant, key.run_id, path, number)
            self._abandoned[attempt] = None
            scope = self._running.get(attempt)
            if scope is not None and not scope.expired():
                scope.reschedule(asyncio.get_running_loop().time())
        while len(self._abandoned) > ABANDONED_MAX:
            self._abandoned.popitem(last=False)

    @asynccontextmanager
    async def under_way(self, task: Task) -> AsyncIterator[threading.Event]:
        """Work on a task within its time, unless it is called off; yields the sign to stop.

        Raises:
            Stopped: Nobody waits for it any more.
        """
        attempt = (task.tenant, task.run_id, task.node_id, task.attempt)
        left_s = task.deadline - self._clock.now()
        if attempt in self._abandoned:
            raise Stopped("cancelled")
        if left_s <= 0:
            raise Stopped("late")
        sign = threading.Event()
        scope = asyncio.timeout(left_s)
        try:
            async with scope:
                self._running[attempt] = scope
                yield sign
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise Stopped("cancelled" if attempt in self._abandoned else "late") from error
        finally:
            sign.set()
            self._running.pop(attempt, None)

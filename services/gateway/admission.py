"""Who may begin: no new run while the log has room for those under way alone, or stores nothing."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from events.streams import EVENTS
from schemas.errors import BusUnavailable, StoreFull, Unavailable
from services.runtime import Bus
from services.telemetry import get_logger


WATCH_INTERVAL_S = 1.0
RETRY_S = 0.5
"""Between the end of a submission that was not stored in time and the next one that may try."""
log = get_logger()


@dataclass
class Admission:
    """Watches how full the log is.

    Args:
        reserve: The part of it that is kept for runs under way, in [0, 1).
    """

    reserve: float
    free: float = 1.0
    """The part of the log that is free, as seen last."""
    _stuck_until: float | None = None
    """When the next one may try, by the loop's time; nothing is stuck when it is None."""
    _trying: bool = False

    def check(self) -> None:
        """Let a new run begin.

        Raises:
            StoreFull: Only the reserve is left.
        """
        if self.free <= self.reserve:
            raise StoreFull("the event log is full; free space or raise CLAWDBOT_EVENTS_BYTES_MAX")

    @contextlib.contextmanager
    def storing(self) -> Iterator[None]:
        """Store a submission inside this: once one was not stored in time, one at a time tries.

        All others are refused at once, rather than each waiting for what the last one waited for.

        Raises:
            BusUnavailable: Others found that nothing is stored, and one tries again.
        """
        now = asyncio.get_running_loop().time
        if self._stuck_until is not None:
            if self._trying or now() < self._stuck_until:
                raise BusUnavailable("the bus stores nothing at the moment; try again")
            self._trying = True
        try:
            yield
        except Unavailable:
            self._stuck_until, self._trying = now() + RETRY_S, False
            raise
        except asyncio.CancelledError:
            self._trying = False
            raise
        except BaseException:
            self._stuck_until, self._trying = None, False
            raise
        self._stuck_until, self._trying = None, False

    async def watch(self, bus: Bus) -> None:
        """Look again and again, for ever."""
        while True:
            try:
                free = await bus.free(EVENTS)
            except BusUnavailable:
                free = self.free  # whoever submits is told so anyway
            if (free <= self.reserve) != (self.free <= self.reserve):
                log.warning("log_full" if free <= self.reserve else "log_has_room", free=free)
            self.free = free
            await asyncio.sleep(WATCH_INTERVAL_S)

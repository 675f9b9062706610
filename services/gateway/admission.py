"""Who may begin: no new run once the log has only room for those under way."""

import asyncio
from dataclasses import dataclass

from events.streams import EVENTS
from schemas.errors import BusUnavailable, StoreFull
from services.runtime import Bus
from services.telemetry import get_logger


WATCH_INTERVAL_S = 1.0
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

    def check(self) -> None:
        """Let a new run begin.

        Raises:
            StoreFull: Only the reserve is left.
        """
        if self.free <= self.reserve:
            raise StoreFull("the event log is full; free space or raise CLAWDBOT_EVENTS_BYTES_MAX")

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

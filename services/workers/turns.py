"""Whose turn it is: a lock that goes to the most urgent one that waits."""

import asyncio
import heapq
from itertools import count


class Turn:
    """A lock; among those that wait the lowest rank is next, then the one that came first."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._serial = count()

    async def acquire(self, rank: int = 0) -> None:
        """Wait for the turn."""
        if not self._taken:
            self._taken = True
            return
        mine = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (rank, next(self._serial), mine))
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self.release()  # it was ours already
            raise

    def release(self) -> None:
        """Give the turn to the next one."""
        while self._waiting:
            _, _, other = heapq.heappop(self._waiting)
            if not other.done():
                other.set_result(None)
                return
        self._taken = False

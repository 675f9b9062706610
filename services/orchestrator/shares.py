"""Lets each tenant have its share of a pool's queue: about a second of work, however much it asks.

What is held is decided and in the log; here it only waits for room (ADR-0020).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from events.subjects import LANES, every_task, lane_of, pool_of
from schemas.errors import ClawdbotError
from schemas.messages import Header
from services.runtime import Outgoing
from services.telemetry import HELD, get_logger


log = get_logger()

LOOK_S = 0.02
"""Between two looks at how many of a tenant's tasks wait."""
WEIGHT = 0.3
"""Of the newest look in the moving average of how fast they are done."""
HELD_BYTES_MAX = 256 * 1024 * 1024
"""What is held in all; more goes into the queue, shares or not."""
QUEUES_MAX = 4096
"""Tenants and pools that are remembered while they hold nothing."""

Pool = tuple[str, str, str]
"""Tenant, modality, pool."""


@dataclass
class Queue:
    """A tenant's tasks for one pool, as seen from here."""

    counted: int = 0
    """In the queue at the last look."""
    sent: int = 0
    """Published since, and acknowledged."""
    fresh: int = 0
    """Admitted since, and maybe not yet published: they say nothing of how fast work is done."""
    looked_at: float = 0.0
    rate: float = 0.0
    """Done in a second, moving average."""
    held: tuple[OrderedDict[str, Outgoing], ...] = field(
        default_factory=lambda: tuple(OrderedDict() for _ in LANES)
    )
    """By lane and message id."""

    @property
    def holds(self) -> bool:
        """Whether anything waits for room."""
        return any(self.held)

    def learn(self, counted: int, now: float) -> None:
        """Take a look into account.

        Args:
            counted: Tasks in the queue now.
            now: Seconds of a steady clock.
        """
        done = max(0, self.counted + self.sent - counted)
        rate = done / max(now - self.looked_at, LOOK_S)
        if counted:
            self.rate += WEIGHT * (rate - self.rate)
        else:
            self.rate = max(self.rate, rate)  # all is done: they could have done more
        self.counted, self.sent, self.fresh, self.looked_at = counted, 0, 0, now

    def take(self) -> Outgoing | None:
        """Return what is next, the most urgent lane first."""
        for lane in self.held:
            if lane:
                return lane.popitem(last=False)[1]
        return None


class Shares:
    """Decides which tasks go into the queue now.

    Args:
        count: Returns how many messages TASKS holds on subjects that match a filter.
        publish: Publishes tasks.
        now: A steady clock, seconds.
        share_s: How much work of one tenant may wait in a pool's queue, seconds.
        tasks_min: Tasks that may wait whatever the pool does; of one tenant in one pool.
    """

    def __init__(
        self,
        count: Callable[[str], Awaitable[int]],
        publish: Callable[[Sequence[Outgoing]], Awaitable[None]],
        now: Callable[[], float],
        *,
        share_s: float,
        tasks_min: int,
    ) -> None:
        self._count = count
        self._publish = publish
        self._now = now
        self._share_s = share_s
        self._tasks_min = tasks_min
        self._queues: OrderedDict[Pool, Queue] = OrderedDict()
        self._held_bytes = 0
        self._wanted = asyncio.Event()

    def admits(self, task: Outgoing) -> bool:
        """Tell whether a task may go into the queue now; else it is kept and goes later."""
        queue = self._queue(pool_of(task.subject))
        has_room = not queue.holds and self._room(queue) > 0
        if has_room or self._held_bytes + len(task.data) > HELD_BYTES_MAX:
            queue.fresh += 1
            return True
        lane = queue.held[LANES.index(lane_of(task.subject))]
        name = task.headers[Header.MSG_ID]
        if name not in lane:  # asked for again while it waits
            lane[name] = task
            self._count_held(task, 1)
        self._wanted.set()
        return False

    async def run(self) -> None:
        """Let go what is held as room comes, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while waiting := [item for item in self._queues.items() if item[1].holds]:
                for pool, queue in waiting:
                    await self._let_go(pool, queue)
                await asyncio.sleep(LOOK_S)

    async def _let_go(self, pool: Pool, queue: Queue) -> None:
        taken: list[Outgoing] = []
        try:
            queue.learn(await self._count(every_task(*pool)), self._now())
            for _ in range(max(0, self._room(queue))):
                task = queue.take()
                if task is None:
                    break
                taken.append(task)
            await self._publish(taken)
            queue.sent += len(taken)
        except ClawdbotError as error:
            log.info("shares_postponed", error=error.message)
            for task in reversed(taken):
                lane = queue.held[LANES.index(lane_of(task.subject))]
                lane[task.headers[Header.MSG_ID]] = task
                lane.move_to_end(task.headers[Header.MSG_ID], last=False)
            return
        for task in taken:
            self._count_held(task, -1)

    def _room(self, queue: Queue) -> int:
        share = max(self._tasks_min, int(queue.rate * self._share_s))
        return share - queue.counted - queue.sent - queue.fresh

    def _count_held(self, task: Outgoing, change: int) -> None:
        self._held_bytes += change * len(task.data)
        HELD.inc(change)

    def _queue(self, pool: Pool) -> Queue:
        queue = self._queues.get(pool)
        if queue is None:
            queue = self._queues[pool] = Queue(looked_at=self._now())
            oldest, other = next(iter(self._queues.items()))
            if len(self._queues) > QUEUES_MAX and not other.holds:
                del self._queues[oldest]
        return queue

"""Takes up submissions: in the order they came, and by fair shares while more wait than is due.

The queue is one consumer, first come first served, and costs nothing more while few wait. When
many do, others are behind them whom the consumer does not see: they are read by their subjects,
handled, and deleted (ADR-0060).
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field

from events.definitions import DefinitionStore
from events.documents import SharedDocument
from events.express import Frame
from events.jetstream import read_subject
from events.streams import COMMANDS, CURSORS
from events.subjects import DEFAULT_LANE, every, tenant_and_name
from schemas.errors import ClawdbotError, NotFound, VersionConflict
from schemas.message import Message
from services.consumer import Consumer, Pull
from services.orchestrator.turns import Turns
from services.picking import Picker
from services.runtime import Bus, Clock, Delivery, Handler, Outgoing
from services.telemetry import OVERTOOK, get_logger


log = get_logger()

LOOK_S = 0.05
"""Longest time between two looks at who waits, while many do and nobody is to be let past."""
PATIENCE_S = 0.5
"""Before the next look when one failed."""
PICKED_FLOWS_MAX = 8
"""Workflows whose submissions are let past at the same time."""
LOOKED_UP_MAX = 32
"""Workflows whose priority is looked up in one look."""
HEAD = 64
"""Deliveries that tell who is at the head of the queue."""


class Cursor(Message):
    """How far the submissions of one subject were taken, by whichever orchestrator."""

    after: int
    """Sequence of the last one."""
    began: float
    """When the first one was, seconds since the epoch: older ones may have been lost with who
    took them."""


@dataclass(frozen=True)
class FairShare:
    """When submissions are let past others, and how many.

    Args:
        backlog_min: Submissions that wait, from which on it matters.
        weights: Of tenants; 1 for one that is not named.
    """

    backlog_min: int = 256
    weights: Mapping[str, float] = field(default_factory=dict)


class Backlog:
    """The queue of submissions.

    Args:
        bus: Where they are.
        pull: How they are pulled.
        handle: Starts a run; may get the same submission again.
        definitions: Know the workflows' priorities.
        clock: Tells when what another orchestrator took may be taken again.
        share: When it matters.
    """

    def __init__(
        self,
        bus: Bus,
        pull: Pull,
        handle: Handler,
        definitions: DefinitionStore,
        clock: Clock,
        share: FairShare,
    ) -> None:
        self._bus = bus
        self._pull = pull
        self._handle = handle
        self._definitions = definitions
        self._clock = clock
        self._share = share
        self._queue = Consumer(bus.nc, pull, self._next)
        self._picker = Picker(bus.nc, pull, handle)
        self._batch = max(1, pull.in_flight_max // PICKED_FLOWS_MAX)
        self._turns = self._fresh_turns()
        self._head: deque[str] = deque(maxlen=HEAD)
        self._left = 0
        """Waiting behind the last delivery."""
        self._reached = 0
        """Sequence of the last submission that came in its order."""
        self._since_look = 0
        self._is_long = asyncio.Event()
        self._is_due = asyncio.Event()

    async def run(self) -> None:
        """Take up submissions until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._queue.run())
            group.create_task(self._share_out())

    def _next(self, delivery: Delivery) -> Awaitable[Sequence[Outgoing]]:
        """Handle a submission whose turn it is, and take note of it while many wait."""
        if delivery.left >= self._share.backlog_min or self._is_long.is_set():
            self._left = delivery.left
            self._reached = max(self._reached, delivery.sequence)
            self._head.append(delivery.subject)
            self._turns.began(delivery.subject)
            self._since_look += 1
            if self._since_look >= self._pull.in_flight_max // 2:
                self._is_due.set()
            if not self._is_long.is_set():
                self._is_long.set()
                self._queue.widen(self._batch)  # until it is known who else waits
        return self._handle(delivery)

    async def _share_out(self) -> None:
        """Let others past whoever floods the queue, for ever."""
        while True:
            await self._is_long.wait()
            try:
                taken = await self._look()
            except ClawdbotError as error:
                log.info("turns_postponed", error=error.message)
                self._queue.widen(self._pull.in_flight_max)
                await asyncio.sleep(PATIENCE_S)
                continue
            if not taken:
                self._queue.widen(self._pull.in_flight_max)
                await self._went_on()

    async def _went_on(self) -> None:
        """Return when the queue went on for so long, or by so much, that it is worth a look."""
        self._since_look = 0
        self._is_due.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._is_due.wait()

    async def _look(self) -> bool:
        """See who waits and let past who had less than its share; tell whether anybody was."""
        counts = await self._bus.waiting(COMMANDS, every("submit", "*"))
        waiting = self._queue.deliveries(sum(counts.values()))
        if min(waiting, self._left) < self._share.backlog_min:
            self._turns = self._fresh_turns()
            self._head.clear()
            self._is_long.clear()
            return False
        self._turns.waiting(counts)
        chosen = self._turns.behind(self._head, PICKED_FLOWS_MAX)
        if chosen:
            self._queue.widen(0)
            self._queue.step()  # so that its head moves, whatever comes
        async with asyncio.TaskGroup() as group:
            for subject in self._turns.unknown(counts)[:LOOKED_UP_MAX]:
                group.create_task(self._look_up(subject))
            picks = [group.create_task(self._let_past(*choice)) for choice in chosen]
        return any(pick.result() for pick in picks)

    async def _look_up(self, subject: str) -> None:
        """Learn the priority of a workflow, for the next look."""
        try:
            workflow = await self._definitions.newest(*tenant_and_name(subject))
            self._turns.has_lane(subject, workflow.definition.priority)
        except NotFound:
            self._turns.has_lane(subject, DEFAULT_LANE)
        except ClawdbotError as error:
            log.info("turn_postponed", subject=subject, error=error.message)

    async def _let_past(self, subject: str, due: int) -> bool:
        """Take up the oldest submissions of a subject before their turn; tell whether any were.

        If another orchestrator takes them at this moment, that is as good.
        """
        try:
            count = await self._pick(subject, min(due, self._batch))
        except VersionConflict:
            return True
        except ClawdbotError as error:
            log.info("turn_postponed", subject=subject, error=error.message)
            count = 0
        # One whose submissions are all in work elsewhere is having its turn.
        self._turns.began(subject, max(1, count))
        OVERTOOK.inc(count)
        return count > 0

    async def _pick(self, subject: str, count: int) -> int:
        cursors = SharedDocument(self._bus.nc, ".".join(tenant_and_name(subject)), CURSORS)
        stored, revision = await cursors.read()
        cursor = Cursor.model_validate_json(stored) if stored else None
        now = self._clock.now()
        if cursor is None or now - cursor.began > self._pull.ack_wait_s:
            cursor = Cursor(after=0, began=now)
        start = max(cursor.after, self._reached) + 1
        found = await read_subject(self._bus.nc, COMMANDS, subject, start=start, limit=count)
        frames: list[Frame] = []
        taken, last = 0, 0
        for message, (frame, size) in zip(found, self._picker.opened(found), strict=True):
            if taken < count:
                frames.append(frame)
                taken, last = taken + size, message.sequence
        if not frames:
            return 0
        moved = cursor.model_copy(update={"after": last})
        if not await cursors.replace(moved.model_dump_json().encode(), revision):
            raise VersionConflict("another orchestrator was faster")
        await self._picker.pick(frames)
        return taken

    def _fresh_turns(self) -> Turns:
        return Turns(self._share.weights, self._batch)

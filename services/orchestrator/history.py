"""Whether the log is still the one that was seen: no decision is made on one that is not.

The gate is shut at the start and whenever the bus is lost, and opens when the log does not
contradict the high-water marks (`events.marks`). While it is shut, the desk waits: submissions and
results stay in their queues. A contradiction that lasts is an alarm, told to every orchestrator
through the shared marks; it ends when the right log is back, or when an operator accepts this one.
"""

import asyncio
import contextlib
from dataclasses import replace

from events.index import RunIndex
from events.marks import (
    Marks,
    MarksFile,
    PartHead,
    contradiction,
    observe,
    read_shared,
    replace_shared,
)
from events.store import Head
from events.subjects import RunKey, part
from schemas.errors import ClawdbotError, DataLoss
from services.runtime import Bus
from services.telemetry import HISTORY_REGRESSED, get_logger


log = get_logger()

MARK_INTERVAL_S = 1.0
"""How far the written marks may lag behind the log."""
CONFIRM_S = 1.0
CONFIRMATIONS = 3
"""So many times in a row, CONFIRM_S apart, the log contradicts the marks before it is an alarm."""
RETRY_S = 0.25
DAMAGED_MAX = 10_000
"""Damaged runs that are remembered."""
ALARMS_MAX = 100
"""Damaged runs that get a log line of their own."""


class HistoryAccepted(Exception):
    """An operator accepted another history: everything that was read must be read again."""


class HistoryWatch:
    """Watches the log and keeps the marks.

    Args:
        bus: Tells when it was lost.
        index: Sees every commit, whoever wrote it.
        file: Where this orchestrator keeps its own marks.
        interval_s: How often the log is examined while nothing happens.
    """

    def __init__(self, bus: Bus, index: RunIndex, file: MarksFile, interval_s: float) -> None:
        self._bus = bus
        self._index = index
        self._file = file
        self._interval_s = interval_s
        self._marks: Marks | None = None
        self._written: Marks | None = None
        self._own: dict[int, PartHead] = {}
        self._gate = asyncio.Event()
        self._reopened = asyncio.Event()
        self._judged = asyncio.Event()
        self._doubted = asyncio.Event()
        self._suspicions = 0
        self._damaged: set[RunKey] = set()
        self.openings = 0
        """How often the gate has opened: the log was in doubt before each."""
        HISTORY_REGRESSED.labels("runs").set(0)
        bus.when_lost(self._doubt)

    # ------------------------------------------------------------ what the desk asks and tells

    async def sound(self) -> None:
        """Return when the log may be trusted; at once, as a rule."""
        await self._gate.wait()

    async def judged(self) -> bool:
        """Wait for the first judgement; tell whether the log is trusted."""
        await self._judged.wait()
        return self._gate.is_set()

    async def reopened(self, opening: int) -> None:
        """Return when the gate has opened once more since its opening of this number."""
        while self.openings == opening:
            await self._reopened.wait()

    def saw(self, key: RunKey, head: Head) -> None:
        """Take note of a commit that was stored; costs next to nothing."""
        if not self._gate.is_set():
            return  # it may have gone into another log than the one that was seen
        self._own[part(key.run_id)] = PartHead(key.tenant, key.run_id, head.sequence, head.digest)

    def damaged(self, key: RunKey, reason: str) -> None:
        """Raise the alarm for one run: its log is altered or lacks commits."""
        if key in self._damaged or len(self._damaged) >= DAMAGED_MAX:
            return
        self._damaged.add(key)
        HISTORY_REGRESSED.labels("runs").set(len(self._damaged))
        if len(self._damaged) <= ALARMS_MAX:
            log.critical("history_damaged", tenant=key.tenant, run_id=key.run_id, reason=reason)

    def whole(self, key: RunKey) -> None:
        """Take back the alarm for a run that was mended."""
        if key in self._damaged:
            self._damaged.remove(key)
            HISTORY_REGRESSED.labels("runs").set(len(self._damaged))
            log.warning("history_mended", tenant=key.tenant, run_id=key.run_id)

    @property
    def damaged_runs(self) -> int:
        """How many runs are known to be damaged."""
        return len(self._damaged)

    # ------------------------------------------------------------ examining

    async def watch(self) -> None:
        """Examine now, after every loss of the bus, and from time to time, for ever.

        Raises:
            HistoryAccepted: An operator accepted another history than was seen here.
        """
        while True:
            self._doubted.clear()
            try:
                pause_s = await self._judge(await self._examine())
            except ClawdbotError as error:
                log.info("history_check_postponed", error=error.message)
                pause_s = RETRY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._doubted.wait()

    async def keep(self) -> None:
        """Write the marks down as the log grows, for ever."""
        while True:
            await asyncio.sleep(MARK_INTERVAL_S)
            await self.sound()
            try:
                await self._keep()
            except ClawdbotError as error:
                log.info("marks_postponed", error=error.message)

    async def _examine(self) -> str:
        """Return what the log contradicts."""
        shared, _ = await self._shared()
        if self._marks is None:
            self._marks = self._recall(shared)
        if self._marks is None:
            self._marks = await observe(self._bus.nc)
        return await contradiction(self._bus.nc, self._marks)

    async def _judge(self, reason: str) -> float:
        """Open or shut the gate; return when to look again, in seconds."""
        if not reason:
            await self._tell("")
            if not self._doubted.is_set():
                self._trust()
            return self._interval_s
        self._gate.clear()
        self._suspicions += 1
        if self._suspicions < CONFIRMATIONS:
            log.warning("history_suspected", reason=reason)
            return CONFIRM_S
        if self._suspicions == CONFIRMATIONS:
            HISTORY_REGRESSED.labels("log").set(1)
            known = self._known()
            log.critical(
                "history_regressed", reason=reason, created=known.created, sequence=known.sequence
            )
            self._judged.set()
        await self._tell(reason)
        return min(CONFIRM_S, self._interval_s)

    def _trust(self) -> None:
        if self._suspicions >= CONFIRMATIONS:
            log.warning("history_whole_again")
        self._suspicions = 0
        HISTORY_REGRESSED.labels("log").set(0)
        if not self._gate.is_set():
            self.openings += 1
            self._gate.set()
            self._reopened.set()
            self._reopened = asyncio.Event()
        self._judged.set()

    def _doubt(self) -> None:
        """Shut the gate until the log was examined: whatever comes back may be another one."""
        self._collect()
        self._gate.clear()
        self._doubted.set()

    # ------------------------------------------------------------ marks

    def _recall(self, shared: Marks | None) -> Marks | None:
        """Return what this orchestrator knew when it ended, unless that was overruled since."""
        try:
            known = self._file.read()
        except DataLoss as error:
            log.warning("marks_unreadable", error=error.message)
            known = None
        accepted_at = known.accepted_at if known else 0.0
        if shared is not None and shared.accepted_at > accepted_at:
            log.warning("history_accepted", created=shared.created, sequence=shared.sequence)
            self._index.reset()
            return replace(shared, refused="")
        created, sequence = self._index.checkpoint()
        if created:
            seen = Marks(created, sequence, accepted_at=accepted_at)
            known = seen if known is None else known.union(seen)
        if shared is not None:
            known = shared if known is None else known.union(shared)
        return None if known is None else replace(known, refused="")

    def _known(self) -> Marks:
        assert self._marks is not None, "the log was examined"
        return self._marks

    def _collect(self) -> None:
        """Raise the marks to what was seen while the log was trusted."""
        if self._gate.is_set():
            known = self._known()
            seen = replace(known, sequence=self._index.position, heads=self._own)
            self._marks = known.union(seen)

    async def _shared(self) -> tuple[Marks | None, int]:
        """Return the shared marks and their revision; what they say is known here from now on.

        Raises:
            HistoryAccepted: They were accepted after ours.
        """
        shared, revision = await read_shared(self._bus.nc)
        if shared is not None and self._marks is not None:
            if shared.accepted_at > self._marks.accepted_at:
                raise HistoryAccepted
            self._marks = replace(self._marks.union(shared), refused="")
        return shared, revision

    async def _keep(self) -> None:
        self._collect()
        if self._marks != self._written:
            await self._file.write(self._known())
            self._written = self._marks
        shared, revision = await self._shared()
        if shared is not None and shared.refused:
            self._doubt()  # another orchestrator knows more than we did
        elif shared != self._marks:
            await replace_shared(self._bus.nc, self._known(), revision)

    async def _tell(self, refused: str) -> None:
        """Tell the other orchestrators what we know and judge, if it is news to them."""
        shared, revision = await self._shared()
        news = replace(self._known(), refused=refused)
        if news != shared and (refused or (shared is not None and shared.refused)):
            await replace_shared(self._bus.nc, news, revision)

"""Retention at work: runs are archived and retired, uncited blobs and parts of models deleted.

Every orchestrator looks for what is due; a shared schedule, written by compare and swap, gives each
sweep to one of them. That is thrift, not safety: sweeps are idempotent, so two at once, or one that
dies half-way, do no harm. A sweep does a bounded amount of work; one that stopped at its limits is
followed by another soon, which goes on where it stopped.
"""

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError

from events.documents import SharedDocument
from events.repository import ModelRepository
from events.retention import Stores, sweep, sweep_blobs
from schemas.errors import ClawdbotError
from services.orchestrator.settings import OrchestratorSettings
from services.runtime import Clock
from services.telemetry import SWEEP_SECONDS, SWEPT, get_logger


log = get_logger()

LOOK_S_MAX = 30.0
"""Longest time between two looks at the schedule."""
FAILURES_MAX = 10
"""Failures that are named in the log line."""
REST = 4
"""A sweep with more to do is followed by another after so many times what it took."""


@dataclass(frozen=True)
class Schedule:
    """When sweeps are due, seconds since the epoch, and where the next one goes on."""

    runs_due_at: float = 0.0
    runs_start: int = 1
    """Sequence in EVENTS."""
    blobs_due_at: float = 0.0


_SCHEDULE = TypeAdapter(Schedule)


class Housekeeping:
    """Sweeps when it is due.

    Args:
        stores: Everything a sweep touches.
        settings: How long things are kept, how often and how much is swept.
        clock: Tells what is due.
        intact: Whether the whole log was read and found undamaged since it was in doubt last; a
            lost commit cites its blobs no longer, so they are not deleted before.
    """

    def __init__(
        self,
        stores: Stores,
        settings: OrchestratorSettings,
        clock: Clock,
        intact: Callable[[], bool],
    ) -> None:
        self._stores = stores
        self._policy, self._limits = settings.retention(), settings.sweep_limits()
        self._runs_every_s = settings.sweep_interval_s
        self._blobs_every_s = settings.blob_sweep_interval_s
        self._clock = clock
        self._intact = intact
        self._document = SharedDocument(stores.nc, "sweeps")
        # Orchestrators that were started together look at different moments.
        spread = zlib.crc32(settings.instance.encode()) % 100 / 100
        self._look_s = min(LOOK_S_MAX, self._runs_every_s) * (0.5 + spread / 2)

    async def run(self) -> None:
        """Look for what is due, for ever; not at all when the interval is 0."""
        while self._runs_every_s:
            await asyncio.sleep(self._look_s)
            try:
                await self.runs()
                if self._intact():
                    await self.blobs()
            except ClawdbotError as error:
                log.info("sweep_postponed", error=error.message)

    async def runs(self) -> None:
        """Sweep runs if that is due and nobody else does.

        Raises:
            StoreUnavailable: A store does not answer.
        """
        begun = self._clock.now()
        schedule, revision = await self._read()
        if begun < schedule.runs_due_at:
            return
        if not await self._write(
            replace(schedule, runs_due_at=begun + self._runs_every_s), revision
        ):
            return
        done = await sweep(
            self._stores, self._policy, self._limits, now=begun, start=schedule.runs_start
        )
        took_s = self._clock.now() - begun
        SWEPT.labels("run", "retired").inc(len(done.retired))
        SWEPT.labels("run", "failed").inc(len(done.failed))
        SWEEP_SECONDS.labels("run").observe(took_s)
        log.info(
            "runs_swept",
            scanned=done.scanned,
            retired=len(done.retired),
            failed={key.run_id: reason for key, reason in list(done.failed.items())[:FAILURES_MAX]},
            next_sequence=done.next_sequence,
            took_s=round(took_s, 3),
        )
        await self._resume_at(done.next_sequence, took_s)

    async def blobs(self) -> None:
        """Sweep blobs if that is due and nobody else does.

        Raises:
            StoreUnavailable: A store does not answer.
        """
        begun = self._clock.now()
        schedule, revision = await self._read()
        if begun < schedule.blobs_due_at:
            return
        claimed = replace(schedule, blobs_due_at=begun + self._blobs_every_s)
        if not await self._write(claimed, revision):
            return
        await self._artefacts(begun)
        done = await sweep_blobs(self._stores, self._policy, self._limits, now=begun)
        took_s = self._clock.now() - begun
        SWEPT.labels("blob", "deleted").inc(len(done.deleted))
        SWEEP_SECONDS.labels("blob").observe(took_s)
        log.info(
            "blobs_swept",
            seen=done.seen,
            deleted=len(done.deleted),
            undecided=sorted(done.undecided)[:FAILURES_MAX],
            took_s=round(took_s, 3),
        )

    async def _artefacts(self, now: float) -> None:
        """Delete parts of models' files that no version of a model names."""
        repository = ModelRepository(self._stores.nc, self._stores.keys)
        grace_s, most = self._policy.blob_grace_s, self._limits.blobs_max
        done = await repository.sweep(grace_s, now=now, deletions_max=most)
        took_s = self._clock.now() - now
        SWEPT.labels("artefact", "deleted").inc(len(done.deleted))
        SWEEP_SECONDS.labels("artefact").observe(took_s)
        log.info(
            "artefacts_swept", seen=done.seen, deleted=len(done.deleted), took_s=round(took_s, 3)
        )

    async def _resume_at(self, sequence: int, took_s: float) -> None:
        """Say where the next sweep goes on, and bring it forward if this one was cut short."""
        schedule, revision = await self._read()
        due_at = schedule.runs_due_at
        if sequence > 1:
            due_at = min(due_at, self._clock.now() + REST * took_s)
        # Whoever was faster sweeps already: then this is no news.
        await self._write(replace(schedule, runs_start=sequence, runs_due_at=due_at), revision)

    async def _read(self) -> tuple[Schedule, int]:
        data, revision = await self._document.read()
        try:
            return (_SCHEDULE.validate_json(data) if data else Schedule()), revision
        except ValidationError:
            return Schedule(), revision  # it only says when; sweeping at once is right as well

    async def _write(self, schedule: Schedule, revision: int) -> bool:
        return await self._document.replace(_SCHEDULE.dump_json(schedule), revision)

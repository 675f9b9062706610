"""A worker's composition root."""

import asyncio
from dataclasses import dataclass

from events.blobs import JetStreamBlobStore
from events.keys import JetStreamKeyRing
from events.models import ModelDirectory, WorkerCard
from events.streams import TASKS
from events.subjects import every
from schemas.errors import ClawdbotError
from schemas.ids import DEFAULT_TENANT, new_id
from services import micro
from services.consumer import Consumer, Pull
from services.runtime import Bus, SystemClock
from services.telemetry import configure, get_logger, serve_metrics
from services.workers.handlers import Handlers
from services.workers.models import Models
from services.workers.settings import WorkerSettings


WATCH_INTERVAL_S = 0.5
log = get_logger()


@dataclass(frozen=True)
class Worker:
    """The service, ready to run."""

    settings: WorkerSettings

    @property
    def service(self) -> str:
        """Name in logs and `$SRV`."""
        return f"worker-{self.settings.modality}"

    async def run(self) -> None:
        """Serve until cancelled."""
        settings = self.settings
        configure(self.service, settings.log_format)
        serve_metrics(settings.metrics_host, settings.metrics_port)
        worker = f"{self.service}-{new_id()[-8:]}"
        models = Models(
            settings.load_catalogue(),
            settings.modality,
            settings.models_dir,
            allow_fallback=settings.allow_fallback,
            threads=settings.compute_threads,
        )
        bus = await Bus.connect(settings.nats_url, self.service, settings.limits())
        await bus.patiently(bus.generation)
        keys = JetStreamKeyRing(bus.nc.jetstream(), settings.master_key_bytes())
        await bus.patiently(lambda: keys.cipher(DEFAULT_TENANT))  # is the master key the right one?
        handlers = Handlers(
            worker,
            models,
            JetStreamBlobStore(bus.nc, keys),
            SystemClock(),
        )
        directory = ModelDirectory(bus.nc.jetstream())
        try:
            await bus.patiently(lambda: self._ensure_consumer(bus))
            async with asyncio.TaskGroup() as group:
                await self._serve_infer(bus, handlers, group)
                group.create_task(self._watch(bus))
                group.create_task(self._announce(directory, worker, models))
                consumer = Consumer(bus.nc, self._pull(), handlers.task, handlers.exhausted)
                group.create_task(consumer.run())
                log.info("ready", worker=worker)
        finally:
            models.close()
            try:
                await directory.withdraw(worker)
            except ClawdbotError as error:
                log.info("card_left", error=error.message)  # it goes stale by itself
            await bus.close()

    async def _serve_infer(self, bus: Bus, handlers: Handlers, group: asyncio.TaskGroup) -> None:
        endpoint = micro.Endpoint(
            service=self.service,
            name="infer",
            subject=every("infer", f"{self.settings.modality}.*"),
            description=f"unlogged inference, {self.settings.modality}",
            answer=handlers.infer,
            in_flight_max=self.settings.infer_queue_max,
        )
        await micro.serve(bus.nc, group, endpoint, self.settings.instance)

    async def _ensure_consumer(self, bus: Bus) -> None:
        settings = self.settings
        subject = every("task", f"{settings.modality}.{settings.pool}.>")
        await bus.ensure_consumer(TASKS, self._pull().consumer, subject)

    async def _watch(self, bus: Bus) -> None:
        """Put the consumer back when the server lost it with its memory."""
        while True:
            await bus.changed(WATCH_INTERVAL_S)
            try:
                await bus.generation()
                await self._ensure_consumer(bus)
            except ClawdbotError as error:
                log.info("consumer_postponed", error=error.message)

    async def _announce(self, directory: ModelDirectory, worker: str, models: Models) -> None:
        clock = SystemClock()
        while True:
            offers = await asyncio.to_thread(models.offers)
            card = WorkerCard(
                worker=worker, modality=self.settings.modality, offers=offers, at=clock.now()
            )
            try:
                await directory.announce(card)
            except ClawdbotError as error:
                log.info("announce_postponed", error=error.message)
            await asyncio.sleep(self.settings.announce_interval_s)

    def _pull(self) -> Pull:
        settings = self.settings
        return Pull(
            service=self.service,
            kind="task",
            stream=TASKS,
            consumer=f"worker-{settings.modality}-{settings.pool}-normal",
            in_flight_max=settings.in_flight_max,
            ack_wait_s=settings.ack_wait_s,
            max_deliver=settings.max_deliver,
        )


def build(settings: WorkerSettings) -> Worker:
    """Return the service; nothing is opened before `run`."""
    return Worker(settings)

"""A worker's composition root."""

import asyncio
from dataclasses import dataclass
from typing import Any

from events.blobs import JetStreamBlobStore
from events.jetstream import read_subject
from events.keys import JetStreamKeyRing
from events.memo import JetStreamMemoStore
from events.models import ModelDirectory, WorkerCard
from events.streams import CANCELS, TASKS
from events.subjects import DEFAULT_LANE, LANES, every, run_key
from schemas.errors import ClawdbotError
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.messages import Abandoned, unpack
from services import micro
from services.consumer import Consumer, Pull
from services.runtime import Bus, SystemClock
from services.settings import secret
from services.telemetry import configure, get_logger, serve_metrics
from services.workers.attempts import Attempts
from services.workers.batches import CALLS
from services.workers.engines import check_plugins, openai, providers, python
from services.workers.handlers import Handlers, Means
from services.workers.models import Capacity, Models
from services.workers.remembered import Remembered
from services.workers.settings import WorkerSettings
from services.workers.tally import Tally


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
        brought = check_plugins()
        if brought:
            log.info("engines_of_packages", engines=brought)
        models = Models(
            settings.load_catalogue(),
            settings.modality,
            settings.models_dir,
            allow_fallback=settings.allow_fallback,
            capacity=Capacity(settings.compute_threads, settings.batch_rows_max),
            engine_settings=engine_settings(settings),
        )
        attempts = Attempts(SystemClock())
        bus = await Bus.connect(settings.nats_url, self.service, settings.limits())
        await bus.patiently(bus.generation)
        keys = JetStreamKeyRing(bus.nc.jetstream(), settings.master_key_bytes())
        await bus.patiently(lambda: keys.cipher(DEFAULT_TENANT))  # is the master key the right one?
        blobs, clock = JetStreamBlobStore(bus.nc, keys), SystemClock()
        memos, tally = JetStreamMemoStore(bus.nc, keys), Tally(worker, clock)
        means = Means(
            worker=worker,
            models=models,
            remembered=Remembered(memos, blobs, models, clock),
            blobs=blobs,
            attempts=attempts,
            tally=tally,
            clock=clock,
            chain_s=settings.chain_ms / 1000,
        )
        handlers = Handlers(means)
        directory = ModelDirectory(bus.nc.jetstream())
        try:
            await bus.patiently(lambda: self._ensure_consumers(bus))
            await bus.nc.subscribe(every("cancel", "*"), cb=handlers.cancel)
            await bus.nc.subscribe(every("withdraw", "*"), cb=handlers.withdraw)
            await bus.patiently(lambda: self._catch_up(bus, attempts))
            async with asyncio.TaskGroup() as group:
                await self._serve_infer(bus, handlers, tally, group, worker)
                group.create_task(self._watch(bus))
                group.create_task(self._announce(directory, worker, models))
                for lane in LANES:
                    pull = self._pull(lane)
                    consumer = Consumer(bus.nc, pull, handlers.task, handlers.exhausted)
                    group.create_task(consumer.run())
                log.info("ready", worker=worker)
        finally:
            models.close()
            try:
                await directory.withdraw(worker)
            except ClawdbotError as error:
                log.info("card_left", error=error.message)  # it goes stale by itself
            await bus.close()

    async def _serve_infer(
        self, bus: Bus, handlers: Handlers, tally: Tally, group: asyncio.TaskGroup, worker: str
    ) -> None:
        endpoint = micro.Endpoint(
            service=self.service,
            name="infer",
            subject=every("infer", f"{self.settings.modality}.*"),
            description=f"unlogged inference, {self.settings.modality}",
            answer=handlers.infer,
            in_flight_max=self.settings.infer_queue_max,
            also=every("infer", f"{self.settings.modality}.*.{worker}"),
            figures=lambda: tally.document(CALLS),
        )
        await micro.serve(bus.nc, group, endpoint, self.settings.instance)

    async def _ensure_consumers(self, bus: Bus) -> None:
        settings = self.settings
        for lane in sorted(LANES, key=lambda lane: lane != DEFAULT_LANE):  # it once had them all
            subject = every("task", f"{settings.modality}.{settings.pool}.{lane}.*")
            await bus.ensure_consumer(TASKS, self._pull(lane).consumer, subject)

    async def _catch_up(self, bus: Bus, attempts: Attempts) -> None:
        """Hear what was called off while nobody listened."""
        for message in await read_subject(bus.nc, CANCELS, every("cancel", "*")):
            attempts.abandon(run_key(message.subject), unpack(Abandoned, message.data))

    async def _watch(self, bus: Bus) -> None:
        """Put the consumer back when the server lost it with its memory."""
        while True:
            await bus.changed(WATCH_INTERVAL_S)
            try:
                await bus.generation()
                await self._ensure_consumers(bus)
            except ClawdbotError as error:
                log.info("consumer_postponed", error=error.message)

    async def _announce(self, directory: ModelDirectory, worker: str, models: Models) -> None:
        clock = SystemClock()
        await models.preload()
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

    def _pull(self, lane: str) -> Pull:
        settings = self.settings
        return Pull(
            service=self.service,
            kind="task",
            stream=TASKS,
            consumer=f"worker-{settings.modality}-{settings.pool}-{lane}",
            in_flight_max=settings.in_flight_max,
            ack_wait_s=settings.ack_wait_s,
            max_deliver=settings.max_deliver,
        )


def engine_settings(settings: WorkerSettings) -> dict[str, dict[str, Any]]:
    """Return what the operator sets, by engine; no catalogue entry and no node changes it.

    Raises:
        FailedPrecondition: A setting is malformed; names its variable.
    """
    python.parse_allowed(settings.python_allow)
    openai.parse_allowed(settings.openai_allow)
    return {
        "http": {"allow": settings.http_allow, "bytes_max": settings.http_bytes_max},
        "onnx": {
            "bytes_max": settings.model_bytes_max,
            "operator_options": providers.read_operator(settings.onnx_provider_options),
        },
        "openai": {
            "allow": settings.openai_allow,
            "keys": openai.parse_keys(settings.openai_keys, secret),
            "bytes_max": settings.http_bytes_max,
        },
        "torch": {"bytes_max": settings.model_bytes_max},
        "python": {"allow": settings.python_allow},
    }


def build(settings: WorkerSettings) -> Worker:
    """Return the service; nothing is opened before `run`."""
    return Worker(settings)

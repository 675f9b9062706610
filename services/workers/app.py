"""A worker's composition root."""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from nats.errors import Error as NatsError

from events.blobs import JetStreamBlobStore
from events.express import Express
from events.jetstream import read_subject
from events.keys import JetStreamKeyRing
from events.memo import JetStreamMemoStore
from events.models import ModelDirectory, WorkerCard
from events.repository import ModelRepository
from events.streams import CANCELS, TASKS
from events.subjects import DEFAULT_LANE, LANES, every, run_key, tally
from schemas.errors import ClawdbotError
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.live_catalogue import LiveCatalogue
from schemas.messages import Abandoned, unpack
from services import micro
from services.consumer import Consumer, Pull
from services.repository import CatalogueWatch
from services.runtime import Bus, Outgoing, SystemClock
from services.settings import secret
from services.telemetry import configure, get_logger, serve_metrics
from services.together import Together
from services.workers import devices
from services.workers.attempts import Attempts
from services.workers.chunks import Chunks
from services.workers.engines import ENGINE_NAMES, check_plugins, openai, providers, python
from services.workers.handlers import Handlers, Means
from services.workers.memory import Budget, held_bytes
from services.workers.models import Capacity, Models
from services.workers.remembered import Remembered
from services.workers.settings import WorkerSettings
from services.workers.shelf import Cache, Shelf
from services.workers.tally import Tally


WATCH_INTERVAL_S = 0.5
log = get_logger()


@dataclass(frozen=True)
class _Announced:
    """What a worker says of itself on its card."""

    worker: str
    models: Models
    shelf: Shelf
    engines: tuple[str, ...]


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
        engines = self._engines()
        live = LiveCatalogue(settings.load_catalogue())
        models = self._models(live)
        attempts = Attempts(SystemClock())
        bus = await Bus.connect(
            settings.nats_url, self.service, settings.limits(), settings.bus_silence_s
        )
        await bus.patiently(bus.generation)
        keys = JetStreamKeyRing(bus.nc.jetstream(), settings.master_key_bytes())
        await bus.patiently(lambda: keys.cipher(DEFAULT_TENANT))  # is the master key the right one?
        blobs, clock = JetStreamBlobStore(bus.nc, keys), SystemClock()
        shelf, watch = self._shelf(bus, keys, live, models)
        counted = Tally(worker, clock)
        means = Means(
            worker=worker,
            models=models,
            remembered=Remembered(JetStreamMemoStore(bus.nc, keys), blobs, models, clock),
            blobs=blobs,
            attempts=attempts,
            tally=counted,
            clock=clock,
            chain_s=settings.chain_ms / 1000,
            chunks=Chunks(await bus.teller()),
            at_hand=shelf.at_hand,
        )
        handlers = Handlers(means)
        directory = ModelDirectory(bus.nc.jetstream())
        try:
            await bus.patiently(lambda: self._ensure_consumers(bus))
            await self._hear(bus, handlers, attempts)
            await watch.begin()
            together = Together(await Express.of(bus.nc), settings.together_max)
            async with asyncio.TaskGroup() as group:
                await self._serve_infer(bus, means, handlers, group)
                announced = _Announced(worker, models, shelf, engines)
                for task in (
                    self._tell(bus, means),
                    self._watch(bus),
                    watch.run(),
                    shelf.keep(watch.listen()),
                    self._announce(directory, announced),
                    *self._pulling(bus, handlers, together),
                ):
                    group.create_task(task)
                log.info("ready", worker=worker)
        finally:
            models.close()
            try:
                await self._say(bus, means, means.tally.document(means.models.calls()))
                await directory.withdraw(worker)
            except ClawdbotError as error:
                log.info("card_left", error=error.message)  # it goes stale by itself
            await bus.close()

    def _models(self, live: LiveCatalogue) -> Models:
        settings = self.settings
        return Models(
            live.base,
            settings.modality,
            settings.models_dir,
            allow_fallback=settings.allow_fallback,
            capacity=Capacity(
                settings.compute_threads,
                settings.batch_rows_max,
                settings.loads_max,
                Budget(settings.model_memory_bytes_max, settings.model_device_memory_bytes_max),
                settings.response_cache_bytes_max,
                settings.calibration_ms / 1000,
            ),
            engine_settings=engine_settings(settings),
        )

    def _shelf(
        self, bus: Bus, keys: JetStreamKeyRing, live: LiveCatalogue, models: Models
    ) -> tuple[Shelf, CatalogueWatch]:
        settings, repository = self.settings, ModelRepository(bus.nc, keys)
        cache = Cache(settings.data_dir / "model-cache", settings.model_cache_bytes_max)
        shelf = Shelf(live, repository, models, settings.modality, cache)
        return shelf, CatalogueWatch(bus, repository, live)

    async def _serve_infer(
        self, bus: Bus, means: Means, handlers: Handlers, group: asyncio.TaskGroup
    ) -> None:
        endpoint = micro.Endpoint(
            service=self.service,
            name="infer",
            subject=every("infer", f"{self.settings.modality}.*"),
            description=f"unlogged inference, {self.settings.modality}",
            answer=handlers.infer,
            in_flight_max=self.settings.infer_queue_max,
            also=every("infer", f"{self.settings.modality}.*.{means.worker}"),
            figures=lambda: means.tally.document(means.models.calls()),
        )
        await micro.serve(bus.nc, group, endpoint, self.settings.instance)

    async def _ensure_consumers(self, bus: Bus) -> None:
        settings = self.settings
        for lane in sorted(LANES, key=lambda lane: lane != DEFAULT_LANE):  # it once had them all
            subject = every("task", f"{settings.modality}.{settings.pool}.{lane}.*")
            await bus.ensure_consumer(TASKS, self._pull(lane).consumer, subject)

    def _pulling(
        self, bus: Bus, handlers: Handlers, together: Together
    ) -> Iterator[Coroutine[Any, Any, None]]:
        """Yield what takes the tasks of each lane."""
        for lane in LANES:
            pull = self._pull(lane)
            yield Consumer(bus.nc, pull, handlers.task, handlers.exhausted, together).run()

    def _engines(self) -> tuple[str, ...]:
        """Return which engines there are, of other packages too."""
        brought = check_plugins()
        if brought:
            log.info("engines_of_packages", engines=brought)
        return (*ENGINE_NAMES, *brought)

    async def _hear(self, bus: Bus, handlers: Handlers, attempts: Attempts) -> None:
        """Hear what is called off from now on, and what was before."""
        await bus.nc.subscribe(every("cancel", "*"), cb=handlers.cancel)
        await bus.nc.subscribe(every("withdraw", "*"), cb=handlers.withdraw)
        hints = f"{self.settings.modality}.{self.settings.pool}.*"
        await bus.nc.subscribe(every("warm", hints), cb=handlers.warm)
        await bus.patiently(lambda: self._catch_up(bus, attempts))

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

    async def _tell(self, bus: Bus, means: Means) -> None:
        """Say what was computed, now and then."""
        said: Mapping[str, Any] | None = None
        while True:
            document = means.tally.document(means.models.calls())
            if document["models"] != said:
                await self._say(bus, means, document)
            said = document["models"]
            await asyncio.sleep(self.settings.announce_interval_s)

    async def _say(self, bus: Bus, means: Means, document: Mapping[str, Any]) -> None:
        """Say what was computed, to whoever listens."""
        subject = tally(DEFAULT_TENANT, self.settings.modality, means.worker)
        try:
            await bus.publish([Outgoing(subject, orjson.dumps(document), {}, stored=False)])
        except NatsError as error:
            log.info("tally_postponed", error=str(error))  # they ask too

    async def _announce(self, directory: ModelDirectory, told: "_Announced") -> None:
        """Renew the card, now and then and when there is news."""
        clock = SystemClock()
        await told.models.preload()
        while True:
            told.shelf.news.clear()
            told.models.report()
            offers = await asyncio.to_thread(told.models.offers)
            card = WorkerCard(
                worker=told.worker,
                modality=self.settings.modality,
                offers=(*offers, *told.shelf.offers()),
                engines=told.engines,
                at=clock.now(),
                machine=await asyncio.to_thread(devices.machine),
                held_bytes=held_bytes(),
                models_bytes=told.models.used.host,
                models_bytes_max=self.settings.model_memory_bytes_max,
                models_device_bytes=told.models.used.device,
                models_device_bytes_max=self.settings.model_device_memory_bytes_max,
            )
            try:
                await directory.announce(card)
            except ClawdbotError as error:
                log.info("announce_postponed", error=error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.announce_interval_s):
                    await told.shelf.news.wait()

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
            "silence_s": settings.openai_silence_s,
        },
        "torch": {"bytes_max": settings.model_bytes_max},
        "python": {"allow": settings.python_allow},
    }


def build(settings: WorkerSettings) -> Worker:
    """Return the service; nothing is opened before `run`."""
    return Worker(settings)

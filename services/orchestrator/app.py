"""The orchestrator's composition root."""

import asyncio
from dataclasses import dataclass

from events.blobs import JetStreamBlobStore
from events.definitions import DefinitionStore
from events.index import RunIndex
from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.snapshots import JetStreamSnapshotStore
from events.streams import COMMANDS, RESULT_CONSUMER, RESULTS, SUBMIT_CONSUMER
from services.consumer import Consumer, Pull
from services.orchestrator.handlers import Handlers
from services.orchestrator.reconciler import Reconciler
from services.orchestrator.runs import Runs
from services.orchestrator.settings import OrchestratorSettings
from services.runtime import Bus, SystemClock
from services.telemetry import configure, get_logger, serve_metrics


SERVICE = "orchestrator"
log = get_logger()


@dataclass(frozen=True)
class Orchestrator:
    """The service, ready to run."""

    settings: OrchestratorSettings

    async def run(self) -> None:
        """Serve until cancelled."""
        settings = self.settings
        configure(SERVICE, settings.log_format)
        serve_metrics(settings.metrics_port)
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        bus = await Bus.connect(settings.nats_url, SERVICE, settings.limits())
        await bus.generation()
        js = bus.nc.jetstream()
        keys = JetStreamKeyRing(js, settings.master_key_bytes())
        index = RunIndex(settings.data_dir / f"orchestrator-{settings.instance}.sqlite")
        runs = Runs(
            JetStreamEventStore(bus.nc, keys),
            JetStreamSnapshotStore(bus.nc, keys),
            index,
            cached_max=settings.runs_cached_max,
            snapshot_every=settings.snapshot_every,
        )
        clock = SystemClock()
        blobs = JetStreamBlobStore(bus.nc, keys)
        handlers = Handlers(runs, DefinitionStore(js), blobs, clock)
        reconciler = Reconciler(bus, index, handlers, clock, settings.clock_interval_s)
        caught_up = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(index.follow(bus.nc, ready=caught_up))
                await caught_up.wait()
                group.create_task(reconciler.watch())
                group.create_task(reconciler.tick())
                submit = self._pull("submit", COMMANDS, SUBMIT_CONSUMER)
                result = self._pull("result", RESULTS, RESULT_CONSUMER)
                group.create_task(Consumer(bus.nc, submit, handlers.submit).run())
                group.create_task(Consumer(bus.nc, result, handlers.result).run())
                log.info("ready")
        finally:
            index.close()
            await bus.nc.close()

    def _pull(self, kind: str, stream: str, consumer: str) -> Pull:
        return Pull(
            service=SERVICE,
            kind=kind,
            stream=stream,
            consumer=consumer,
            in_flight_max=self.settings.in_flight_max,
            ack_wait_s=self.settings.ack_wait_s,
            max_deliver=self.settings.max_deliver,
        )


def build(settings: OrchestratorSettings) -> Orchestrator:
    """Return the service; nothing is opened before `run`."""
    return Orchestrator(settings)

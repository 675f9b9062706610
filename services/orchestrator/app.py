"""The orchestrator's composition root."""

import asyncio
import random
from dataclasses import dataclass
from typing import Annotated

from faststream import AckPolicy, Path
from faststream.exceptions import NackMessage
from faststream.nats import JStream, NatsMessage, PullSub

from events.blobs import JetStreamBlobStore
from events.definitions import DefinitionStore
from events.index import RunIndex
from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.schedules import Schedules
from events.snapshots import JetStreamSnapshotStore
from events.streams import (
    COMMANDS,
    CONTROL_CONSUMER,
    DUE_CONSUMER,
    RESULT_CONSUMER,
    RESULTS,
    SUBMIT_CONSUMER,
    TIMERS,
    TOPIC_CONSUMER,
    TOPICS,
)
from events.subjects import RunKey, pattern
from schemas.errors import NotFound, RetryableError
from schemas.messages import Control
from services.consumer import Consumer, Pull
from services.orchestrator.handlers import Handlers
from services.orchestrator.reconciler import Reconciler
from services.orchestrator.runs import Runs
from services.orchestrator.settings import OrchestratorSettings
from services.orchestrator.starters import Starters
from services.runtime import Bus, SystemClock
from services.telemetry import configure, get_logger, serve_metrics


SERVICE = "orchestrator"
RETRY_S = 1
STARTS_IN = 5
"""Deliveries of a control message within which its run must have begun."""
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
        handlers = Handlers(
            runs,
            DefinitionStore(js),
            settings.load_catalogue(),
            blobs,
            clock,
            random.SystemRandom(),
        )
        starters = Starters(DefinitionStore(js), Schedules(js))
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
                due = self._pull("due", TIMERS, DUE_CONSUMER)
                topic = self._pull("topic", TOPICS, TOPIC_CONSUMER)
                group.create_task(Consumer(bus.nc, submit, handlers.submit).run())
                group.create_task(Consumer(bus.nc, result, handlers.result).run())
                group.create_task(Consumer(bus.nc, due, starters.due).run())
                group.create_task(Consumer(bus.nc, topic, starters.topic).run())
                await starters.put_schedules()
                await self._serve_control(bus, handlers)
                log.info("ready")
        finally:
            index.close()
            await bus.close()

    async def _serve_control(self, bus: Bus, handlers: Handlers) -> None:
        """Take control messages through FastStream: they are rare, so its comfort costs nothing."""

        @bus.broker.subscriber(
            pattern("control", "run_id"),
            durable=CONTROL_CONSUMER,
            stream=JStream(COMMANDS, declare=False),
            pull_sub=PullSub(batch_size=16),
            ack_policy=AckPolicy.REJECT_ON_ERROR,
        )
        async def control(
            command: Control,
            tenant: Annotated[str, Path()],
            run_id: Annotated[str, Path()],
            message: NatsMessage,
        ) -> None:
            meta = message.raw_message.metadata
            key = RunKey(tenant, run_id)
            try:
                await bus.publish(await handlers.control(key, command, meta.sequence.stream))
            except (RetryableError, NotFound) as error:
                if isinstance(error, NotFound) and meta.num_delivered >= STARTS_IN:
                    log.info("control_dropped", run_id=run_id, error=error.message)
                    return
                log.info("control_postponed", run_id=run_id, error=error.message)
                raise NackMessage(delay=RETRY_S) from error

        await bus.broker.start()

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

"""The orchestrator's composition root."""

import asyncio
import random
import time
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from faststream import AckPolicy, Path
from faststream.exceptions import NackMessage
from faststream.nats import JStream, NatsMessage, PullSub
from nats.js.api import ConsumerConfig

from events.archive import DirectoryArchive
from events.blobs import JetStreamBlobStore
from events.definitions import DefinitionStore
from events.gates import GateStore
from events.index import RunIndex
from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.marks import MarksFile
from events.repository import ModelRepository
from events.retention import Stores
from events.schedules import Schedules
from events.snapshots import JetStreamSnapshotStore
from events.streams import (
    COMMANDS,
    CONTROL_CONSUMER,
    DUE_CONSUMER,
    RESULT_CONSUMER,
    RESULTS,
    SUBMIT_CONSUMER,
    TASKS,
    TIMERS,
    TOPIC_CONSUMER,
    TOPICS,
)
from events.subjects import RunKey, every, pattern
from events.subjects import control as control_subject
from schemas.errors import NotFound, RetryableError
from schemas.ids import DEFAULT_TENANT
from schemas.live_catalogue import LiveCatalogue
from schemas.messages import Control
from services import micro
from services.consumer import Consumer, Pull
from services.dead_letters import dead_letter
from services.orchestrator.backlog import Backlog, FairShare
from services.orchestrator.gates import Gates, check_for_ever
from services.orchestrator.handlers import Handlers, Means
from services.orchestrator.history import HistoryAccepted, HistoryWatch
from services.orchestrator.housekeeping import Housekeeping
from services.orchestrator.reconciler import Reconciler
from services.orchestrator.runs import Runs
from services.orchestrator.settings import OrchestratorSettings
from services.orchestrator.shares import Shares
from services.orchestrator.starters import Starters
from services.orchestrator.verifier import Pace, Verifier
from services.orchestrator.versions import Versions
from services.repository import CatalogueWatch
from services.runtime import Bus, Delivery, SystemClock
from services.telemetry import configure, get_logger, serve_metrics


SERVICE = "orchestrator"
DESCRIPTION = "decides what runs do; takes no requests but those of the streams"
RETRY_S = 1
RETRY_S_MAX = 10
"""Between two tries of a control whose run waits for its turn to begin, in a flood."""
CONTROLS_WAITING_MAX = 100_000
"""Controls whose runs have not begun, above which the others wait for those."""
TURN_S = 0.1
"""A control waits so long for an earlier one of its run before it is looked at again."""
STARTS_IN = 5
"""Deliveries that a control message has at least, if its run has not begun."""
log = get_logger()


@dataclass(frozen=True)
class Orchestrator:
    """The service, ready to run."""

    settings: OrchestratorSettings

    async def run(self) -> None:
        """Serve until cancelled; start over when an operator accepts another history."""
        settings = self.settings
        configure(SERVICE, settings.log_format)
        serve_metrics(settings.metrics_host, settings.metrics_port)
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                await self._serve()
                return
            except* HistoryAccepted:
                log.warning("starting_over")

    async def _serve(self) -> None:
        settings = self.settings
        bus = await Bus.connect(
            settings.nats_url, SERVICE, settings.limits(), settings.bus_silence_s
        )
        await bus.patiently(bus.ensure)
        stores = self._stores(bus)
        # Is the master key the right one?
        await bus.patiently(lambda: stores.keys.cipher(DEFAULT_TENANT))
        index = RunIndex(settings.data_dir / f"orchestrator-{settings.instance}.sqlite")
        marks = MarksFile(settings.data_dir / f"history-{settings.instance}.json")
        history = HistoryWatch(bus, index, marks, settings.history_check_s)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(history.watch())
                group.create_task(history.keep())
                if not await history.judged():
                    log.info("ready", refuses="the event log")
                await history.sound()
                await self._work(bus, stores, index, history, group)
                log.info("ready")
        finally:
            index.close()
            await bus.close()

    async def _work(
        self,
        bus: Bus,
        stores: Stores,
        index: RunIndex,
        history: HistoryWatch,
        group: asyncio.TaskGroup,
    ) -> None:
        """Start everything that reads or writes the log."""
        settings, clock = self.settings, SystemClock()
        runs = Runs(
            stores.log,
            stores.snapshots,
            index,
            history,
            cached_max=settings.runs_cached_max,
            snapshot_every=settings.snapshot_every,
        )
        live = LiveCatalogue(settings.load_catalogue())
        catalogue = CatalogueWatch(bus, ModelRepository(bus.nc, stores.keys), live)
        await catalogue.begin()
        means = self._means(bus, stores, runs, Versions(live, catalogue.refresh))
        handlers = Handlers(means)

        async def mend_gates() -> None:
            await bus.publish(await handlers.check_gates())

        reconciler = Reconciler(bus, index, handlers, clock, settings.clock_interval_s)
        pace = Pace(settings.verify_runs_per_s, settings.verify_interval_s)
        verifier = Verifier(history, index, stores, runs, clock, pace)
        housekeeping = Housekeeping(stores, settings, clock, lambda: verifier.intact)
        group.create_task(_flush_at_the_end(runs))
        caught_up = asyncio.Event()
        group.create_task(index.follow(bus.nc, ready=caught_up, noting=True))
        await caught_up.wait()
        for task in (
            catalogue.run(),
            reconciler.watch(),
            reconciler.tick(),
            verifier.run(),
            housekeeping.run(),
            check_for_ever(mend_gates),
            means.shares.run(),
        ):
            group.create_task(task)
        share = FairShare(settings.share_backlog_min, settings.share_weights)
        pull = self._pull("submit", COMMANDS, SUBMIT_CONSUMER)
        backlog = Backlog(bus, pull, handlers.submit, means.definitions, clock, share)
        group.create_task(backlog.run())
        starters = Starters(means.definitions, Schedules(bus.nc.jetstream()))
        for pull, handle in (
            (self._pull("result", RESULTS, RESULT_CONSUMER), handlers.result),
            (self._pull("due", TIMERS, DUE_CONSUMER), starters.due),
            (self._pull("topic", TOPICS, TOPIC_CONSUMER), starters.topic),
        ):
            group.create_task(Consumer(bus.nc, pull, handle).run())
        await bus.patiently(starters.put_schedules)
        await self._serve_control(bus, handlers)
        await micro.announce(bus.nc, SERVICE, settings.instance, DESCRIPTION)

    def _means(self, bus: Bus, stores: Stores, runs: Runs, versions: Versions) -> Means:
        settings, clock = self.settings, SystemClock()
        return Means(
            runs=runs,
            store=stores.log,
            definitions=DefinitionStore(bus.nc.jetstream()),
            versions=versions,
            blobs=stores.blobs,
            gates=Gates(GateStore(bus.nc), clock),
            shares=Shares(
                lambda subjects: bus.count(TASKS, subjects),
                bus.publish,
                time.monotonic,
                share_s=settings.share_s,
                tasks_min=settings.share_tasks_min,
            ),
            clock=clock,
            noise=random.SystemRandom(),
        )

    def _stores(self, bus: Bus) -> Stores:
        keys = JetStreamKeyRing(bus.nc.jetstream(), self.settings.master_key_bytes())
        return Stores(
            nc=bus.nc,
            log=JetStreamEventStore(bus.nc, keys),
            snapshots=JetStreamSnapshotStore(bus.nc, keys),
            blobs=JetStreamBlobStore(bus.nc, keys),
            keys=keys,
            archive=DirectoryArchive(self.settings.archive()),
        )

    async def _serve_control(self, bus: Bus, handlers: Handlers) -> None:
        """Take control messages through FastStream: they are rare, so its comfort costs nothing."""

        @bus.broker.subscriber(
            pattern("control", "run_id"),
            durable=CONTROL_CONSUMER,
            config=ConsumerConfig(max_ack_pending=CONTROLS_WAITING_MAX),
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
            sequence = meta.sequence.stream
            turn = partial(self._turn, bus, key, sequence)
            try:
                await bus.publish(await handlers.control(key, command, sequence, turn))
            except (RetryableError, NotFound) as error:
                if isinstance(error, NotFound) and await self._is_buried(bus, message, error):
                    return
                log.info("control_postponed", run_id=run_id, error=error.message)
                late = max(0, meta.num_delivered - STARTS_IN)
                raise NackMessage(delay=min(RETRY_S + late, RETRY_S_MAX)) from error

        await bus.patiently(bus.serve)

    @staticmethod
    async def _turn(bus: Bus, key: RunKey, sequence: int) -> bool:
        """Let the controls of one run take effect once, in the order in which they were sent.

        A control stays in the work queue until it is done, wherever it is handled. One that is
        gone was done elsewhere while we were slow. Asked after the log was read and before the
        commit: whoever goes further meanwhile makes the commit conflict, and it is asked again.

        Raises:
            NackMessage: An earlier one is not done yet.
            BusUnavailable: The server does not answer.
        """
        earliest = await bus.earliest(COMMANDS, control_subject(key))
        if 0 < earliest < sequence:
            raise NackMessage(delay=TURN_S)
        return earliest == sequence

    @staticmethod
    async def _is_buried(bus: Bus, message: NatsMessage, error: NotFound) -> bool:
        """Dead-letter a control whose run will never begin: everything submitted before is done.

        A submission stays in the work queue until then, however long that takes; a few deliveries
        are left for a run that is submitted after its control.
        """
        raw = message.raw_message
        sequence, deliveries = raw.metadata.sequence.stream, raw.metadata.num_delivered
        if deliveries < STARTS_IN:
            return False
        delivery = Delivery(raw.subject, raw.data, raw.headers or {}, sequence, deliveries)
        name = f"{COMMANDS}.{sequence}"
        try:
            if 0 < await bus.earliest(COMMANDS, every("submit", "*")) < sequence:
                return False
            letter = dead_letter("control", delivery, error, name, bus.nc.max_payload)
            await bus.publish([letter])
        except RetryableError:
            return False
        log.warning("dead_lettered", subject=raw.subject, error=error.message)
        return True

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


async def _flush_at_the_end(runs: Runs) -> None:
    """Store what follows behind before the process ends."""
    try:
        await asyncio.Event().wait()
    finally:
        await runs.flush()


def build(settings: OrchestratorSettings) -> Orchestrator:
    """Return the service; nothing is opened before `run`."""
    return Orchestrator(settings)

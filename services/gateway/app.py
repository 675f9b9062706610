"""The gateway's composition root."""

import asyncio
import random
import socket
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn

from events.blobs import JetStreamBlobStore
from events.definitions import DefinitionStore
from events.express import Express
from events.index import RunIndex
from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.models import ModelDirectory
from events.projections import Projector
from events.repository import ModelRepository
from events.schedules import Schedules
from events.statistics import Statistics
from events.subjects import every
from schemas.errors import FailedPrecondition
from schemas.ids import DEFAULT_TENANT
from schemas.live_catalogue import LiveCatalogue
from services import micro
from services.gateway.admission import Admission
from services.gateway.api import build_api
from services.gateway.calls import Calls
from services.gateway.deployments import Deployments
from services.gateway.inference.balance import Balance
from services.gateway.inference.lane import Answer, Asked, Lane
from services.gateway.inference.regions import Regions
from services.gateway.inference.sequences import Sequences
from services.gateway.inference.service import Inferences
from services.gateway.inference.statistics import Tallies
from services.gateway.inference.workflows import WorkflowModels
from services.gateway.middleware import Watch
from services.gateway.model_store import ModelStore
from services.gateway.protocol import bounded_http
from services.gateway.routes import Parts, inference
from services.gateway.routes.plain import PlainRuns
from services.gateway.settings import GatewaySettings
from services.gateway.submissions import Submissions
from services.gateway.waiters import Waiters
from services.lanes import Pace
from services.repository import CatalogueWatch
from services.requests import Requests
from services.runtime import Bus, SystemClock
from services.telemetry import configure, get_logger, serve_metrics
from services.together import TogetherBySubject


if TYPE_CHECKING:
    from services.gateway.inference.rpc import InferenceServer

SERVICE = "gateway"
WATCH_INTERVAL_S = 2.0
log = get_logger()


@dataclass(frozen=True)
class Gateway:
    """The service, ready to run."""

    settings: GatewaySettings

    async def run(self) -> None:
        """Serve until cancelled."""
        settings = self.settings
        configure(SERVICE, settings.log_format)
        serve_metrics(settings.metrics_host, settings.metrics_port)
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        listener = _listen(settings.http_host, settings.http_port)
        bus = await Bus.connect(
            settings.nats_url, SERVICE, settings.limits(), settings.bus_silence_s
        )
        await bus.patiently(bus.generation)
        keys = JetStreamKeyRing(bus.nc.jetstream(), settings.master_key_bytes())
        await bus.patiently(lambda: keys.cipher(DEFAULT_TENANT))  # is the master key the right one?
        index = RunIndex(settings.data_dir / f"gateway-{settings.instance}.sqlite")
        statistics = Statistics(settings.data_dir / f"statistics-{settings.instance}.sqlite")
        together = TogetherBySubject(await Express.of(bus.nc), settings.together_max)
        parts = self._parts(bus, together, index, Projector(bus.nc, keys, statistics), keys)
        await parts.models.begin()
        caught_up = asyncio.Event()
        rpc = _rpc(parts)
        try:
            async with asyncio.TaskGroup() as group:
                for task in (
                    index.follow(bus.nc, ready=caught_up),
                    _watch(bus, parts.waiters),
                    parts.models.follow(settings.repository_dir),
                    parts.inferences.balance.watch(),
                    parts.submissions.admission.watch(bus),
                ):
                    group.create_task(task)
                await _hear(bus, parts)
                await self._serve_calls(bus, parts, group)
                await caught_up.wait()
                server = _server(parts)
                listener.listen(server.config.backlog)  # from here on nobody is refused
                group.create_task(_serve_http(server, listener))
                if rpc is not None and settings.grpc_port is not None:
                    await rpc.start(settings.http_host, settings.grpc_port)
                log.info("listening", host=settings.http_host, port=listener.getsockname()[1])
                log.info("ready")
        finally:
            if rpc is not None:
                await rpc.close()
            parts.regions.unregister()
            listener.close()
            index.close()
            statistics.close()
            await bus.close()

    def _parts(
        self,
        bus: Bus,
        together: TogetherBySubject,
        index: RunIndex,
        projector: Projector,
        keys: JetStreamKeyRing,
    ) -> Parts:
        settings, clock = self.settings, SystemClock()
        js = bus.nc.jetstream()
        store = JetStreamEventStore(bus.nc, keys)
        blobs = JetStreamBlobStore(bus.nc, keys)
        catalogue, definitions = LiveCatalogue(settings.load_catalogue()), DefinitionStore(js)
        directory, requests = ModelDirectory(js), Requests(bus, _pace(settings))
        waiters = Waiters(store, clock, waits_max=settings.waits_max, recheck_s=settings.recheck_s)
        submissions = Submissions(
            bus,
            together,
            store,
            definitions,
            catalogue,
            blobs,
            waiters,
            Admission(settings.events_reserve),
            clock,
            begin_s=settings.begin_s,
            request_s=settings.request_s_max,
        )
        return Parts(
            settings=settings,
            bus=bus,
            store=store,
            blobs=blobs,
            index=index,
            directory=directory,
            catalogue=catalogue,
            models=_model_store(bus, keys, submissions, directory, settings),
            deployments=Deployments(
                definitions,
                Schedules(js),
                directory,
                catalogue,
                clock,
                allow_fallback=settings.allow_fallback,
            ),
            submissions=submissions,
            waiters=waiters,
            clock=clock,
            projector=projector,
            inferences=_inferences(settings, submissions, directory, requests),
            tallies=Tallies(requests, directory, clock, settings.request_s_max),
            regions=Regions(
                allowed=settings.shared_memory,
                prefix=settings.shared_memory_prefix,
                bytes_max=settings.shared_memory_bytes_max,
            ),
        )

    async def _serve_calls(self, bus: Bus, parts: Parts, group: asyncio.TaskGroup) -> None:
        calls = Calls(parts.submissions, self.settings.call_wait_s, self.settings.wait_s_max)
        endpoint = micro.Endpoint(
            service=SERVICE,
            name="call",
            subject=every("call", "*"),
            description="run a workflow and wait for its outputs",
            answer=calls.answer,
            in_flight_max=self.settings.waits_max,
        )
        await micro.serve(bus.nc, group, endpoint, self.settings.instance)


def _pace(settings: GatewaySettings) -> Pace:
    return Pace(settings.infer_ahead_max, settings.infer_hold_ms / 1000)


def _inferences(
    settings: GatewaySettings,
    submissions: Submissions,
    directory: ModelDirectory,
    requests: Requests,
) -> Inferences:
    clock, catalogue = submissions.clock, submissions.catalogue
    wait_s, chance = settings.call_wait_s, random.Random()  # noqa: S311 - no secret
    workflows = WorkflowModels(submissions, catalogue, submissions.blobs, wait_s)
    sequences = Sequences(
        clock,
        idle_s=settings.sequence_idle_s,
        count_max=settings.sequences_max,
        bytes_max=settings.sequence_bytes_max,
    )
    return Inferences(
        catalogue=catalogue,
        directory=directory,
        requests=requests,
        clock=clock,
        sequences=sequences,
        workflows=workflows,
        balance=Balance(directory, clock, chance, wanted=settings.balance),
        wait_s_max=settings.wait_s_max,
    )


def _model_store(
    bus: Bus,
    keys: JetStreamKeyRing,
    submissions: Submissions,
    directory: ModelDirectory,
    settings: GatewaySettings,
) -> ModelStore:
    repository, live = ModelRepository(bus.nc, keys), submissions.catalogue
    return ModelStore(
        repository,
        live,
        CatalogueWatch(bus, repository, live),
        submissions.definitions,
        directory,
        submissions.clock,
        settings.data_dir / "pushes",
        settings.model_bytes_max,
        settings.push_bytes_max,
    )


def _rpc(parts: Parts) -> "InferenceServer | None":
    """Return the server of gRPC, if one is wanted; its library is an extra.

    Raises:
        FailedPrecondition: The library is not installed.
    """
    if parts.settings.grpc_port is None:
        return None
    try:
        from services.gateway.inference.rpc import InferenceServer  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise FailedPrecondition(
            "gRPC is not installed here: pip install 'clawdbot[grpc]'", field="CLAWDBOT_GRPC_PORT"
        ) from error
    return InferenceServer(parts)


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything else starts.

    Raises:
        FailedPrecondition: Somebody else has it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise FailedPrecondition(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port",
            field="CLAWDBOT_HTTP_PORT",
        ) from error
    return listener


def _server(parts: Parts) -> uvicorn.Server:
    def infer(asked: Asked) -> Awaitable[Answer]:
        return inference.infer(asked, parts)

    config = uvicorn.Config(
        Watch(
            Lane(PlainRuns(build_api(parts), parts), infer),
            parts.settings.body_bytes_max,
            parts.settings.body_s_max,
        ),
        loop="none",
        http=bounded_http(parts.settings.head_s_max),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


async def _serve_http(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until cancelled; requests in work get a moment to finish."""
    serving = asyncio.ensure_future(server._serve([listener]))  # noqa: SLF001 - no signal handlers
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise


async def _hear(bus: Bus, parts: Parts) -> None:
    """Hear commits, and what workers computed."""
    express = await Express.of(bus.nc)
    await express.subscribe(every("live", "*.*"), parts.waiters.on_live)
    await bus.nc.subscribe(every("tally", "*.*"), cb=parts.tallies.hear)


async def _watch(bus: Bus, waiters: Waiters) -> None:
    """Send the waiters to the log after every reconnect."""
    while True:
        if await bus.changed(WATCH_INTERVAL_S):
            waiters.look_again()


def build(settings: GatewaySettings) -> Gateway:
    """Return the service; nothing is opened before `run`."""
    return Gateway(settings)

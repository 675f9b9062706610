"""The whole mesh as processes of this machine."""

import asyncio
import contextlib
import fcntl
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clawdbot import embedded
from clawdbot.async_client import AsyncClient
from clawdbot.supervisor import Program, Report, Supervised
from schemas.api import WorkflowView
from schemas.catalogue import load as load_catalogue
from schemas.errors import ClawdbotError, FailedPrecondition, NotFound
from schemas.structures import every_node


MODALITIES = ("text", "audio", "vision")
SCALE_INTERVAL_S = 2.0


@dataclass(frozen=True)
class MeshOptions:
    """How to run a mesh."""

    data_dir: Path
    http_host: str = "127.0.0.1"
    http_port: int = 8080
    nats_url: str = ""
    """An existing server; a server of our own is started when it is empty."""
    nats_port: int = 4222
    workers_max: int = 8


@dataclass
class Mesh:
    """A running mesh; `running` makes one.

    Args:
        options: How to run it.
        report: Told what happens to each process.
        group: Keeps the processes running.
    """

    options: MeshOptions
    report: Report
    group: asyncio.TaskGroup
    nats_url: str = ""
    http_url: str = ""
    processes: dict[str, Supervised] = field(default_factory=dict)

    async def start(self) -> None:
        """Start everything and wait until it serves.

        Raises:
            FailedPrecondition: Something does not start; says which and why.
        """
        self.nats_url = self.options.nats_url or await self._start_server()
        # The first service makes streams and keys; the others find them.
        await self._start_service("orchestrator", "services.orchestrator")
        async with asyncio.TaskGroup() as group:
            for modality in MODALITIES:
                group.create_task(self._start_worker(modality, 0))
            group.create_task(self._start_gateway())

    async def stop(self) -> None:
        """Stop everything, the server last."""
        for name in list(reversed(self.processes)):
            await self.processes.pop(name).stop()

    async def scale(self) -> None:
        """Run as many workers as the deployed workflows wish, for ever."""
        async with AsyncClient(self.http_url) as client:
            while True:
                await asyncio.sleep(SCALE_INTERVAL_S)
                try:
                    wanted = wanted_workers(await client.workflows(), self.options.workers_max)
                except ClawdbotError as error:
                    self.report("mesh", f"cannot see the workflows: {error.message}")
                    continue
                for modality, count in wanted.items():
                    await self._scale(modality, count)

    async def _scale(self, modality: str, count: int) -> None:
        have = sum(1 for name in self.processes if name.startswith(f"worker-{modality}-"))
        for number in range(have, count):
            await self._start_worker(modality, number)
        for number in range(count, have):
            await self.processes.pop(f"worker-{modality}-{number}").stop()

    async def _start_server(self) -> str:
        folder = self.options.data_dir / "nats"
        config = embedded.write_config(folder, self.options.nats_port)
        embedded.remove_reports(folder)
        url: list[str] = []

        def ready(pid: int, log: str) -> bool:
            found = embedded.reported_url(folder, pid)
            if found is None or "Server is ready" not in log:
                return False
            url[:] = [found]
            # A restarted server must come back where its clients look for it.
            embedded.write_config(folder, int(found.rpartition(":")[2]))
            return True

        command = (str(embedded.server_binary()), "-c", str(config.resolve()))
        await self._start(Program("nats-server", command, ready))
        return url[0]

    async def _start_gateway(self) -> None:
        options = self.options
        await self._start_service(
            "gateway", "services.gateway", http_host=options.http_host, http_port=options.http_port
        )
        gateway = self.processes["gateway"]
        port = _fact(gateway.since_start(), "listening", "port")
        # A restarted gateway must come back where its clients look for it.
        gateway.program.environment["CLAWDBOT_HTTP_PORT"] = str(port)
        host = "127.0.0.1" if options.http_host in {"0.0.0.0", "::"} else options.http_host  # noqa: S104 - compared
        self.http_url = f"http://{host}:{port}"

    async def _start_worker(self, modality: str, number: int) -> None:
        await self._start_service(
            f"worker-{modality}-{number}", "services.workers", modality=modality
        )

    async def _start_service(self, name: str, module: str, **settings: object) -> None:
        known = {
            "nats_url": self.nats_url,
            "data_dir": (self.options.data_dir / "services").resolve(),
            "instance": name,
            "log_format": "json",
            **settings,
        }
        environment = {f"CLAWDBOT_{key.upper()}": str(value) for key, value in known.items()}
        command = (sys.executable, "-m", module)
        await self._start(Program(name, command, _says_ready, environment))

    async def _start(self, program: Program) -> None:
        logs = self.options.data_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        process = Supervised(program, logs / f"{program.name}.log", self.report)
        self.processes[program.name] = process
        await process.start(self.group)


@contextlib.asynccontextmanager
async def running(options: MeshOptions, report: Report) -> AsyncIterator[Mesh]:
    """Run a mesh, alone in its data directory.

    Raises:
        FailedPrecondition: Another mesh runs there, or something does not start.
    """
    with _alone(options.data_dir):
        try:
            async with asyncio.TaskGroup() as group:
                mesh = Mesh(options, report, group)
                try:
                    await mesh.start()
                    scaling = group.create_task(mesh.scale())
                    yield mesh
                    scaling.cancel()
                finally:
                    await mesh.stop()
        except* ClawdbotError as errors:
            raise _first(errors) from None


def wanted_workers(workflows: tuple[WorkflowView, ...], workers_max: int) -> dict[str, int]:
    """Return how many workers each modality should have: the most that any workflow wishes."""
    catalogue = load_catalogue()
    wanted: Counter[str] = Counter(dict.fromkeys(MODALITIES, 1))
    for workflow in workflows:
        for kind, params in every_node(workflow.definition):
            modality = "text"
            with contextlib.suppress(NotFound):  # a catalogue of the services' own
                if kind == "model":
                    modality = catalogue.model(str(params.get("model"))).modality
            wanted[modality] = max(wanted[modality], workflow.replicas)
    return {modality: min(count, workers_max) for modality, count in wanted.items()}


@contextlib.contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Hold the data directory for this process.

    Raises:
        FailedPrecondition: Another process holds it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "up.lock").open("w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(
                f"a mesh runs in {data_dir} already; stop it, or choose another --data-dir"
            ) from None
        yield


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _says_ready(_: int, log: str) -> bool:
    return '"event":"ready"' in log


def _fact(log: str, event: str, name: str) -> Any:
    """Return a field of the newest line of an event."""
    for line in reversed(log.splitlines()):
        if f'"event":"{event}"' in line:
            return json.loads(line)[name]
    raise KeyError(event)

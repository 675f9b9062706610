"""The whole mesh as processes of this machine."""

import asyncio
import contextlib
import fcntl
import itertools
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from clawdbot import embedded, ports
from clawdbot.async_client import AsyncClient
from clawdbot.supervisor import Program, Report, Supervised
from schemas.api import WorkflowView
from schemas.catalogue import Modality
from schemas.errors import ClawdbotError, FailedPrecondition
from schemas.repository import split
from schemas.structures import every_node


MODALITIES = ("text", "audio", "vision")
SCALE_INTERVAL_S = 2.0
METRICS_FILE = "metrics.json"
LOCK_FILE = "up.lock"
TAIL_CHARS = 4096


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
    metrics_port: int = 0
    """Port of the first `/metrics`, the others take the next ones; 0 takes free ones."""
    catalogue: Path | None = None


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
    metrics_ports: dict[str, int] = field(default_factory=dict)

    def metrics_port(self, name: str) -> int:
        """Return a service's own port for its metrics, always the same one; 0 for a free one."""
        first, known = self.options.metrics_port, self.metrics_ports
        if not first:
            return known.get(name, 0)
        unused = next(port for port in itertools.count(first) if port not in known.values())
        return known.setdefault(name, unused)

    async def start(self) -> None:
        """Start everything and wait until it serves.

        Raises:
            FailedPrecondition: A port is taken, or something does not start; says which and why.
        """
        self._check_ports()
        if self.options.nats_url:
            await ports.check_reachable(self.options.nats_url)
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
                    workflows = await client.workflows()
                    modalities = {model.name: model.modality for model in await client.models()}
                    wanted = wanted_workers(workflows, modalities, self.options.workers_max)
                    for modality, count in wanted.items():
                        await self._scale(modality, count)
                except ClawdbotError as error:
                    self.report("mesh", f"cannot run what the workflows wish: {error.message}")

    async def _scale(self, modality: str, count: int) -> None:
        have = sum(1 for name in self.processes if name.startswith(f"worker-{modality}-"))
        for number in range(have, count):
            await self._start_worker(modality, number)
        for number in range(count, have):
            await self._stop_worker(f"worker-{modality}-{number}")

    async def _stop_worker(self, name: str) -> None:
        await self.processes.pop(name).stop()
        self.report(name, "stopped, no workflow wishes for it")
        self.metrics_ports.pop(name, None)
        self._publish_targets()

    def _check_ports(self) -> None:
        """Refuse ports that are taken before anything is started."""
        options = self.options
        wanted = [(options.http_host, options.http_port, "--port")]
        if not options.nats_url:
            wanted.append((embedded.HOST, options.nats_port, "--nats-port"))
        for host, port, option in wanted:
            reason = ports.why_not(host, port) if port else None
            if reason is not None:
                raise FailedPrecondition(
                    f"cannot listen on {host}:{port} ({reason}); stop what does, or choose another "
                    f"with {option} (0 takes a free one)"
                )

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

        async def unwell(pid: int) -> str:
            return await embedded.failed_write(folder, pid)

        command = (str(embedded.server_binary()), "-c", str(config.resolve()))
        program = Program("nats-server", command, ready, why=embedded.complaint, unwell=unwell)
        await self._start(program)
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
        self.http_url = ports.url(options.http_host, port)

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
            "metrics_host": self.options.http_host,
            "metrics_port": self.metrics_port(name),
            **settings,
        }
        environment = {f"CLAWDBOT_{key.upper()}": str(value) for key, value in known.items()}
        command = (sys.executable, "-m", module)
        program = Program(name, command, _says_ready, environment, why=_why_no_service)
        process = await self._start(program)
        # Where it was found once it is found again.
        port = _fact(process.since_start(), "metrics_listening", "port")
        environment["CLAWDBOT_METRICS_PORT"] = str(port)
        self.metrics_ports[name] = port
        self._publish_targets()

    async def _start(self, program: Program) -> Supervised:
        logs = self.options.data_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        process = Supervised(program, logs / f"{program.name}.log", self.report)
        self.processes[program.name] = process
        try:
            await process.start(self.group)
        except FailedPrecondition:
            del self.processes[program.name]
            raise
        return process

    def _publish_targets(self) -> None:
        """Tell Prometheus where every service is scraped.

        Source: Prometheus, `file_sd_config`.
        """
        targets = [
            {
                "targets": [ports.url(self.options.http_host, port).removeprefix("http://")],
                "labels": {"job": "clawdbot", "instance": name},
            }
            for name, port in sorted(self.metrics_ports.items())
        ]
        path = self.options.data_dir / METRICS_FILE
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(targets, indent=1) + "\n", encoding="utf-8")
        draft.replace(path)  # whoever reads it sees all of the old one or all of the new one


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
                    try:
                        yield mesh
                    finally:
                        scaling.cancel()
                finally:
                    await mesh.stop()
        except* ClawdbotError as errors:
            raise _first(errors) from None


def wanted_workers(
    workflows: tuple[WorkflowView, ...], modalities: Mapping[str, Modality], workers_max: int
) -> dict[str, int]:
    """Return how many workers each modality should have: the most that any workflow wishes."""
    wanted: Counter[str] = Counter(dict.fromkeys(MODALITIES, 1))
    for workflow in workflows:
        for kind, params in every_node(workflow.definition):
            model = split(str(params.get("model")))[0] if kind == "model" else ""
            modality = modalities.get(model, "text")
            wanted[modality] = max(wanted[modality], workflow.replicas)
    return {modality: min(count, workers_max) for modality, count in wanted.items()}


def mesh_runs(data_dir: Path) -> bool:
    """Tell whether a mesh of this machine holds a data directory."""
    try:
        with (data_dir / LOCK_FILE).open(encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # nobody ever used it
    return False


@contextlib.contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Hold the data directory for this process.

    Raises:
        FailedPrecondition: Another process holds it.
    """
    with _opened(data_dir / LOCK_FILE) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(
                f"a mesh runs in {data_dir} already; stop it, or choose another --data-dir"
            ) from None
        yield


def _opened(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="ascii")
    except OSError as error:
        raise FailedPrecondition(
            f"cannot write to {path.parent}: {error.strerror}; choose another --data-dir"
        ) from error


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _says_ready(_: int, log: str) -> bool:
    return '"event":"ready"' in log


def _why_no_service(log: str) -> str:
    """Return what a service said when it could not start, else the end of its log."""
    for line in reversed(log.splitlines()):
        if '"event":"cannot_start"' in line:
            fault = json.loads(line)
            return f"{fault['error']} ({fault['field']})" if fault["field"] else str(fault["error"])
    return log[-TAIL_CHARS:].strip()


def _fact(log: str, event: str, name: str) -> Any:
    """Return a field of the newest line of an event."""
    for line in reversed(log.splitlines()):
        if f'"event":"{event}"' in line:
            return json.loads(line)[name]
    raise KeyError(event)

"""A mesh in one thread: the production orchestrators and workers, a server, clients, and a seed."""

import asyncio
import hashlib
import random
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from pathlib import Path
from typing import Any

from services.orchestrator.app import Orchestrator
from services.orchestrator.settings import OrchestratorSettings
from services.workers.app import Worker
from services.workers.settings import WorkerSettings
from tests.support.sim.faults import SeededFaults
from tests.support.sim.loop import Process, VirtualLoop
from tests.support.sim.moody import MOODS
from tests.support.sim.network import Link, Network
from tests.support.sim.seams import CATALOGUE, simulated
from tests.support.sim.server import Server


EPOCH = 1_800_000_000.0
URL = "nats://sim:4222"
MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
MASTER = bytes(32)
MIB = 1024 * 1024
SHARED: dict[str, Any] = {
    "nats_url": URL,
    "master_key": MASTER_TEXT,
    "catalogue": CATALOGUE,
    "log_format": "json",
    "ack_wait_s": 1.0,
    "max_deliver": 100,
    "in_flight_max": 32,
}
Main = Callable[[], Coroutine[Any, Any, None]]


class World:
    """Everything of one seed.

    Args:
        seed: Decides everything.
        folder: Where processes keep their files.
        heals_at: When faults end, seconds since the start.
        failpoint: A point at which a process is killed for certain.
        visit: The how manieth time it comes by.
    """

    def __init__(
        self, seed: int, folder: Path, heals_at: float, failpoint: str = "", visit: int = 1
    ) -> None:
        self.seed = seed
        self._folder = folder
        self.chance = self.chances("world")
        thinking = self.chances("engines")
        self.network = Network(self.chances("network"))
        self.loop = VirtualLoop(self.network.connect, lambda: _thinking_s(thinking))
        self.faults = SeededFaults(self.chances("faults"), self, heals_at, failpoint, visit)
        self.server = Server(self.loop, EPOCH, self.chances("queues"), self.faults)
        self.network.loop, self.network.peer = self.loop, self
        self.processes: dict[str, Process] = {}
        self.ended: list[str] = []
        """Processes that ended by themselves, and why."""
        self._mains: dict[str, Main] = {}
        self._trace = hashlib.sha256()
        self.said = False
        """Whether log lines and tracebacks are wanted."""
        self.crashes = 0
        self.server_restarts = 0

    def chances(self, about: str) -> random.Random:
        """Return randomness for one purpose."""
        return random.Random(f"{self.seed}/{about}")

    @contextmanager
    def running(self, *, said: bool = False) -> Iterator[None]:
        """Let production code see this world."""
        self.said = said
        with simulated(self.loop.time, EPOCH, self.chances("entropy"), said=said):
            MOODS["now"] = self.chances("moods")
            try:
                yield
            finally:
                for process in self.processes.values():
                    self.loop.kill(process)
                self.loop.bury()

    # ------------------------------------------------------------ processes

    def orchestrator(self, number: int, **settings: Any) -> None:
        """Start an orchestrator."""
        name = f"orchestrator-{number}"
        own: dict[str, Any] = {
            "data_dir": self._folder / name,
            "instance": name,
            "clock_interval_s": 0.2,
            "snapshot_every": 3,
            "events_bytes_max": 256 * MIB,
        }
        of = OrchestratorSettings(**(SHARED | own | settings))
        self.launch(name, lambda: Orchestrator(of).run())

    def worker(self, number: int, **settings: Any) -> None:
        """Start a worker."""
        name = f"worker-{number}"
        of = WorkerSettings(**SHARED, data_dir=self._folder / name, instance=name, **settings)
        self.launch(name, lambda: Worker(of).run())

    def start(self, name: str, main: Main) -> "asyncio.Task[None]":
        """Start a process that nothing happens to."""
        process = self.processes[name] = Process(name)
        return self.loop.start(process, main())

    def launch(self, name: str, main: Main) -> None:
        """Start a service: it may be killed, and is started again then."""
        self._mains[name] = main
        process = self.processes[name] = Process(name, mortal=True)
        task = self.loop.start(process, main())
        task.add_done_callback(lambda done: self._over(process, done))

    def crash(self, process: Process) -> None:
        """Kill a process; it is started again after a while."""
        if not process.alive:
            return
        self.crashes += 1
        self.loop.kill(process)
        self.network.gone(process)
        self.later(self.chance.uniform(0.05, 1.5), self._restart, process)

    def pause(self, process: Process, seconds: float) -> None:
        """Stop a process for a while."""
        self.loop.pause(process)
        self.later(seconds, self.loop.resume, process)

    def later(self, seconds: float, call: Any, *args: Any) -> None:
        """Do something later, outside of all processes."""
        self.loop.call_later(seconds, call, *args, context=Context())

    def restart_server(self) -> None:
        """Kill the server and start it again: what it had in memory is gone."""
        self.server_restarts += 1
        self.network.listening = False
        self.server.restart()
        self.later(self.chance.uniform(0.05, 1.0), self._listen)

    def _listen(self) -> None:
        self.network.listening = True

    def happened(self) -> Counter[str]:
        """Return what went wrong, by kind and point."""
        return self.faults.happened + Counter({"server restart": self.server_restarts})

    def now(self) -> float:
        """Return the time, seconds since the start."""
        return self.loop.time()

    def _restart(self, process: Process) -> None:
        if self.processes[process.name] is process:
            self.launch(process.name, self._mains[process.name])

    def _over(self, process: Process, done: "asyncio.Task[None]") -> None:
        """A service ended by itself: whoever supervises it starts it again."""
        if process.alive and not done.cancelled():
            error = done.exception()
            text = "".join(traceback.format_exception(error)) if self.said else ""
            self.ended.append(f"{process.name}: ended by itself: {error!r}\n{text}")
            self.crash(process)

    # ------------------------------------------------------------ the server's side, traced

    def opened(self, link: Link) -> None:
        """Pass on."""
        self.server.opened(link)

    def received(self, link: Link, data: bytes) -> None:
        """Pass on, and remember for the trace."""
        who = link.process.name if link.process else ""
        self._trace.update(f"{self.loop.time():.9f} {who} ".encode() + data)
        self.server.received(link, data)

    def closed(self, link: Link) -> None:
        """Pass on."""
        self.server.closed(link)

    def trace(self) -> str:
        """Return a digest of every byte that was sent, by whom, when."""
        return self._trace.hexdigest()


def _thinking_s(chance: random.Random) -> float:
    """Return how long an engine, or any work in a thread, takes: rarely long."""
    usual = 0.0005 + 0.01 * chance.random()
    return usual * 300 if chance.random() < 0.03 else usual

"""The real services as real processes, for tests and benchmarks."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


READY_TIMEOUT_S = 120.0
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Service:
    """One service process; started again it keeps its name and its log."""

    name: str
    module: str
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `wait_ready` tells when it serves."""
        with self.log.open("ab") as log:
            log.write(b"--- started\n")
            log.flush()
            self.process = subprocess.Popen(  # noqa: S603 - our own service
                [sys.executable, "-m", self.module],
                cwd=ROOT,
                env={**os.environ, **self.environment},  # noqa: TID251 - handed to a child
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def wait_ready(self) -> None:
        """Wait until the service says it is ready.

        Raises:
            RuntimeError: It ended, or took too long; carries its log.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            text = self.log.read_text(errors="replace").rpartition("--- started")[2]
            if '"event":"ready"' in text:
                return
            if self.process is None or self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError(f"{self.name} is not ready:\n{self.log.read_text(errors='replace')}")

    @property
    def pid(self) -> int:
        """Process id of the running service."""
        assert self.process is not None, "the service does not run"
        return self.process.pid

    def fact(self, event: str, name: str) -> Any:
        """Return a field of the newest log line of an event: `fact("listening", "port")`.

        Raises:
            KeyError: There is no such line.
        """
        for line in reversed(self.log.read_text(errors="replace").splitlines()):
            if f'"event":"{event}"' in line:
                return json.loads(line)[name]
        raise KeyError(event)

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal, if it runs; SIGKILL and SIGTERM are waited for."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signum)
        if signum in {signal.SIGKILL, signal.SIGTERM}:
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()  # no test after this one shall suffer for it
                self.process.wait()
                raise


@dataclass
class Mesh:
    """Every service against one nats-server."""

    folder: Path
    nats_url: str
    extra: dict[str, str] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)

    def add(self, name: str, module: str, **environment: str) -> Service:
        """Declare a service; `environment` without its prefix, `http_port="0"`."""
        settings = {
            "nats_url": self.nats_url,
            "data_dir": str(self.folder / "data"),
            "instance": name,
            "log_format": "json",
            **self.extra,
            **environment,
        }
        prefixed = {f"CLAWDBOT_{key.upper()}": value for key, value in settings.items()}
        service = Service(name, module, prefixed, self.folder / f"{name}.log")
        self.services[name] = service
        return service

    def add_core(self, *, modalities: tuple[str, ...] = ("text",), replicas: int = 1) -> None:
        """Declare orchestrators and workers."""
        for number in range(replicas):
            self.add(f"orchestrator-{number}", "services.orchestrator")
            for modality in modalities:
                self.add(f"{modality}-{number}", "services.workers", modality=modality)

    def start(self) -> None:
        """Start everything and wait until it serves."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for service in self.services.values():
            service.start()
        for service in self.services.values():
            service.wait_ready()

    def stop_one(self, name: str) -> None:
        """Stop a service, and forget it."""
        self.services.pop(name).signal(signal.SIGTERM)

    def stop(self) -> None:
        """Stop everything in order."""
        with contextlib.ExitStack() as each:  # also if one does not stop
            for service in reversed(self.services.values()):
                each.callback(service.signal, signal.SIGTERM)
                each.callback(service.signal, signal.SIGCONT)

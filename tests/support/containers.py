"""Docker for tests: a compose project of its own, its containers killed and watched."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.ids import new_id
from tests.support.wait import until_sync


ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "compose"
BUILD_S = 900.0
UP_S = 240.0
BACK_S = 90.0
SERVICE_IMAGE, WORKER_IMAGE = "clawdbot/service:test", "clawdbot/worker:test"


def docker(
    *command: str, timeout_s: float = UP_S, environment: Mapping[str, str] | None = None
) -> str:
    """Run docker; return what it prints.

    Raises:
        AssertionError: It failed; says what it printed.
    """
    done = subprocess.run(  # noqa: S603 - docker is what we test
        ["docker", *command],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},  # noqa: TID251 - handed to a child
        check=False,
    )
    assert done.returncode == 0, f"docker {' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Project:
    """A compose file that is up under a name and on ports of its own.

    Args:
        file: Its name below `deploy/compose`.
        ports: Of the gateways, by the variable that sets each.
    """

    file: str
    ports: dict[str, int]
    name: str = field(default_factory=lambda: f"clawdbot-test-{new_id().lower()[-8:]}")

    @property
    def urls(self) -> list[str]:
        """Addresses of the gateways."""
        return [f"http://127.0.0.1:{port}" for port in self.ports.values()]

    def compose(self, *command: str, timeout_s: float = UP_S) -> str:
        """Run a command of docker compose in this project."""
        environment = {name: str(port) for name, port in self.ports.items()}
        environment |= {
            "CLAWDBOT_IMAGE": SERVICE_IMAGE,
            "CLAWDBOT_WORKER_IMAGE": WORKER_IMAGE,
            "COMPOSE_FILE": str(COMPOSE / self.file),
            "COMPOSE_PROJECT_NAME": self.name,
        }
        return docker("compose", *command, timeout_s=timeout_s, environment=environment)

    def services(self) -> list[str]:
        """Return the services that run."""
        return self.compose("ps", "--services").split()

    def inspect(self, service: str) -> Any:
        """Return what Docker knows of a service's container."""
        return json.loads(docker("inspect", f"{self.name}-{service}-1"))[0]

    def crash(self, service: str) -> None:
        """Kill every process of a container; Docker itself must start it again."""
        before = self.inspect(service)["State"]["StartedAt"]
        subprocess.run(  # noqa: S603 - ends with the container, in whatever way
            ["docker", "exec", f"{self.name}-{service}-1", "sh", "-c", "kill -9 -1"],  # noqa: S607
            capture_output=True,
            check=False,
        )
        until_sync(lambda: self.inspect(service)["State"]["StartedAt"] != before, timeout_s=BACK_S)

    def kill(self, service: str) -> None:
        """Kill a container as an operator does: it stays down until it is started."""
        docker("kill", "--signal", "KILL", f"{self.name}-{service}-1")

    def start(self, service: str) -> None:
        """Start a killed container."""
        docker("start", f"{self.name}-{service}-1")

    def wait_healthy(self, *services: str) -> None:
        """Wait until the health checks of containers pass."""

        def healthy() -> bool:
            states = [self.inspect(service)["State"] for service in services]
            return all(state["Health"]["Status"] == "healthy" for state in states)

        until_sync(healthy, timeout_s=BACK_S)


@contextmanager
def project(file: str, *port_variables: str) -> Iterator[Project]:
    """Build and start a compose file; remove everything but the images afterwards."""
    up = Project(file, {variable: free_port() for variable in port_variables})
    up.compose("build", "--quiet", timeout_s=BUILD_S)
    try:
        try:
            up.compose("up", "-d", "--wait")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{up.compose('logs', '--tail', '30')}") from None
        yield up
    finally:
        up.compose("down", "-v", "--timeout", "5")

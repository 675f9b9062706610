"""A full disk: clients are told at once, nothing accepted is lost, all goes on with the room."""

import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from clawdbot.mesh import Mesh, MeshOptions, running
from schemas.ids import new_id
from tests.support.disk import Ballast, cannot_mount, small_disk
from tests.support.wait import until


CANNOT = cannot_mount()
pytestmark = [
    pytest.mark.nats,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(CANNOT), reason=CANNOT),
]
DISK_MIB = 96
LEFT_BYTES = 512 * 1024
TEXT_BYTES = 8 * 1024
CLIENTS = 8
FULL_S = 1.0
"""How long the disk stays full."""
REFUSALS_MIN = 20
ANSWERED_S = 4.0
"""Twice `request_s_max`: the first to find out have waited that long."""
AT_ONCE_S = 1.0
ECHO = {"nodes": [{"id": "a", "type": "model", "params": {"model": "echo"}}]}


@dataclass
class Clients:
    """Submit runs until told to stop; remember what was accepted and how refusals came."""

    url: str
    over: threading.Event = field(default_factory=threading.Event)
    accepted: dict[str, str] = field(default_factory=dict)
    """The text of each accepted run."""
    refused: list[tuple[int, float]] = field(default_factory=list)
    """Status and seconds of each refusal."""

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """Submit until the block is left."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(self._submit) for _ in range(CLIENTS)]
            try:
                yield
            finally:
                self.over.set()
        for client in clients:
            client.result()

    def _submit(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as http:
            while not self.over.is_set():
                text = new_id() + "x" * TEXT_BYTES
                begun = time.monotonic()
                answer = http.post("/v1/workflows/echo/runs", json={"inputs": {"text": text}})
                if answer.is_success:
                    self.accepted[answer.json()["run_id"]] = text
                    continue
                assert int(answer.headers["Retry-After"]) >= 1
                self.refused.append((answer.status_code, time.monotonic() - begun))
                self.over.wait(0.05)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Ballast]:
    """The disk of the server."""
    with small_disk(tmp_path / "up" / "nats", DISK_MIB) as ballast:
        yield ballast


@pytest.fixture
async def mesh(tmp_path: Path, disk: Ballast) -> AsyncIterator[Mesh]:
    """What `clawdbot up` runs, the server's files on a small disk."""
    options = MeshOptions(tmp_path / "up", http_port=0, nats_port=0)
    async with running(options, lambda _name, _line: None) as mesh:
        yield mesh


async def test_a_full_disk_is_answered_at_once_and_ends_by_itself(
    mesh: Mesh, disk: Ballast
) -> None:
    """507 or 503 with Retry-After while it is full; then every accepted run completes."""
    async with httpx.AsyncClient(base_url=mesh.http_url, timeout=30) as http:
        deployed = await http.post("/v1/workflows", json={"name": "echo", "definition": ECHO})
        assert deployed.is_success, deployed.text
        clients = Clients(mesh.http_url)
        with clients.submitting():
            await until(lambda: _at_least(clients.accepted, 20), what="load", timeout_s=30)
            disk.fill(LEFT_BYTES)
            await until(
                lambda: _at_least(clients.refused, REFUSALS_MIN), what="refusals", timeout_s=60
            )
            full_since = time.monotonic()
            await until(lambda: _past(full_since + FULL_S), what="a while", timeout_s=60)
            disk.drop()
            there = len(clients.accepted)
            await until(
                lambda: _at_least(clients.accepted, there + 20), what="recovery", timeout_s=60
            )
        assert {status for status, _ in clients.refused} <= {503, 507}
        seconds = sorted(took for _, took in clients.refused)
        assert seconds[-1] < ANSWERED_S
        assert seconds[len(seconds) * 3 // 4] < AT_ONCE_S, "most are told at once"
        open_runs = dict(clients.accepted)

        async def all_over() -> bool:
            for run_id, text in list(open_runs.items()):
                run = (await http.get(f"/v1/runs/{run_id}")).json()
                if run.get("status") not in {"accepted", "running"}:
                    assert run.get("outputs") == {"a": {"text": text}}, run["status"]
                    del open_runs[run_id]
            return not open_runs

        await until(all_over, what="the end of every accepted run", timeout_s=60)


async def _at_least(seen: object, count: int) -> bool:
    assert isinstance(seen, list | dict)
    return len(seen) >= count


async def _past(moment: float) -> bool:
    return time.monotonic() > moment

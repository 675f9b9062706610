"""NATS away, silent, a gateway killed: clients are told at once, and all resumes alone."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from schemas.ids import new_id
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats
MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
OUTAGE_S = float(os.environ.get("CLAWDBOT_TEST_OUTAGE_S", "3"))  # noqa: TID251 - the tests' own
NOTICED_S = 8.0
RESUMED_S = 20.0
CLIENTS, RUNS, KILLS = 8, 300, 3
ECHO = {"nodes": [{"id": "a", "type": "model", "params": {"model": "echo"}}]}


@pytest.fixture
def mesh(nats_server: NatsServer, tmp_path: Path) -> Iterator[Mesh]:
    """A whole small mesh of its own."""
    mesh = Mesh(tmp_path, nats_server.url, {"master_key": MASTER_TEXT, "ack_wait_s": "2"})
    mesh.add_core()
    mesh.add("gateway", "services.gateway", http_port="0")
    mesh.start()
    yield mesh
    mesh.stop()


@contextmanager
def _client(mesh: Mesh) -> Iterator[httpx.Client]:
    port = mesh.services["gateway"].fact("listening", "port")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        deployed = client.post("/v1/workflows", json={"name": "away", "definition": ECHO})
        assert deployed.is_success, deployed.text
        yield client


def _run(client: httpx.Client) -> httpx.Response:
    return client.post("/v1/workflows/away/runs?wait=20", json={"inputs": {"text": "x"}})


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", ["killed", "paused"])
def test_an_outage_is_answered_503_and_ends_by_itself(
    mesh: Mesh, nats_server: NatsServer, fault: str
) -> None:
    """503 with Retry-After at once (a paused server is noticed within seconds), then as before."""
    with _client(mesh) as client:
        assert _run(client).json()["status"] == "completed"
        nats_server.kill() if fault == "killed" else nats_server.pause()
        begun = time.monotonic()
        try:
            until_sync(lambda: _run(client).status_code == 503, timeout_s=NOTICED_S)
            while time.monotonic() - begun < OUTAGE_S:
                asked = time.monotonic()
                for path in ("/v1/workflows", "/v1/runs/x", "/v1/models", "/readyz"):
                    answer = client.get(path)
                    assert answer.status_code == 503, (path, answer.text)
                    assert int(answer.headers["Retry-After"]) >= 1
                    assert answer.json()["error"]["retryable"] is True
                assert client.get("/livez").status_code == 200
                assert time.monotonic() - asked < NOTICED_S
        finally:
            nats_server.start() if fault == "killed" else nats_server.resume()
        until_sync(lambda: _run(client).status_code == 200, timeout_s=RESUMED_S)
        assert _run(client).json()["status"] == "completed"
    alive = [service.process for service in mesh.services.values()]
    assert all(process and process.poll() is None for process in alive), "somebody gave up"


@pytest.mark.timeout(120)
def test_a_killed_gateway_loses_nothing_and_doubles_nothing(mesh: Mesh) -> None:
    """Clients retry with their key until they are answered: one run a key, every one completed."""
    gateway = mesh.services["gateway"]
    with _client(mesh) as client:
        gateway.environment["CLAWDBOT_HTTP_PORT"] = str(client.base_url.port)
        answered: dict[str, str] = {}
        refused = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as clients:
            asked = [
                clients.submit(_insist, client, new_id(), answered, refused) for _ in range(RUNS)
            ]
            for _ in range(KILLS):
                until_sync(lambda: any(not task.done() for task in asked) and len(answered) > 10)
                gateway.signal(signal.SIGKILL)
                gateway.start()
                gateway.wait_ready()
        for task in asked:
            task.result()
        assert refused.is_set(), "no client noticed a kill: the test did not test it"
        assert len(set(answered.values())) == RUNS
        runs = [client.get(f"/v1/runs/{run_id}").json() for run_id in answered.values()]
    assert [run["outputs"] for run in runs] == [{"a": {"text": key}} for key in answered]


def _insist(
    client: httpx.Client, key: str, answered: dict[str, str], refused: threading.Event
) -> None:
    """Ask with one key until there is an answer."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            answer = client.post(
                "/v1/workflows/away/runs?wait=20",
                json={"inputs": {"text": key}},
                headers={"Idempotency-Key": key},
            )
        except httpx.TransportError:
            refused.set()
            time.sleep(0.2)  # as a client should, before it tries again
            continue
        if answer.status_code == 200:
            answered[key] = answer.json()["run_id"]
            return

"""At the limits: a full log, a wrong key."""

import asyncio
import base64
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import nats
import pytest

from events.subjects import submit
from schemas.ids import DEFAULT_TENANT
from schemas.messages import Header
from tests.support.mesh import ROOT, Mesh
from tests.support.nats import NatsServer
from tests.support.play import graph, model
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats
KEY = base64.b64encode(bytes(32)).decode()
OTHER_KEY = base64.b64encode(bytes([1] * 32)).decode()


@pytest.fixture
def mesh(nats_server: NatsServer, tmp_path: Path) -> Iterator[Mesh]:
    """A mesh whose log holds eight mebibytes."""
    mesh = Mesh(tmp_path, nats_server.url, {"master_key": KEY, "events_bytes_max": str(2**23)})
    mesh.add_core()
    mesh.add("gateway", "services.gateway", http_port="0", events_reserve="0.9")
    mesh.start()
    yield mesh
    mesh.stop()


def test_a_full_log_takes_no_new_runs_and_finishes_the_others(mesh: Mesh) -> None:
    """507 with the setting to raise, while there is room for what was accepted."""
    port = mesh.services["gateway"].fact("listening", "port")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        http.post("/v1/workflows", json={"name": "full", "definition": graph(model("a"))})
        accepted: list[str] = []

        def refused() -> bool:
            body = {"inputs": {"text": secrets.token_hex(5_000)}}
            answer = http.post("/v1/workflows/full/runs", json=body)
            if answer.status_code == 202:
                accepted.append(answer.json()["run_id"])
                return False
            assert answer.status_code == 507, answer.text
            error = answer.json()["error"]
            assert (error["code"], error["retryable"]) == ("RESOURCE_EXHAUSTED", True)
            assert "CLAWDBOT_EVENTS_BYTES_MAX" in error["message"]
            return True

        until_sync(refused, timeout_s=60)
        for run_id in accepted:
            until_sync(partial(_completed, http, run_id), timeout_s=30)


async def test_what_was_accepted_waits_until_the_log_has_room(mesh: Mesh) -> None:
    """The log has not a byte left: nothing is given up, however few deliveries are allowed."""
    orchestrator = mesh.services["orchestrator-0"]
    orchestrator.signal(signal.SIGTERM)
    orchestrator.environment["CLAWDBOT_MAX_DELIVER"] = "1"
    orchestrator.start()
    orchestrator.wait_ready()
    port = mesh.services["gateway"].fact("listening", "port")
    client = await nats.connect(mesh.nats_url)
    js = client.jetstream()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        document = {"name": "full", "definition": graph(model("a"))}
        await asyncio.to_thread(http.post, "/v1/workflows", json=document)
        events = await js.stream_info("EVENTS")
        await js.update_stream(events.config.evolve(max_bytes=events.state.bytes))
        subject = submit(DEFAULT_TENANT, "full")
        for number in range(20):
            headers = {Header.RUN_ID: f"waits-{number}"}
            await js.publish(subject, b'{"inputs": {"text": "hi"}}', headers=headers)
        until_sync(lambda: b'"event":"message_held"' in orchestrator.log.read_bytes())
        await js.update_stream(events.config.evolve(max_bytes=2**26))
        for number in range(20):
            until_sync(partial(_completed, http, f"waits-{number}"), timeout_s=30)
    assert (await js.stream_info("DEAD")).state.messages == 0
    await client.close()


def _completed(http: httpx.Client, run_id: str) -> bool:
    return bool(http.get(f"/v1/runs/{run_id}").json().get("status") == "completed")


@pytest.mark.parametrize("module", ["gateway", "orchestrator", "workers"])
def test_a_wrong_master_key_is_refused_at_start(mesh: Mesh, module: str, tmp_path: Path) -> None:
    """At once and in one line, instead of a service that can read nothing."""
    environment = {
        **mesh.services["gateway"].environment,
        "CLAWDBOT_MASTER_KEY": OTHER_KEY,
        "CLAWDBOT_INSTANCE": "wrong",
        "PATH": "",
    }
    done = subprocess.run(  # noqa: S603 - our own service
        [sys.executable, "-m", f"services.{module}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    [line] = [line for line in done.stdout.splitlines() if b"cannot_start" in line]
    assert b"master key" in line
    assert b"Traceback" not in done.stdout + done.stderr

"""At the limits: a full log, a wrong key."""

import base64
import secrets
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

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


def _completed(http: httpx.Client, run_id: str) -> bool:
    return bool(http.get(f"/v1/runs/{run_id}").json()["status"] == "completed")


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

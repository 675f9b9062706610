"""Runs expire under real services: archived, retired, their blobs swept; the rest stays."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from clawdbot import Client
from events.export import unpack
from schemas.ids import new_id
from services.orchestrator.settings import OrchestratorSettings
from tests.support import hostile_models as hostile
from tests.support import onnx_models as tiny
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats
MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
RETENTION = {
    "retention_completed_days": str(2 / 86_400),
    "retention_cancelled_days": str(2 / 86_400),
    "sweep_interval_s": "0.5",
    "sweep_runs_max": "2",
    "blob_sweep_interval_s": "0.5",
    "blob_grace_hours": str(2 / 3600),
}
RUNS = 5
IMAGE = {"content-type": "image/png"}
ECHO = {"nodes": [{"id": "a", "type": "model", "params": {"model": "echo"}}]}
WAITING = {"nodes": [{"id": "a", "type": "model", "params": {"model": "rapidocr"}}]}
"""There is no worker for vision here, so its runs go on for ever."""


@pytest.fixture(scope="module")
def mesh(nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Two orchestrators that keep finished runs for two seconds."""
    extra = {"master_key": MASTER_TEXT, **RETENTION}
    mesh = Mesh(tmp_path_factory.mktemp("mesh"), nats_server.url, extra)
    mesh.add_core()
    mesh.add("orchestrator-1", "services.orchestrator")
    mesh.add("gateway", "services.gateway", http_port="0")
    mesh.start()
    yield mesh
    mesh.stop()


@pytest.fixture
def http(mesh: Mesh) -> Iterator[httpx.Client]:
    """Return a client of the gateway, with both workflows deployed."""
    port = mesh.services["gateway"].fact("listening", "port")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        for name, definition in (("echo", ECHO), ("waiting", WAITING)):
            deployed = client.post("/v1/workflows", json={"name": name, "definition": definition})
            assert deployed.is_success, deployed.text
        yield client


def _image(number: int) -> bytes:
    """Return bytes of type PNG, too many to be kept inline; nobody ever decodes them."""
    return b"\x89PNG\r\n\x1a\n" + bytes([number]) * 100_000


def blob(http: httpx.Client, data: bytes) -> str:
    """Store a blob; return its digest."""
    answer = http.post("/v1/blobs", content=data, headers=IMAGE)
    assert answer.is_success, answer.text
    return str(answer.json()["sha256"])


def submit(http: httpx.Client, workflow: str, run_id: str, **request: Any) -> httpx.Response:
    """Ask for a run."""
    headers = {"Clawdbot-Run-Id": run_id, **request.pop("headers", {})}
    return http.post(f"/v1/workflows/{workflow}/runs", headers=headers, **request)


def listed(http: httpx.Client) -> list[str]:
    """Return the ids of all runs."""
    return [run["run_id"] for run in http.get("/v1/runs").json()["runs"]]


def swept(mesh: Mesh, event: str, name: str) -> list[int]:
    """Return a figure of every sweep of every orchestrator."""
    lines = [
        line
        for service in mesh.services.values()
        for line in service.log.read_text(errors="replace").splitlines()
        if f'"event":"{event}"' in line
    ]
    return [json.loads(line)[name] for line in lines]


@pytest.mark.timeout(120)
def test_expired_runs_are_archived_and_their_blobs_swept(mesh: Mesh, http: httpx.Client) -> None:
    """What is finished goes in time, each once; what runs stays, and so does what it cites."""
    kept, cited, orphan = (blob(http, _image(number)) for number in range(3))
    stays = submit(http, "waiting", new_id(), content=_image(0), headers=IMAGE)
    gone = [new_id() for _ in range(RUNS)]
    submit(http, "waiting", gone[0], content=_image(1), headers=IMAGE)
    assert 202 == http.post(f"/v1/runs/{gone[0]}/control", json={"action": "cancel"}).status_code
    for run_id in gone[1:]:
        submit(http, "echo", run_id, json={"inputs": {"text": "x"}})

    until_sync(lambda: sum(swept(mesh, "runs_swept", "retired")) >= RUNS, timeout_s=40)
    for run_id in gone:
        answer = http.get(f"/v1/runs/{run_id}")
        assert 404 == answer.status_code
        assert f"run {run_id} was retired on 20" in answer.json()["error"]["message"]
        assert 409 == submit(http, "echo", run_id, json={"inputs": {"text": "x"}}).status_code
        bundle = unpack((_archive(mesh) / "default" / f"{run_id}.clawdbot.zip").read_bytes())
        expected = ("cancelled", 1) if run_id == gone[0] else ("completed", 0)
        assert expected == (bundle.manifest.status, len(bundle.blobs))
    until_sync(lambda: listed(http) == [stays.json()["run_id"]])
    blobs = [f"/v1/blobs/{digest}" for digest in (orphan, cited)]
    until_sync(lambda: all(http.get(path).status_code == 404 for path in blobs))
    assert _image(0) == http.get(f"/v1/blobs/{kept}").content
    assert RUNS == sum(swept(mesh, "runs_swept", "retired"))
    assert 2 == max(swept(mesh, "runs_swept", "retired")), "a sweep is bounded"
    assert [] == [item for item in swept(mesh, "runs_swept", "failed") if item]


def _archive(mesh: Mesh) -> Path:
    return mesh.folder / "data" / "archive"


def test_defaults_keep_runs_for_weeks() -> None:
    """Out of the box a completed run stays thirty days, a failed one ninety."""
    policy = OrchestratorSettings().retention()
    day_s = 86_400.0
    assert (30, 90, 30, 7) == tuple(
        int((policy.kept_s(status) or 0) / day_s)
        for status in ("completed", "failed", "cancelled", "rejected")
    )


def test_parts_that_no_version_names_are_swept(http: httpx.Client, tmp_path: Path) -> None:
    """A push that was broken off leaves nothing for ever; what a version names stays."""
    tiny.save(tiny.identity("FP32"), tmp_path / "kept.onnx")
    with Client(str(http.base_url)) as client:
        client.repository.push(tmp_path / "kept.onnx")
        [version] = client.repository.get("kept").versions
        [part] = version.files[0].parts
    orphan = http.post("/v1/artefacts", content=b"half a model").json()["sha256"]
    until_sync(lambda: 404 == http.get(f"/v1/artefacts/{orphan}").status_code, timeout_s=20)
    assert 200 == http.get(f"/v1/artefacts/{part}").status_code
    http.delete("/v1/models/kept")
    until_sync(lambda: 404 == http.get(f"/v1/artefacts/{part}").status_code, timeout_s=20)


def test_gateways_push_a_folder_when_they_start(
    mesh: Mesh, http: httpx.Client, tmp_path: Path
) -> None:
    """Both at once, and again: one version each, in order; what cannot be pushed is left out."""
    folder = tmp_path / "served"
    for number in (1, 2):
        proto = tiny.identity("FP32")
        proto.producer_version = str(number)
        tiny.save(proto, folder / "counted" / str(number) / "model.onnx")
    tiny.save(tiny.iris(), folder / "iris" / "model.onnx")
    (folder / "evil").mkdir()
    (folder / "evil" / "m.onnx").write_bytes(hostile.external("../secret"))
    for name in ("pusher-0", "pusher-1"):
        mesh.add(name, "services.gateway", http_port="0", repository_dir=str(folder)).start()
    for name in ("pusher-0", "pusher-1"):
        mesh.services[name].wait_ready()

    def versions(model: str) -> list[int]:
        answer = http.get(f"/v1/models/{model}").json()
        return [version["version"] for version in answer.get("versions", ())]

    until_sync(lambda: [1, 2] == versions("counted"), timeout_s=20)
    until_sync(lambda: [1] == versions("iris"), timeout_s=20)
    assert 404 == http.get("/v1/models/evil").status_code

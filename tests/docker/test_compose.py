"""The containers, for real: a run over HTTP, kills in the middle of load, nothing lost."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from schemas.ids import new_id
from tests.support.wait import until_sync


pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "compose"
EXAMPLE = ROOT / "examples" / "voice_assistant"
ECHO = {"id": "a", "type": "model", "params": {"model": "echo"}}
RUNS = 40
UP_S = 240.0
ENDED_S = 120.0


def docker(*command: str, timeout_s: float = UP_S) -> str:
    """Run docker; return what it prints."""
    done = subprocess.run(  # noqa: S603 - docker is what we test
        ["docker", *command],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, f"docker {' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """Skip where there is no Docker Engine with Compose v2."""
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    for probe in (["docker", "info"], ["docker", "compose", "version"]):
        if subprocess.run(probe, capture_output=True, check=False).returncode:  # noqa: S603
            pytest.skip(f"`{' '.join(probe)}` does not work here")


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def compose_up(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[tuple[str, str]]:
    """Bring a compose file up under a project name of its own; yield the name and the address."""
    project = f"clawdbot-test-{new_id().lower()[-8:]}"
    port = free_port()
    monkeypatch.setenv("CLAWDBOT_PORT", str(port))
    monkeypatch.setenv("CLAWDBOT_PORT_2", str(free_port()))
    compose = ["compose", "-p", project, "-f", str(COMPOSE / name)]
    docker(*compose, "build", "--quiet", timeout_s=600)
    try:
        try:
            docker(*compose, "up", "-d", "--wait")
        except AssertionError as error:
            logs = docker(*compose, "logs", "--tail", "30")
            raise AssertionError(f"{error}\n{logs}") from None
        yield project, f"http://127.0.0.1:{port}"
    finally:
        docker(*compose, "down", "-v", "--timeout", "5")


def _deploy(http: httpx.Client) -> None:
    answer = http.post("/v1/workflows", json={"name": "echo", "definition": {"nodes": [ECHO]}})
    assert answer.is_success, answer.text


def _insist(http: httpx.Client, key: str) -> str:
    """Submit with a key until it is accepted; return the run's id."""
    deadline = time.monotonic() + ENDED_S
    while True:
        try:
            answer = http.post(
                "/v1/workflows/echo/runs",
                json={"inputs": {"text": key}},
                headers={"Idempotency-Key": key},
            )
            if answer.status_code == 202:
                return str(answer.json()["run_id"])
            assert answer.status_code == 503, answer.text
        except httpx.TransportError:
            pass  # the gateway was killed: try again
        assert time.monotonic() < deadline, "nothing is accepted any more"
        time.sleep(0.2)


def _load_and_kill(http: httpx.Client, project: str, victims: list[str]) -> None:
    """Submit runs while containers are killed and started again; every one must complete."""
    accepted: dict[str, str] = {}
    for victim in victims:
        for number in range(RUNS // len(victims)):
            key = new_id()
            accepted[_insist(http, key)] = key
            if number == RUNS // len(victims) // 2:
                docker("kill", "--signal", "KILL", f"{project}-{victim}-1")
                docker("start", f"{project}-{victim}-1")
    for run_id, key in accepted.items():

        def ended(run_id: str = run_id) -> bool:
            try:
                return bool(http.get(f"/v1/runs/{run_id}").json().get("status") == "completed")
            except httpx.TransportError:
                return False

        until_sync(ended, timeout_s=ENDED_S)
        assert http.get(f"/v1/runs/{run_id}").json()["outputs"] == {"a": {"text": key}}


def test_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speech in, speech out; then every kind of container is killed under load."""
    with (
        compose_up(monkeypatch, "compose.yaml") as (project, url),
        httpx.Client(base_url=url, timeout=30) as http,
    ):
        workflow = (EXAMPLE / "workflow.json").read_bytes()
        kind = {"Content-Type": "application/json"}
        assert http.post("/v1/workflows", content=workflow, headers=kind).status_code == 201
        audio = (EXAMPLE / "weather.wav").read_bytes()
        run = http.post(
            "/v1/workflows/voice_assistant/runs?wait=60",
            content=audio,
            headers={"Content-Type": "audio/wav"},
            timeout=90,
        ).json()
        assert run["status"] == "completed", run
        assert run["nodes"][0]["outputs"]["text"] == "how is the weather"
        spoken = run["outputs"]["tts"]["audio"]["$blob"]["sha256"]
        assert http.get(f"/v1/blobs/{spoken}").content[:4] == b"RIFF"
        _deploy(http)
        _load_and_kill(http, project, ["worker-text", "orchestrator", "nats", "gateway"])


def test_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three NATS servers: one of them is killed under load, and one of each service."""
    with (
        compose_up(monkeypatch, "compose.cluster.yaml") as (project, url),
        httpx.Client(base_url=url, timeout=30) as http,
    ):
        _deploy(http)
        _load_and_kill(http, project, ["nats-1", "orchestrator-1", "worker-text-2"])


def test_gpu_file_is_valid() -> None:
    """It is checked, not run."""
    files = [COMPOSE / "compose.yaml", COMPOSE / "compose.gpu.yaml"]
    shown = docker("compose", *(part for file in files for part in ("-f", str(file))), "config")
    assert "capabilities" in shown
    assert "EXTRA: gpu" in shown


def test_the_whole_mesh_in_one_container() -> None:
    """`docker run -p 8080:8080 clawdbot/dev-env`."""
    image, name, port = "clawdbot/dev-env:test", f"clawdbot-test-{new_id().lower()}", free_port()
    docker(
        "build", "--quiet", "-f", str(COMPOSE / "Dockerfile"), "--target", "dev-env", "-t", image,
        ".", timeout_s=600,
    )  # fmt: skip
    docker("run", "-d", "--name", name, "-p", f"127.0.0.1:{port}:8080", image)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            until_sync(lambda: _ready(http), timeout_s=90)
            _deploy(http)
            run = http.post("/v1/workflows/echo/runs?wait=20", json={"inputs": {"text": "hi"}})
            assert run.json()["outputs"] == {"a": {"text": "hi"}}
        begun = time.monotonic()
        docker("stop", "--time", "30", name)
        assert time.monotonic() - begun < 25, "it did not stop when it was told to"
    finally:
        docker("rm", "-f", "-v", name)


def _ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False

"""The containers, for real: a run over HTTP, kills in the middle of load, nothing lost."""

import json
import os
import shutil
import subprocess
import time
from typing import Any

import httpx
import pytest

from schemas.ids import new_id
from tests.support.containers import (
    BUILD_S,
    COMPOSE,
    ROOT,
    SERVICE_IMAGE,
    Project,
    docker,
    free_port,
    project,
)
from tests.support.load import Load
from tests.support.wait import until_sync


pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]
EXAMPLES = ROOT / "examples"
SPEECH = EXAMPLES / "voice_assistant"
IMAGE = EXAMPLES / "media_analysis" / "note.png"
EVERY_WORKER = [("echo", "echo"), ("say", "espeak-ng"), ("read", "rapidocr")]
RUNS_MIN = 30


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """Docker Engine with Compose v2; its absence skips on a laptop and fails in CI."""
    lacking = None
    if shutil.which("docker") is None:
        lacking = "docker is not installed"
    else:
        for probe in (["docker", "info"], ["docker", "compose", "version"]):
            if subprocess.run(probe, capture_output=True, check=False).returncode:  # noqa: S603
                lacking = f"`{' '.join(probe)}` does not work here"
    if lacking and os.environ.get("CI"):  # noqa: TID251 - the tests' own switch
        pytest.fail(lacking)
    if lacking:
        pytest.skip(lacking)


def deploy(url: str, name: str, *models: tuple[str, str]) -> None:
    """Deploy models side by side, each a node."""
    nodes = [{"id": node, "type": "model", "params": {"model": model}} for node, model in models]
    document = {"name": name, "definition": {"nodes": nodes}}
    answer = httpx.post(f"{url}/v1/workflows", json=document, timeout=30)
    assert answer.is_success, answer.text


def load_on_every_worker(up: Project) -> Load:
    """Return a load that each run of which needs text, audio and vision workers."""
    deploy(up.urls[0], "everything", *EVERY_WORKER)
    image = httpx.post(
        f"{up.urls[0]}/v1/blobs", content=IMAGE.read_bytes(), headers={"Content-Type": "image/png"}
    )
    return Load(up.urls, "everything", {"image": {"$blob": image.json()}})


def check_nothing_is_lost(load: Load) -> None:
    """Every accepted run completed, once, with what it was asked for."""
    outputs = load.collect()
    assert len(outputs) == len(load.accepted)
    assert len(outputs) >= RUNS_MIN
    for text, found in outputs.items():
        assert found["echo"] == {"text": text}
        assert found["say"]["duration_s"] > 0
        assert "Team meeting" in found["read"]["text"], found["read"]


def check_speech(url: str) -> None:
    """Speech in, speech out."""
    kind = {"Content-Type": "application/json"}
    workflow = (SPEECH / "workflow.json").read_bytes()
    assert httpx.post(f"{url}/v1/workflows", content=workflow, headers=kind).status_code == 201
    run = httpx.post(
        f"{url}/v1/workflows/voice_assistant/runs?wait=60",
        content=(SPEECH / "weather.wav").read_bytes(),
        headers={"Content-Type": "audio/wav"},
        timeout=90,
    ).json()
    assert run["status"] == "completed", run
    assert run["nodes"][0]["outputs"]["text"] == "how is the weather"
    spoken = run["outputs"]["tts"]["audio"]["$blob"]["sha256"]
    assert httpx.get(f"{url}/v1/blobs/{spoken}").content[:4] == b"RIFF"


def check_confined(up: Project) -> None:
    """No container can write to its image, gain rights or take all memory; ours are not root."""
    for service in up.services():
        found = up.inspect(service)
        host = found["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert host["Memory"] > 0, service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert service.startswith("nats") or found["Config"]["User"] == "clawdbot", service


def check_stops(up: Project) -> None:
    """Told to stop, every container ends by itself, well before it would be killed."""
    services = up.services()
    begun = time.monotonic()
    up.compose("stop", "--timeout", "60")
    assert time.monotonic() - begun < 10
    codes = {service: up.inspect(service)["State"]["ExitCode"] for service in services}
    assert dict.fromkeys(services, 0) == codes


def test_one_machine() -> None:
    """A spoken run; then every kind of container is killed under load and nothing is lost."""
    with project("compose.yaml", "CLAWDBOT_PORT") as up:
        check_confined(up)
        check_speech(up.urls[0])
        up.compose("exec", "-T", "gateway", "clawdbot", "doctor")
        load = load_on_every_worker(up)
        with load.running():
            for service in ("worker-text", "worker-audio", "worker-vision", "orchestrator"):
                up.crash(service)
                up.wait_healthy(service)
            up.kill("nats")
            up.start("nats")
            up.wait_healthy("gateway", "orchestrator")
            up.crash("gateway")
            up.wait_healthy("gateway")
            load.goes_on(10)
        check_nothing_is_lost(load)
        check_stops(up)


def test_cluster() -> None:
    """Each NATS server is killed and missed, then one of each service: runs go on, none is lost."""
    with project("compose.cluster.yaml", "CLAWDBOT_PORT", "CLAWDBOT_PORT_2") as up:
        load = load_on_every_worker(up)
        assert replicas(up) == {3}
        with load.running():
            for number in (1, 2, 3):
                up.kill(f"nats-{number}")
                load.goes_on(5)
                up.start(f"nats-{number}")
                wait_current(up, f"nats-{number}")
            for kind in ("orchestrator", "worker-text", "worker-audio", "worker-vision", "gateway"):
                up.kill(f"{kind}-1")
            load.goes_on(10)
            for kind in ("orchestrator", "worker-text", "worker-audio", "worker-vision", "gateway"):
                up.start(f"{kind}-1")
        check_nothing_is_lost(load)
        check_stops(up)


def monitoring(up: Project, path: str) -> Any:
    """Ask the monitoring port of the cluster's first server, from a container that can reach it."""
    script = (
        f"import urllib.request; print(urllib.request.urlopen('http://{path}').read().decode())"
    )
    return json.loads(up.compose("exec", "-T", "gateway-2", "python", "-c", script))


def replicas(up: Project) -> set[int]:
    """Return how many copies the streams have."""
    shown = monitoring(up, "nats-1:8222/jsz?streams=true&config=true")
    streams = [
        stream["config"]
        for account in shown["account_details"]
        for stream in account["stream_detail"]
    ]
    assert len(streams) >= 7
    return {stream["num_replicas"] for stream in streams}


def wait_current(up: Project, server: str) -> None:
    """Wait until a server that came back has caught up with all its streams."""

    def current() -> bool:
        try:
            up.compose(
                "exec", "-T", "gateway-2",
                "python", "-m", "services.health", f"http://{server}:8222/healthz",
            )  # fmt: skip
        except AssertionError:
            return False
        return True

    until_sync(current, timeout_s=60)


def test_only_workers_get_the_gpu() -> None:
    """With compose.gpu.yaml they are built with CUDA and a GPU each; it is checked, not run."""
    files = (COMPOSE / "compose.yaml", COMPOSE / "compose.gpu.yaml")
    options = [part for file in files for part in ("-f", str(file))]
    services = json.loads(docker("compose", *options, "config", "--format", "json"))["services"]
    [build] = [service["build"] for service in services.values() if "EXTRA" in str(service)]
    assert (build["target"], build["args"]["EXTRA"]) == ("worker", "gpu,torch")
    for name, service in services.items():
        assert name.startswith("worker-") == (service["image"] == "clawdbot/worker-gpu")
        assert name.startswith("worker-") == ("gpu" in str(service.get("deploy")))


def test_the_service_image_carries_no_models() -> None:
    """Gateways and orchestrators are small: what only workers need is not there."""
    docker(
        "build", "--quiet", "-f", str(COMPOSE / "Dockerfile"), "--target", "service",
        "-t", SERVICE_IMAGE, ".", timeout_s=BUILD_S,
    )  # fmt: skip
    find = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    shown = docker(
        "run", "--rm", "--entrypoint", "python", SERVICE_IMAGE,
        "-c", find, "services", "numpy", "onnxruntime", "cv2", "pocketsphinx", "pip",
    )  # fmt: skip
    assert shown.strip() == "['services']"


def test_the_whole_mesh_in_one_container() -> None:
    """`docker run -p 8080:8080 clawdbot/dev-env`."""
    image, name, port = "clawdbot/dev-env:test", f"clawdbot-test-{new_id().lower()}", free_port()
    docker(
        "build", "--quiet", "-f", str(COMPOSE / "Dockerfile"), "--target", "dev-env", "-t", image,
        ".", timeout_s=BUILD_S,
    )  # fmt: skip
    docker("run", "-d", "--name", name, "-p", f"127.0.0.1:{port}:8080", image)
    state = ("inspect", "-f", "{{.State.Health.Status}} {{.State.ExitCode}}", name)
    try:
        until_sync(lambda: docker(*state).startswith("healthy "), timeout_s=90)
        check_speech(f"http://127.0.0.1:{port}")
        begun = time.monotonic()
        docker("stop", "--time", "60", name)
        assert time.monotonic() - begun < 10, "it did not stop when it was told to"
        assert docker(*state).split()[-1] == "0"
    finally:
        docker("rm", "-f", "-v", name)

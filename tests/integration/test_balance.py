"""Two workers, one of them slow, and then one of them dead."""

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support.inference import MASTER_TEXT
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer
from tests.support.wait import until_sync


pytestmark = [pytest.mark.nats, pytest.mark.slow]
DELAYS_MS = {"quick": 1, "slow": 60}


@pytest.fixture
def mesh(nats_server: NatsServer, tmp_path: Path) -> Iterator[Mesh]:
    """Start a gateway and two workers whose catalogues differ in their delay."""
    shipped = yaml.safe_load(Path("schemas/catalogue.yaml").read_text(encoding="utf-8"))["models"]
    mesh = Mesh(tmp_path / "mesh", nats_server.url, {"master_key": MASTER_TEXT})
    for name, delay_ms in DELAYS_MS.items():
        catalogue = tmp_path / f"{name}.yaml"
        entry = {**shipped["repeat"], "params": {"delay_ms": delay_ms}}
        catalogue.write_text(yaml.safe_dump({"models": {"repeat": entry}}), encoding="utf-8")
        mesh.add(name, "services.workers", catalogue=str(catalogue))
    mesh.add("gateway", "services.gateway", http_port="0", catalogue=str(tmp_path / "quick.yaml"))
    mesh.start()
    yield mesh
    mesh.stop()


def asked(mesh: Mesh) -> Counter[str]:
    """Return how many inferences each worker had for itself."""
    return Counter(
        {
            name: mesh.services[name].log.read_text().count(".infer.text.repeat.worker-")
            for name in DELAYS_MS
        }
    )


def test_the_slow_one_gets_little_and_the_dead_one_nothing(mesh: Mesh) -> None:
    """Nine of ten go to the quick one; when it is killed no request fails."""
    port = mesh.services["gateway"].fact("listening", "port")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

        def ask() -> None:
            answer = client.post("/v2/models/repeat/generate", json={"text": "hi"})
            assert 200 == answer.status_code, answer.text

        def is_known() -> bool:
            ask()
            return asked(mesh).total() > 0

        until_sync(is_known)
        before = asked(mesh)
        for _ in range(200):
            ask()
        found = asked(mesh) - before
        assert 200 == found.total()
        assert found["slow"] < 20
        mesh.services["quick"].signal(signal.SIGKILL)
        for _ in range(20):
            ask()

"""One whole mesh for all tests that only talk to it: two gateways, an orchestrator, workers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support.inference import Served, serve
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer, server_binary
from tests.support.openai_server import OpenaiServer, serving


MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
GATEWAYS = ("gateway-0", "gateway-1")
SHARED_MEMORY = {"shared_memory": "true", "shared_memory_prefix": "clawdbot-test-"}


@dataclass(frozen=True)
class Running:
    """A mesh that is up."""

    mesh: Mesh
    server: NatsServer
    llm: OpenaiServer
    """Behind the model `writer`, which streams."""

    def url(self, gateway: str = "gateway-0") -> str:
        """Return the address of a gateway."""
        port = self.mesh.services[gateway].fact("listening", "port")
        return f"http://127.0.0.1:{port}"


def _catalogue(folder: Path, url: str) -> Path:
    """Write the catalogue that comes along, and a model at a server that streams."""
    document = yaml.safe_load(Path("schemas/catalogue.yaml").read_text(encoding="utf-8"))
    document["models"]["writer"] = {
        "modality": "text",
        "engine": "openai",
        "streams": True,
        "params": {"url": url, "model": "tiny", "task": "chat"},
        "inputs": [{"name": "text", "kind": "text"}],
        "outputs": [{"name": "text", "kind": "text"}, {"name": "usage", "kind": "json"}],
    }
    path = folder / "catalogue.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Start the mesh once."""
    if server_binary() is None:
        pytest.skip("there is no nats-server here")
    folder = tmp_path_factory.mktemp("mesh")
    with NatsServer(folder) as server, serving() as llm:
        shared = {
            "master_key": MASTER_TEXT,
            "http_allow": "127.0.0.1",
            "openai_allow": "127.0.0.1",
            "catalogue": str(_catalogue(folder, llm.url)),
        }
        mesh = Mesh(folder / "services", server.url, shared)
        mesh.add_core(modalities=("text", "audio", "vision"))
        for name in GATEWAYS:
            mesh.add(
                name,
                "services.gateway",
                http_port="0",
                heartbeat_s="0.2",
                grpc_port="0",
                **SHARED_MEMORY,
            )
        try:
            mesh.start()
            yield Running(mesh, server, llm)
        finally:
            mesh.stop()


@pytest.fixture
def http(running: Running) -> Iterator[httpx.Client]:
    """Return a client of the first gateway."""
    with httpx.Client(base_url=running.url(), timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve the tiny models beside some that ship with clawdbot."""
    if server_binary() is None:
        pytest.skip("there is no nats-server here")
    folder = tmp_path_factory.mktemp("served")
    with NatsServer(folder) as server, serve(server, folder) as served:
        yield served

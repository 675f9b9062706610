"""A gateway and a text worker that serve the tiny ONNX models."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from tests.support import onnx_models
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer


MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
BODY_BYTES_MAX = 6 * 1024 * 1024
DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}


def blocks(kind: str) -> list[str]:
    """Return the code in docs/inference.md: Python, or what is only indented."""
    document = Path("docs/inference.md").read_text(encoding="utf-8")
    if kind == "python":
        return re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    return re.findall(r"(?:^    .*\n)+", document, re.MULTILINE)


@dataclass(frozen=True)
class Served:
    """A gateway and a text worker that has the tiny models."""

    mesh: Mesh
    address: str
    """Of HTTP."""
    grpc: str
    """Of gRPC."""
    nats_url: str


@contextmanager
def serve(nats_server: NatsServer, folder: Path) -> Iterator[Served]:
    """Serve the tiny models beside some that ship with clawdbot."""
    shipped = yaml.safe_load(Path("schemas/catalogue.yaml").read_text(encoding="utf-8"))["models"]
    entries = onnx_models.entries(folder / "models")
    entries |= yaml.safe_load(blocks("text")[0])["models"]
    onnx_models.save(onnx_models.iris(), folder / "models" / "iris" / "1.onnx")
    kept = ("template", "echo", "repeat", "intent-small", "embedding-small")
    entries |= {name: shipped[name] for name in kept}
    catalogue = folder / "catalogue.yaml"
    catalogue.write_text(yaml.safe_dump({"models": entries}), encoding="utf-8")
    extra = {
        "master_key": MASTER_TEXT,
        "catalogue": str(catalogue),
        "models_dir": str(folder / "models"),
    }
    mesh = Mesh(folder / "mesh", nats_server.url, extra)
    worker = {"modality": "text", "infer_queue_max": "200", "announce_interval_s": "0.5"}
    mesh.add("text", "services.workers", **worker)
    mesh.add(
        "gateway",
        "services.gateway",
        http_port="0",
        grpc_port="0",
        body_bytes_max=str(BODY_BYTES_MAX),
        heartbeat_s="0.3",
        shared_memory="true",
        shared_memory_prefix="clawdbot-test-",
    )
    mesh.start()
    try:
        fact = mesh.services["gateway"].fact
        ports = [fact(event, "port") for event in ("listening", "grpc_listening")]
        http, grpc = (f"127.0.0.1:{port}" for port in ports)
        yield Served(mesh, http, grpc, nats_server.url)
    finally:
        mesh.stop()

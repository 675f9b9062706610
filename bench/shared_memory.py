"""Large tensors, sent and in shared memory: `python -m bench.shared_memory [SECONDS]`.

One client, Triton's own, asks a model that gives back what it gets: 1 and 5 MiB of FP32, over HTTP
and gRPC, in the request and in a region. JSON lines on stdout.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import yaml
from tritonclient.utils import shared_memory

from bench.inference import LARGE, MASTER_TEXT
from tests.support import onnx_models
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer


KEY = "clawdbot-bench"


def timed(ask: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Ask again and again; return rate and latencies."""
    ask()
    took, end = list[float](), time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        ask()
        took.append(time.perf_counter() - begun)
    cuts = statistics.quantiles(took, n=100)
    p50, p99 = (round(cuts[at] * 1000, 2) for at in (49, 98))
    return {"requests_per_s": round(len(took) / sum(took)), "p50_ms": p50, "p99_ms": p99}


def ways(client: Any, kind: Any, name: str, region: Any) -> dict[str, Callable[[], Any]]:
    """Return how to ask a model: with everything in the message, and with a region."""
    width = LARGE[name]
    array, size = np.ones((1, width), np.float32), 4 * width
    sent, shared = (kind.InferInput("X", [1, width], "FP32") for _ in range(2))
    sent.set_data_from_numpy(array)
    shared.set_shared_memory(KEY, size)
    output = kind.InferRequestedOutput("Y")
    output.set_shared_memory(KEY, size, size)

    def by_message() -> Any:
        return client.infer(name, [sent]).as_numpy("Y")

    def by_region() -> Any:
        shared_memory.set_shared_memory_region(region, [array])
        client.infer(name, [shared], outputs=[output])
        return shared_memory.get_contents_as_numpy(region, np.float32, [1, width], size)

    return {"sent": by_message, "shared": by_region}


def measure(kind: Any, address: str, seconds: float) -> None:
    """Print a line for each model, sent and shared."""
    client = kind.InferenceServerClient(address)
    size = 8 * max(LARGE.values())
    region = shared_memory.create_shared_memory_region(KEY, KEY, size)
    client.register_system_shared_memory(KEY, KEY, size)
    for name in LARGE:
        for way, ask in ways(client, kind, name, region).items():
            protocol = kind.__name__.rpartition(".")[2]
            line = {"model": name, "protocol": protocol, "way": way, **timed(ask, seconds)}
            print(json.dumps(line), flush=True)
    client.unregister_system_shared_memory()
    shared_memory.destroy_shared_memory_region(region)
    client.close()


def main() -> None:
    """Measure."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    with tempfile.TemporaryDirectory() as text, NatsServer(Path(text)) as server:
        folder, entries = Path(text), {}
        for name, width in LARGE.items():
            onnx_models.save(onnx_models.identity("FP32", ("n", width)), folder / f"{name}.onnx")
            ports = ([onnx_models.port(port, "FP32", [-1, width])] for port in ("X", "Y"))
            entries[name] = onnx_models.entry(f"{name}.onnx", *ports)
        catalogue = folder / "catalogue.yaml"
        catalogue.write_text(yaml.safe_dump({"models": entries}), encoding="utf-8")
        extra = {
            "master_key": MASTER_TEXT,
            "catalogue": str(catalogue),
            "models_dir": str(folder),
        }
        mesh = Mesh(folder / "mesh", server.url, extra)
        mesh.add("worker", "services.workers")
        mesh.add("gateway", "services.gateway", http_port="0", grpc_port="0", shared_memory="true")
        mesh.start()
        try:
            fact = mesh.services["gateway"].fact
            measure(triton_http, f"127.0.0.1:{fact('listening', 'port')}", seconds)
            measure(triton_grpc, f"127.0.0.1:{fact('grpc_listening', 'port')}", seconds)
        finally:
            mesh.stop()


if __name__ == "__main__":
    main()

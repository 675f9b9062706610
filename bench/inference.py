"""Inference over HTTP beside onnxruntime in process: `python -m bench.inference [SECONDS]`.

`tiny` is all overhead; `wide` streams 50 MB of weights a call, so a batch gains a lot. Each is
asked by 1, 16 and 64 clients with binary tensors, with batches and without. Large tensors are set
beside a bare NATS echo of as many bytes. JSON lines on stdout.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import uvloop
import yaml
from onnx import helper, numpy_helper

from bench import echo
from bench.cpu import Meter
from tests.support import onnx_models
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer


WIDTHS = {"tiny": (128, 256, 10), "wide": (128, 3456, 3456, 10)}
CLIENTS = (1, 16, 64)
LARGE = {"large-1": 2**20 // 4, "large-5": 5 * 2**20 // 4}
"""Models that give back what they get: 1 and 5 MiB of FP32."""
LARGE_CLIENTS = (1, 4)
BATCH = 32
HEADER = "Inference-Header-Content-Length"
MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


def perceptron(widths: tuple[int, ...]) -> Any:
    """Return layers with ReLU between them, with random weights of seed 0."""
    chance = np.random.default_rng(0)
    nodes, weights, value = [], [], "X"
    for index, (taken, given) in enumerate(pairwise(widths)):
        last = index == len(widths) - 2
        matrix = (chance.standard_normal((taken, given)) / np.sqrt(taken)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{index}"))
        product = "Y" if last else f"p{index}"
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [product]))
        if not last:
            value = f"h{index}"
            nodes.append(helper.make_node("Relu", [product], [value]))
    ports = {"X": ("FP32", ("n", widths[0]))}, {"Y": ("FP32", ("n", widths[-1]))}
    return onnx_models.model(nodes, *ports, weights)


def floor(path: Path, inputs: dict[str, Any], seconds: float) -> float:
    """Return rows a second of onnxruntime in this process, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, inputs)
    calls, end = 0, time.perf_counter() + seconds
    begun = time.perf_counter()
    while time.perf_counter() < end:
        session.run(None, inputs)
        calls += 1
    rows = len(next(iter(inputs.values())))
    return calls * rows / (time.perf_counter() - begun)


def request(name: str, width: int) -> bytes:
    """Return one whole HTTP request."""
    return http(name, "X", np.random.default_rng(1).random((1, width), np.float32), "FP32")


def http(model: str, name: str, array: Any, datatype: str) -> bytes:
    """Return one whole HTTP request for a model with one input."""
    blob: bytes = array.tobytes()
    tensor = {"name": name, "datatype": datatype, "shape": array.shape}
    document = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": len(blob)}}],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(document).encode()
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\n{HEADER}: {len(text)}\r\n"
        f"Content-Length: {len(text) + len(blob)}\r\n\r\n"
    )
    return head.encode() + text + blob


async def ask(port: int, message: bytes, until: float, took: list[float]) -> None:
    """Ask again and again over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        begun = time.perf_counter()
        writer.write(message)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        size = int(head.partition("\r\ncontent-length: ")[2].partition("\r\n")[0])
        await reader.readexactly(size)
        assert head.startswith("http/1.1 200"), head
        took.append(time.perf_counter() - begun)
    writer.close()


async def load(mesh: Mesh, message: bytes, clients: int, seconds: float) -> dict[str, Any]:
    """Return rate, latencies and processor time with so many clients that send one request."""
    port = mesh.services["gateway"].fact("listening", "port")
    took = list[float]()
    await ask(port, message, time.perf_counter() + 0.2, [])
    meter = Meter({service.name: service.pid for service in mesh.services.values()})
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(ask(port, message, begun + seconds, took))
    spent = time.perf_counter() - begun
    cuts = statistics.quantiles(took, n=100)
    return {
        "requests_per_s": round(len(took) / spent),
        "p50_ms": round(cuts[49] * 1000, 2),
        "p99_ms": round(cuts[98] * 1000, 2),
        "cpu_ms": meter.ms_each(len(took)),
    }


def echoes(url: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield what nats-py does alone with messages as large as the large tensors."""
    command = [sys.executable, "-m", "bench.echo", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as responder:  # noqa: S603 - ours
        try:
            assert responder.stdout is not None
            responder.stdout.readline()
            for name, width in LARGE.items():
                for clients in LARGE_CLIENTS:
                    row = uvloop.run(echo.load(url, 4 * width, clients, seconds))
                    yield {"model": name, "nats_echo": True, "clients": clients, **row}
        finally:
            responder.terminate()


@contextmanager
def served(folder: Path, url: str, rows_max: int) -> Iterator[Mesh]:
    """Serve the models through a gateway and a worker."""
    extra = {
        "master_key": MASTER_TEXT,
        "catalogue": str(folder / "catalogue.yaml"),
        "models_dir": str(folder),
    }
    mesh = Mesh(folder / f"mesh-{rows_max}", url, extra)
    mesh.add("worker", "services.workers", batch_rows_max=str(rows_max), infer_queue_max="256")
    mesh.add("gateway", "services.gateway", http_port="0")
    mesh.start()
    try:
        yield mesh
    finally:
        mesh.stop()


def main() -> None:
    """Measure."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    with tempfile.TemporaryDirectory() as text, NatsServer(Path(text)) as server:
        folder, entries = Path(text), {}
        for name, widths in WIDTHS.items():
            onnx_models.save(perceptron(widths), folder / f"{name}.onnx")
            x, y = (
                onnx_models.port(port, "FP32", [-1, width])
                for port, width in (("X", widths[0]), ("Y", widths[-1]))
            )
            entries[name] = onnx_models.entry(f"{name}.onnx", [x], [y], max_batch_size=64)
            for rows in (1, BATCH):
                batch = {"X": np.zeros((rows, widths[0]), np.float32)}
                rate = floor(folder / f"{name}.onnx", batch, seconds)
                print(json.dumps({"model": name, "in_process_rows": rows, "per_s": round(rate)}))
        for name, width in LARGE.items():
            onnx_models.save(onnx_models.identity("FP32", ("n", width)), folder / f"{name}.onnx")
            ports = ([onnx_models.port(port, "FP32", [-1, width])] for port in ("X", "Y"))
            entries[name] = onnx_models.entry(f"{name}.onnx", *ports)
        catalogue = yaml.safe_dump({"models": entries})
        (folder / "catalogue.yaml").write_text(catalogue, encoding="utf-8")
        for line in echoes(server.url, seconds):
            print(json.dumps(line), flush=True)
        for rows_max in (64, 1):
            with served(folder, server.url, rows_max) as mesh:
                cells = [(name, clients) for name in WIDTHS for clients in CLIENTS]
                if rows_max == 1:
                    cells = [(name, clients) for name in LARGE for clients in LARGE_CLIENTS] + cells
                for name, clients in cells:
                    message = request(name, LARGE[name] if name in LARGE else WIDTHS[name][0])
                    row = uvloop.run(load(mesh, message, clients, seconds))
                    line = {"model": name, "rows_max": rows_max, "clients": clients, **row}
                    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

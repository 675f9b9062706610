"""A model on a GPU, through the mesh and in process: `python -m bench.gpu [SECONDS]`.

Through the mesh it is served by a thread of the worker, by a process of its own, and by a thread
that replays recorded calls.

The model is an encoder as large as BERT-base, 12 layers of 768 in FP16, over 128 tokens, with
random weights, as a program of `torch.export`. In process it is called with batches of each size,
copies to the GPU and back included. JSON lines on stdout.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
import yaml
from typing_extensions import override

from bench.inference import http, load, served
from tests.support.nats import NatsServer


TOKENS, WIDTH, HEADS, LAYERS, WORDS = 128, 768, 12, 12, 30_522
ROWS = (1, 4, 16, 32, 64)
CLIENTS = (1, 16, 64, 128)


def encoder(torch: Any) -> Any:
    """Return the module: ids INT64 [n, 128] to the mean of the last layer, FP32 [n, 768]."""

    class Encoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            layer = torch.nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, activation="gelu", batch_first=True
            )
            self.words = torch.nn.Embedding(WORDS, WIDTH)
            self.layers = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

        @override
        def forward(self, ids: Any) -> Any:
            return self.layers(self.words(ids)).mean(1).float()

    torch.manual_seed(0)
    return Encoder().eval().half()


def save(torch: Any, path: Path) -> dict[str, Any]:
    """Write the program, and return its catalogue entry."""
    given = torch.zeros(2, TOKENS, dtype=torch.int64)
    rows = torch.export.Dim("rows", max=ROWS[-1])
    program = torch.export.export(encoder(torch), (given,), dynamic_shapes=({0: rows},))
    torch.export.save(program, path)
    ids = {"name": "x", "tensor": "ids", "datatype": "INT64", "shape": [-1, TOKENS]}
    mean = {"name": "y", "tensor": "output_0", "datatype": "FP32", "shape": [-1, WIDTH]}
    return {
        "modality": "text",
        "engine": "torch",
        "source": path.name,
        "inputs": [{"kind": "tensor", **ids}],
        "outputs": [{"kind": "tensor", **mean}],
        "accepts": [],
        "max_batch_size": ROWS[-1],
        "preload": True,
        "params": {"device": "cuda"},
    }


def in_process(torch: Any, path: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield rows a second, by the rows of a call."""
    from torch.export.passes import move_to_device_pass  # noqa: PLC0415 - where there is a torch

    program = move_to_device_pass(torch.export.load(path), "cuda")
    module = program.module(check_guards=False)
    for rows in ROWS:
        ids = torch.from_numpy(np.random.default_rng(1).integers(0, WORDS, (rows, TOKENS)))
        with torch.inference_mode():
            for _ in range(5):
                module(ids.to("cuda")).cpu()
            calls, begun = 0, time.perf_counter()
            while time.perf_counter() < begun + seconds:
                module(ids.to("cuda")).cpu()
                calls += 1
        spent = time.perf_counter() - begun
        row = {"rows_per_s": round(calls * rows / spent), "call_ms": round(spent / calls * 1e3, 2)}
        yield {"in_process_rows": rows, **row}


def main() -> None:
    """Measure."""
    import torch  # noqa: PLC0415 - only this bench wants it

    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    if not torch.cuda.is_available():
        sys.exit("bench.gpu needs an NVIDIA GPU, and torch with CUDA")
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}))
    with tempfile.TemporaryDirectory() as text, NatsServer(Path(text)) as server:
        folder = Path(text)
        entry = save(torch, folder / "encoder.pt2")
        for line in in_process(torch, folder / "encoder.pt2", seconds):
            print(json.dumps(line), flush=True)
        entries = {
            "thread": entry,
            "process": {**entry, "isolation": "process"},
            "recorded": {**entry, "params": {"device": "cuda", "cuda_graphs": True}},
        }
        catalogue = yaml.safe_dump({"models": entries})
        (folder / "catalogue.yaml").write_text(catalogue, encoding="utf-8")
        ids = np.random.default_rng(1).integers(0, WORDS, (1, TOKENS))
        with served(folder, server.url, ROWS[-1]) as mesh:
            for name in entries:  # loaded, before anything is measured
                uvloop.run(load(mesh, http(name, "ids", ids, "INT64"), 1, 0.5))
            for name in entries:
                message = http(name, "ids", ids, "INT64")
                for clients in CLIENTS:
                    row = uvloop.run(load(mesh, message, clients, seconds))
                    print(json.dumps({"served_by": name, "clients": clients, **row}), flush=True)


if __name__ == "__main__":
    main()

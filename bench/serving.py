"""One model behind one server, by clawdbot and by other servers, one after another, in one run.

`python -m bench.serving [system ...]`: the models `tiny`, `mid` and `wide` of the scripts in
`--scripts`, one thread each, asked by 1, 16 and 64 clients of wrk on the second core; beside each
cell onnxruntime in process, alone and with batches of 32. All processes of a server are counted.
The others live in environments below `$PEERS`; who is not installed is left out, with a line that
says so. Needs wrk.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bench.cpu import Meter
from bench.inference import MASTER_TEXT, floor
from bench.peers import measured, peers
from tests.support import onnx_models
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer


OURS = "clawdbot"
RIVALS = {
    "mosec": "raw",
    "fastapi": "raw",
    "mlserver-pw0": "v2",
    "kserve": "v2bin",
    "pytriton": "v2bin",
    "litserve": "json",
    "bentoml": "bento",
    "ray": "raw",
    "nats": "nats",
}
"""Other servers, and the quickest form in which each takes a tensor; `nats` is our floor."""
MODELS = ("tiny", "mid", "wide")
CLIENTS = (1, 16, 64)
BATCH = 32
DELAY_US = 4000
"""In the mode `batch`, as the others have it."""
LOAD = Path(__file__).with_name("load.lua")


@dataclass(frozen=True)
class Row:
    """What one server did with so many clients; times in milliseconds."""

    system: str
    mode: str
    """`nobatch`, `batch` (a delay), `batch0` (no delay)."""
    model: str
    clients: int
    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """Processor time of all its processes, for one request."""
    alone_per_s: float
    """onnxruntime in process, one row a call."""
    best_per_s: float
    """The same, with batches."""
    errors: int = 0


def sample(model: str) -> "np.ndarray[Any, Any]":
    """Return one row of input, as the scripts send it."""
    chance = np.random.default_rng(7)
    if model == "mid":
        return chance.integers(0, 8192, (1, 16))
    return chance.random((1, 128), dtype=np.float32).round(4)


def entry(path: Path, delay_us: int = 0) -> dict[str, Any]:
    """Return the catalogue's entry of one of the models, which may wait so long for more rows."""
    rows = sample(path.stem)
    datatype = "INT64" if path.stem == "mid" else "FP32"
    return onnx_models.entry(
        path.name,
        [onnx_models.port("x", datatype, [-1, rows.shape[1]])],
        [onnx_models.port("y", "FP32", [-1, 10])],
        max_batch_size=64,
        max_queue_delay_us=delay_us,
    )


def request(model: str) -> tuple[bytes, int]:
    """Return a body, and how much of it is JSON."""
    rows = sample(model)
    data = rows.tobytes()
    tensor = {
        "name": "x",
        "datatype": "INT64" if model == "mid" else "FP32",
        "shape": list(rows.shape),
        "parameters": {"binary_data_size": len(data)},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + data, len(head)


@contextmanager
def served(
    folder: Path, models: Path, rows_max: int, delay_us: int
) -> Iterator[tuple[Mesh, NatsServer]]:
    """Serve the models in processes of their own."""
    entries = {name: entry(models / f"{name}.onnx", delay_us) for name in MODELS}
    catalogue = folder / "catalogue.yaml"
    catalogue.write_text(yaml.safe_dump({"models": entries}), encoding="utf-8")
    extra = {"master_key": MASTER_TEXT, "catalogue": str(catalogue), "models_dir": str(models)}
    with NatsServer(folder) as server:
        mesh = Mesh(folder / "mesh", server.url, extra)
        mesh.add("worker", "services.workers", batch_rows_max=str(rows_max), infer_queue_max="256")
        mesh.add("gateway", "services.gateway", http_port="0")
        try:
            mesh.start()
            yield mesh, server
        finally:
            mesh.stop()


def wrk(url: str, body: Path, head: int, clients: int, seconds: int) -> dict[str, Any]:
    """Ask with so many connections; return count, time and latencies."""
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{clients}", f"-d{seconds}s"]
    done = subprocess.run(  # noqa: S603 - our own command
        [*command, "--timeout", "10s", "-s", str(LOAD), url],
        env={**os.environ, "BODY": str(body), "HEAD": str(head)},  # noqa: TID251 - for a child
        capture_output=True,
        text=True,
        check=True,
    )
    [line] = [line for line in done.stdout.splitlines() if line.startswith("@")]
    found: dict[str, Any] = json.loads(line[1:])
    return found


def ours(model: str, models: Path, seconds: int) -> Iterator[Row]:
    """Measure clawdbot, with batches, with batches that are waited for, and without."""
    rows = sample(model)
    for mode, rows_max, delay_us in (("batch0", 64, 0), ("batch", 64, DELAY_US), ("nobatch", 1, 0)):
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            with served(folder, models, rows_max, delay_us) as (mesh, server):
                port = mesh.services["gateway"].fact("listening", "port")
                url = f"http://127.0.0.1:{port}/v2/models/{model}/infer"
                content, head = request(model)
                body = folder / "body"
                body.write_bytes(content)
                pids = {service.name: service.pid for service in mesh.services.values()}
                pids["nats-server"] = server.pid
                wrk(url, body, head, 16, 2)
                for clients in CLIENTS:
                    alone, best = (
                        floor(models / f"{model}.onnx", {"x": rows.repeat(count, 0)}, 0.5)
                        for count in (1, BATCH)
                    )
                    meter = Meter(pids)
                    found = wrk(url, body, head, clients, seconds)
                    cpu = meter.ms_each(max(1, found["count"]))
                    line = {"model": model, "mode": mode, "clients": clients, "cpu_ms": cpu}
                    print(json.dumps(line), file=sys.stderr, flush=True)
                    yield Row(
                        OURS,
                        mode,
                        model,
                        clients,
                        round(found["count"] / found["us"] * 1e6, 1),
                        found["p50_ms"],
                        found["p99_ms"],
                        cpu["total"],
                        round(alone, 1),
                        round(best, 1),
                        found["errors"],
                    )


def rival(system: str, model: str, scripts: Path, seconds: int) -> Iterator[Row]:
    """Measure another server by its own script; nothing when it is not there."""
    arguments = ["--models", model, "--wires", RIVALS[system], "--secs", str(seconds)]
    arguments += ["--conc", ",".join(map(str, CLIENTS))]
    lines = measured(system, scripts / "serve_bench.py", arguments)
    for row in {(row["mode"], row["conc"]): row for row in lines}.values():
        yield Row(
            system,
            row["mode"],
            model,
            row["conc"],
            row["rps"],
            row["p50"],
            row["p99"],
            row["srv_cpu_ms"],
            row["base_b1"],
            row["base_b32"],
            row["err"] + row["non2xx"],
        )


def medians(rows: list[Row]) -> list[Row]:
    """Return the median of each cell's rounds; errors are added up."""
    cells: dict[tuple[str, str, str, int], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.model, row.system, row.mode, row.clients), []).append(row)
    figures = ("per_s", "p50_ms", "p99_ms", "cpu_ms", "alone_per_s", "best_per_s")
    return [
        replace(
            same[0],
            **{name: statistics.median(getattr(row, name) for row in same) for name in figures},
            errors=sum(row.errors for row in same),
        )
        for same in cells.values()
    ]


def table(model: str, rows: list[Row]) -> str:
    """Return one model's table, the quickest at most clients first."""
    own = [row for row in rows if row.model == model]
    alone = statistics.median(row.alone_per_s for row in own)
    best = max(alone, statistics.median(row.best_per_s for row in own))
    systems = {(row.system, row.mode) for row in own}
    cells = {(row.system, row.mode, row.clients): row for row in own}

    def rate(system: tuple[str, str]) -> float:
        row = cells.get((*system, CLIENTS[-1]))
        return 0.0 if row is None else row.per_s

    lines = [f"`{model}`: in process {alone:.0f} rows/s one by one, {best:.0f} at best", ""]
    lines.append("| server | mode | 1: req/s | p50 / p99 ms | 16 | | 64 | | of best | CPU ms |")
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for system in sorted(systems, key=rate, reverse=True):
        parts = []
        for clients in CLIENTS:
            row = cells.get((*system, clients))
            if row is None:
                parts += ["", ""]
            else:
                parts += [f"{row.per_s:.0f}", f"{row.p50_ms:.2f} / {row.p99_ms:.2f}"]
        last = cells.get((*system, CLIENTS[-1]))
        cpu = "" if last is None else f"{last.cpu_ms:.2f}"
        parts += [f"{100 * rate(system) / best:.0f}%", cpu]
        lines.append(f"| {' | '.join([*system, *parts])} |")
    return "\n".join(lines)


def main() -> None:
    """Measure everybody in turn, several rounds."""
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__)
    parser.add_argument("systems", nargs="*", metavar="system", help=f"{OURS}, {', '.join(RIVALS)}")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--scripts", type=Path, default=Path("../shared/bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    options = parser.parse_args()
    models = peers() / "models"
    if not (models / "tiny.onnx").is_file():
        sys.exit(f"no models: make them with {options.scripts / 'make_models.py'}")
    rows: list[Row] = []
    for _ in range(options.rounds):
        for model in options.models.split(","):
            for system in options.systems or (OURS, *RIVALS):
                if system == OURS:
                    fresh = ours(model, models, options.seconds)
                else:
                    fresh = rival(system, model, options.scripts, options.seconds)
                for row in fresh:
                    print(json.dumps(asdict(row)), flush=True)
                    rows.append(row)
    for model in options.models.split(","):
        print(table(model, medians(rows)), end="\n\n")


if __name__ == "__main__":
    main()

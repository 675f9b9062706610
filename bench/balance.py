"""Two workers, one of them slow: `python -m bench.balance [SECONDS]`.

The same model takes 2 ms on one worker and 40 ms on the other. Requests are handed out at random by
NATS, and by the gateway to the worker that answers soonest; by 1 and 8 clients. Then two workers
that are as quick, by one client: what the choice costs. JSON lines on stdout.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import uvloop
import yaml

from bench.inference import MASTER_TEXT
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer


BODY = json.dumps(
    {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["hi"]}]}
).encode()
MESSAGE = (
    b"POST /v2/models/repeat/infer HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


async def ask(port: int, until: float, took: list[float]) -> None:
    """Ask again and again over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (begun := time.perf_counter()) < until:
        writer.write(MESSAGE)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r")[0]))
        assert head.startswith("http/1.1 200"), head
        took.append(time.perf_counter() - begun)
    writer.close()


async def load(port: int, clients: int, seconds: float) -> dict[str, float]:
    """Return rate and latencies with so many clients, after two seconds to learn."""
    took = list[float]()
    await ask(port, time.perf_counter() + 2.5, [])
    end = time.perf_counter() + seconds
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(ask(port, end, took))
    cuts = statistics.quantiles(took, n=1000)
    rate = round(len(took) / seconds)
    names = {"p50_ms": 499, "p95_ms": 949, "p99_ms": 989}
    return {"requests_per_s": rate, **{k: round(cuts[at] * 1000, 2) for k, at in names.items()}}


def serve(folder: Path, url: str, delays_ms: tuple[float, float], *, balance: bool) -> Mesh:
    """Start a gateway and two workers, each with its own delay."""
    shipped = yaml.safe_load(Path("schemas/catalogue.yaml").read_text(encoding="utf-8"))["models"]
    mesh = Mesh(folder, url, {"master_key": MASTER_TEXT})
    folder.mkdir(parents=True)
    for number, delay_ms in enumerate(delays_ms):
        catalogue = folder / f"{number}.yaml"
        entry = {**shipped["repeat"], "params": {"delay_ms": delay_ms}}
        catalogue.write_text(yaml.safe_dump({"models": {"repeat": entry}}), encoding="utf-8")
        mesh.add(f"worker-{number}", "services.workers", catalogue=str(catalogue))
    mesh.add(
        "gateway",
        "services.gateway",
        http_port="0",
        balance=str(balance).lower(),
        catalogue=str(folder / "0.yaml"),
    )
    mesh.start()
    return mesh


def main() -> None:
    """Measure."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    with tempfile.TemporaryDirectory() as text, NatsServer(Path(text)) as server:
        for name, delays_ms in (("one slow", (2, 40)), ("both quick", (0, 0))):
            for balance in (False, True):
                mesh = serve(
                    Path(text) / f"{name}-{balance}", server.url, delays_ms, balance=balance
                )
                port = mesh.services["gateway"].fact("listening", "port")
                for clients in (1, 8):
                    row = uvloop.run(load(port, clients, seconds))
                    line = {"workers": name, "balance": balance, "clients": clients, **row}
                    print(json.dumps(line), flush=True)
                mesh.stop()


if __name__ == "__main__":
    main()

"""The same durable three-step workflow by clawdbot and by others, one after another, in one run.

`python -m bench.rivals [system ...]`: x + 1, times 2, minus 3, each step recorded before the next
begins, in a closed loop that checks every answer. All processes of a system are counted, its client
too. The others are driven by the scripts in `--scripts` and live in environments below `$PEERS`;
who is not installed is left out, with a line that says so.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nats
import orjson
import uvloop

from bench.cpu import Meter
from bench.peers import measured
from events.express import Express
from events.subjects import call
from schemas.ids import DEFAULT_TENANT
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer
from tests.support.workflows import deploy


OURS = "clawdbot"
RIVALS = ("restate-granian", "restate", "dbos-pg", "dbos-sqlite", "langgraph-pg", "celery-always")
IN_FLIGHT = (1, 64, 256)
WARM_S = 2.0
STEPS = {"a": "number(input.text) + 1", "b": "number(a.text) * 2", "c": "number(b.text) - 3"}
DEFINITION = {
    "nodes": [
        {
            "id": name,
            "type": "model",
            "params": {"model": "echo"},
            "inputs": {"text": f"= str({step})"},
        }
        for name, step in STEPS.items()
    ],
    "edges": [{"source": "a", "target": "b"}, {"source": "b", "target": "c"}],
}


@dataclass(frozen=True)
class Row:
    """What one system did with so many workflows in flight; times in milliseconds."""

    system: str
    in_flight: int
    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """Processor time of all processes, for one workflow."""
    errors: int = 0


class Loop:
    """A closed loop of calls that checks every answer."""

    def __init__(self, express: Express) -> None:
        self._express = express
        self._subject = call(DEFAULT_TENANT, "steps")
        self._next = 0

    async def one(self) -> float:
        """Call once; return the seconds it took.

        Raises:
            ValueError: The answer is wrong.
        """
        self._next += 1
        number, begun = self._next, time.perf_counter()
        body = orjson.dumps({"inputs": {"text": str(number)}})
        answer = await self._express.ask(self._subject, body)
        took = time.perf_counter() - begun
        if orjson.loads(answer)["c"]["text"] != str((number + 1) * 2 - 3):
            raise ValueError(f"{number} gave {answer!r}")
        return took

    async def run(self, in_flight: int, seconds: float) -> tuple[list[float], float]:
        """Keep so many calls going for so long; return their times, and how long it was."""
        begun = time.perf_counter()

        async def caller() -> list[float]:
            times = []
            while time.perf_counter() < begun + seconds:
                times.append(await self.one())
            return times

        async with asyncio.TaskGroup() as group:
            callers = [group.create_task(caller()) for _ in range(in_flight)]
        took_s = time.perf_counter() - begun
        return [item for one in callers for item in one.result()], took_s


async def _measure(mesh: Mesh, server: NatsServer, seconds: float) -> list[Row]:
    nc = await nats.connect(server.url)
    await deploy(nc.jetstream(), "steps", DEFINITION)
    express = await Express.of(nc)
    express.timeout_s = 60.0
    loop = Loop(express)
    await loop.run(64, WARM_S)
    pids = {service.name: service.pid for service in mesh.services.values()}
    pids |= {"nats-server": server.pid, "client": os.getpid()}
    rows = []
    for in_flight in IN_FLIGHT:
        meter = Meter(pids)
        times, took_s = await loop.run(in_flight, seconds)
        cpu = meter.ms_each(len(times))
        print(json.dumps({"in_flight": in_flight, "cpu_ms": cpu}), file=sys.stderr, flush=True)
        p50, p99 = (statistics.quantiles(times, n=100)[place] * 1000 for place in (49, 98))
        rate = len(times) / took_s
        rows.append(
            Row(OURS, in_flight, round(rate, 1), round(p50, 2), round(p99, 2), cpu["total"])
        )
    await nc.close()
    return rows


def ours(seconds: float, orchestrators: int) -> list[Row]:
    """Measure clawdbot in processes of its own, every commit synced."""
    with tempfile.TemporaryDirectory() as folder, NatsServer(Path(folder)) as server:
        mesh = Mesh(Path(folder) / "mesh", server.url, {"master_key": "A" * 43 + "="})
        for number in range(orchestrators):
            mesh.add(f"orchestrator-{number}", "services.orchestrator")
        mesh.add("text", "services.workers", modality="text")
        mesh.add("gateway", "services.gateway", http_port="0")
        try:
            mesh.start()
            return uvloop.run(_measure(mesh, server, seconds))
        finally:
            mesh.stop()


def rival(system: str, scripts: Path, seconds: float) -> list[Row]:
    """Measure another system by its own script; nothing when it is not there."""
    in_flight = ",".join(map(str, IN_FLIGHT))
    arguments = ["--conc", in_flight, "--secs", str(seconds)]
    lines = measured(system, scripts / "wf_bench.py", arguments)
    newest = {row["conc"]: row for row in lines}
    return [
        Row(system, n, row["wps"], row["p50"], row["p99"], row["cpu_ms"], row["err"])
        for n, row in newest.items()
    ]


def medians(rows: list[Row]) -> Iterator[Row]:
    """Yield the median of each system's rounds."""
    places = list(dict.fromkeys((row.system, row.in_flight) for row in rows))
    for system, in_flight in places:
        same = [row for row in rows if (row.system, row.in_flight) == (system, in_flight)]
        figures: dict[str, Any] = {
            name: statistics.median(getattr(row, name) for row in same)
            for name in ("per_s", "p50_ms", "p99_ms", "cpu_ms")
        }
        yield Row(system, in_flight, **figures, errors=sum(row.errors for row in same))


def table(rows: list[Row]) -> str:
    """Return the medians as a table, and how far clawdbot is ahead."""
    lines = ["| system | in flight | workflows/s | p50 ms | p99 ms | CPU ms each | clawdbot is |"]
    lines.append("|---|---|---|---|---|---|---|")
    own = {row.in_flight: row for row in rows if row.system == OURS}
    for row in rows:
        ahead = f"{own[row.in_flight].per_s / row.per_s:.2f} x" if row.in_flight in own else ""
        lines.append(
            f"| {row.system} | {row.in_flight} | {row.per_s:.0f} | {row.p50_ms:.1f} "
            f"| {row.p99_ms:.1f} | {row.cpu_ms:.2f} | {ahead} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure everybody in turn, several rounds."""
    parser = argparse.ArgumentParser(prog="python -m bench.rivals", description=__doc__)
    parser.add_argument("systems", nargs="*", metavar="system", help=f"{OURS}, {', '.join(RIVALS)}")
    parser.add_argument("--scripts", type=Path, default=Path("../shared/bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--orchestrators", type=int, default=1)
    options = parser.parse_args()
    rows: list[Row] = []
    for _ in range(options.rounds):
        for system in options.systems or (OURS, *RIVALS):
            if system == OURS:
                fresh = ours(options.seconds, options.orchestrators)
            else:
                fresh = rival(system, options.scripts, options.seconds)
            for row in fresh:
                print(json.dumps(asdict(row)), flush=True)
            rows += fresh
    print(table(list(medians(rows))), file=sys.stderr)


if __name__ == "__main__":
    main()

"""What each mode gives and what it may lose: `python -m bench.modes`.

For each mode, with one server and with three: the latency of a run of three quick nodes, runs a
second with 64 in flight, and how many acknowledged runs are gone after the orchestrator was killed
under load, several times. Prints a table.
"""

import asyncio
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import nats
import uvloop
from nats.aio.client import Client as Nats

from bench.engine import Driver, mesh_driver
from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.subjects import RunKey
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.workflow import Mode
from tests.support.cluster import NatsCluster
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer
from tests.support.wait import until


SINGLE_RUNS = 100
LOAD_RUNS = 1000
IN_FLIGHT = 64
KILLS = 10
KILL_RUNS = 100
KILL_GAP_S = 0.002
"""Between two submissions while the orchestrator is killed."""
SETTLED_S = 60.0
MASTER_KEY = bytes(32)


@dataclass(frozen=True)
class Row:
    """One mode on so many servers."""

    mode: Mode
    replicas: int
    p50_ms: float
    p99_ms: float
    per_s: float
    acknowledged: int
    """Runs submitted around the kills."""
    lost: int
    """Of those: not in the log afterwards."""


async def _lost(nc: Nats, driver: Driver, mesh: Mesh) -> tuple[int, int]:
    """Kill the orchestrator under load; return runs acknowledged, and runs gone."""
    store = JetStreamEventStore(nc, JetStreamKeyRing(nc.jetstream(), MASTER_KEY))
    orchestrator = mesh.services["orchestrator-0"]
    acknowledged: list[str] = []
    for kill in range(KILLS):
        fatal = random.Random(kill).randrange(KILL_RUNS // 4, KILL_RUNS)
        for number in range(KILL_RUNS):
            run_id = new_id()
            await driver.submit(run_id)
            acknowledged.append(run_id)
            if number == fatal:
                orchestrator.signal(signal.SIGKILL)
                orchestrator.start()
            await asyncio.sleep(KILL_GAP_S)
        await asyncio.to_thread(orchestrator.wait_ready)

    async def queue_is_empty() -> bool:
        info = await nc.jetstream().stream_info("COMMANDS")
        return info.state.messages == 0

    await until(queue_is_empty, what="the end of all submissions", timeout_s=SETTLED_S)
    gone = 0
    for run_id in acknowledged:
        head = await store.head(RunKey(DEFAULT_TENANT, run_id))
        gone += head.version == 0
    return len(acknowledged), gone


async def _measure(mesh: Mesh, url: str, replicas: int) -> list[Row]:
    rows = []
    nc = await nats.connect(url.split(","))
    for mode in get_args(Mode):
        driver = await mesh_driver(nc, mode)
        await driver.load(200, 16)
        times = [await driver.one() for _ in range(SINGLE_RUNS)]
        per_s = await driver.load(LOAD_RUNS, IN_FLIGHT)
        acknowledged, lost = await _lost(nc, driver, mesh)
        p50, p99 = (statistics.quantiles(times, n=100)[place] * 1000 for place in (49, 98))
        row = Row(mode, replicas, round(p50, 2), round(p99, 2), round(per_s, 1), acknowledged, lost)
        print(json.dumps(asdict(row)), flush=True)
        rows.append(row)
    await nc.close()
    return rows


@contextmanager
def _servers(folder: Path, replicas: int) -> Iterator[str]:
    """Run one server or a cluster; give its address."""
    folders = [folder / f"n{number}" for number in range(replicas)]
    for one in folders:
        one.mkdir()
    with NatsServer(folders[0]) if replicas == 1 else NatsCluster(folders) as servers:
        yield servers.url


def measure(replicas: int) -> list[Row]:
    """Measure every mode on one server or on a cluster."""
    with tempfile.TemporaryDirectory() as name, _servers(Path(name), replicas) as url:
        settings = {"master_key": "A" * 43 + "=", "replicas": str(replicas)}
        mesh = Mesh(Path(name) / "mesh", url, settings)
        mesh.add_core()
        begun = time.monotonic()
        try:
            mesh.start()
            print(f"ready after {time.monotonic() - begun:.1f} s", file=sys.stderr)
            return uvloop.run(_measure(mesh, url, replicas))
        finally:
            mesh.stop()


def main() -> None:
    """Print a table."""
    rows = [*measure(1), *measure(3)]
    print("| mode | servers | p50 ms | p99 ms | runs/s at 64 | lost of acknowledged |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.mode} | {row.replicas} | {row.p50_ms:.1f} | {row.p99_ms:.1f} "
            f"| {row.per_s:.0f} | {row.lost} of {row.acknowledged} |"
        )


if __name__ == "__main__":
    main()

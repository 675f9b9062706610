"""Does cost stay flat? `python -m bench.curves`: a run's thousandth event, a long log, parked runs.

The log is filled by appending commits of synthetic runs as an orchestrator would: finished ones of
one commit each, then ones that wait (half for a time, half for a signal). After each filling the
same work is measured: runs of three trivial nodes, one after the other, through all processes.

JSON lines on stdout as they are measured, a table on stderr at the end.
"""

import argparse
import asyncio
import base64
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
import uvloop
from nats.aio.client import Client as Nats

from bench.cpu import Meter
from bench.engine import Driver, mesh_driver
from bench.iterations import ended, loop
from bench.memory import resident_mib
from events.catalog import Event
from events.commands import RejectRun, StartRun
from events.evolve import fold
from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.projections import log_end
from events.run import decide
from events.store import EMPTY, Append
from events.subjects import RunKey, submit
from schemas.catalogue import load
from schemas.compiler import compile_plan
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.messages import Fault, Header
from schemas.submission import pack_inputs
from schemas.workflow import parse_definition
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer
from tests.support.workflows import deploy


MASTER_KEY = bytes(32)
LOG = (1_000, 100_000, 1_000_000)
PARKED = (0, 1_000, 100_000)
RUNS = 100
LONG_RUNS = 10
LONG, SHORT = 260, 26
"""Iterations; a run of so many has somewhat more than 1,000 and 100 events."""
AT_EVENT = (10, 100, 1_000)
AROUND = 9
"""So many events before and after one are its neighbourhood."""
FILL_AT_ONCE = 1024
WAIT_S = 30 * 86_400
Make = Callable[[int], list[Event]]


class Bench:
    """A mesh, and what is measured of it.

    Args:
        nc: The connection.
        mesh: Its services.
        server: Its server.
    """

    def __init__(self, nc: Nats, mesh: Mesh, server: NatsServer) -> None:
        self._nc, self._mesh = nc, mesh
        self._pids = {name: service.pid for name, service in mesh.services.items()}
        self._pids["nats-server"] = server.pid
        self._store = JetStreamEventStore(nc, JetStreamKeyRing(nc.jetstream(), MASTER_KEY))

    async def events(self) -> list[dict[str, Any]]:
        """Return what events cost by their place in a run."""
        js = self._nc.jetstream()
        cpu: dict[int, float] = {}
        spans: dict[int, list[float]] = {place: [] for place in AT_EVENT}
        for length in (SHORT, LONG):
            await deploy(js, f"loop{length}", loop(length))
            meter, count = Meter(self._pids), 0
            for _ in range(LONG_RUNS):
                key = RunKey(DEFAULT_TENANT, new_id())
                headers = {Header.RUN_ID: key.run_id, Header.CONTENT_TYPE: "application/msgpack"}
                await js.publish(
                    submit(key.tenant, f"loop{length}"), pack_inputs({}), headers=headers
                )
                await ended(self._nc, key)
                times = [event.at for event in (await self._store.load(key)).events()]
                count += len(times)
                for place in AT_EVENT:
                    if length == LONG:
                        first, last = (
                            max(0, place - AROUND - 1),
                            min(len(times), place + AROUND) - 1,
                        )
                        spans[place].append((times[last] - times[first]) / (last - first))
            cpu[length] = meter.ms_each(count)["total"]
        rows = [
            {"curve": "event of a run", "at": place, "ms": _ms(statistics.median(found))}
            for place, found in spans.items()
        ]
        rows[1]["cpu_ms"], rows[2]["cpu_ms"] = cpu[SHORT], cpu[LONG]
        return rows

    async def runs(self, driver: Driver, curve: str, at: int) -> dict[str, Any]:
        """Return what runs cost now."""
        await driver.load(RUNS // 4, 1)
        meter = Meter(self._pids)
        times = [await driver.one() for _ in range(RUNS)]
        orchestrator = self._pids["orchestrator-0"]
        return {
            "curve": curve,
            "at": at,
            "ms": _ms(statistics.median(times)),
            "cpu_ms": meter.ms_each(RUNS)["total"],
            "orchestrator_mib": round(resident_mib(orchestrator), 1),
        }

    async def fill(self, count: int, make: Make) -> None:
        """Append so many runs of one commit each, and wait until every index has them."""
        begun = time.perf_counter()
        numbers = iter(range(count))

        async def filler() -> None:
            for number in numbers:
                events = make(number)
                state = fold(events)
                assert state is not None
                key = RunKey(DEFAULT_TENANT, new_id())
                await self._store.append(Append(key, new_id(), events, EMPTY, state))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(count, FILL_AT_ONCE)):
                group.create_task(filler())
        took_s = time.perf_counter() - begun
        print(json.dumps({"filled": count, "seconds": round(took_s, 1)}), flush=True)
        await asyncio.sleep(count / 20_000)  # the indexes follow at more than this


def _finished(_: int) -> list[Event]:
    error = Fault(code="INVALID_ARGUMENT", message="filling")
    return decide(None, RejectRun("chain", "", error, time.time()))  # noqa: TID251 - as the services


def _parking() -> Make:
    """Return what makes runs that wait, in turn for a time and for a signal."""
    documents = [
        {"nodes": [{"id": "wait", "type": "delay", "params": {"seconds": WAIT_S}}]},
        {"nodes": [{"id": "wait", "type": "signal", "params": {"name": "go"}}]},
    ]
    definitions = [parse_definition(document) for document in documents]
    plans = [compile_plan(definition, load()) for definition in definitions]

    def make(number: int) -> list[Event]:
        start = StartRun(
            workflow="parked",
            version=1,
            digest=definitions[number % 2].digest(),
            plan=plans[number % 2],
            inputs={},
            inputs_digest="",
            correlation_id="filling",
            at=time.time(),  # noqa: TID251 - as the services
        )
        return decide(None, start)

    return make


async def _measure(mesh: Mesh, server: NatsServer, log: tuple[int, ...]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def add(*fresh: dict[str, Any]) -> None:
        rows.extend(fresh)
        for row in fresh:
            print(json.dumps(row), flush=True)

    nc = await nats.connect(server.url)
    try:
        bench = Bench(nc, mesh, server)
        driver = await mesh_driver(nc)
        for size in log:
            _, last = await log_end(nc)
            await bench.fill(max(0, size - last), _finished)
            add(await bench.runs(driver, "messages in the log", max(size, last)))
        parking, have = _parking(), 0
        for parked in PARKED:
            await bench.fill(parked - have, parking)
            have = parked
            add(await bench.runs(driver, "beside parked runs", parked))
        add(*await bench.events())
    finally:
        await nc.close()
    return rows


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["| | at | median | CPU of all processes | orchestrator |", "|---|---|---|---|---|"]
    for row in rows:
        cpu = f"{row['cpu_ms']} ms" if "cpu_ms" in row else ""
        memory = f"{row['orchestrator_mib']} MiB" if "orchestrator_mib" in row else ""
        lines.append(f"| {row['curve']} | {row['at']:,} | {row['ms']} ms | {cpu} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    """Start a mesh of its own, measure, stop it."""
    parser = argparse.ArgumentParser(prog="python -m bench.curves", description=__doc__)
    parser.add_argument("--log-max", type=int, default=max(LOG), help="messages to fill the log to")
    log_max = parser.parse_args().log_max
    key = base64.b64encode(MASTER_KEY).decode()
    with tempfile.TemporaryDirectory() as folder, NatsServer(Path(folder)) as server:
        mesh = Mesh(Path(folder) / "mesh", server.url, {"master_key": key})
        mesh.add_core()
        try:
            mesh.start()
            log = tuple(itertools.takewhile(lambda size: size <= log_max, LOG))
            rows = uvloop.run(_measure(mesh, server, log))
        finally:
            mesh.stop()
    print(_table(rows), file=sys.stderr)


if __name__ == "__main__":
    main()

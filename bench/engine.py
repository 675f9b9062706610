"""A run of three trivial nodes through all processes, beside the floor of the same messages."""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client as Nats

from bench import relay
from events.express import Express, Frame, encode_head, pub_ack
from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.subjects import RunKey, every, run_key, submit
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.messages import Header
from schemas.submission import pack_inputs
from schemas.workflow import Mode
from tests.support.workflows import deploy, echo_chain


STEPS = 3
COMMITS = STEPS + 1
ROUNDS = 5
SINGLE_RUNS = 200
LOAD_RUNS = 1500
IN_FLIGHT = (1, 64, 256)
PATIENCE_S = 60.0


@dataclass
class Driver:
    """Submits runs of one system and waits for their last commit.

    Args:
        nc: The connection.
        submit: Publishes the submission of a run and waits for its ack.
    """

    nc: Nats
    submit: Callable[[str], Awaitable[Any]]
    waiting: dict[str, "asyncio.Future[None]"] = field(default_factory=dict)

    def ended(self, run_id: str) -> None:
        """Tell whoever waits that a run is over."""
        future = self.waiting.pop(run_id, None)
        if future is not None:
            future.set_result(None)

    async def one(self) -> float:
        """Run once; return its seconds from before the submission to the last commit."""
        run_id = new_id()
        over = self.waiting[run_id] = asyncio.get_running_loop().create_future()
        begun = time.perf_counter()
        await self.submit(run_id)
        async with asyncio.timeout(PATIENCE_S):
            await over
        return time.perf_counter() - begun

    async def load(self, runs: int, in_flight: int) -> float:
        """Keep `in_flight` runs going; return runs per second."""
        gate = asyncio.Semaphore(in_flight)

        async def gated() -> None:
            async with gate:
                await self.one()

        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(runs):
                group.create_task(gated())
        return runs / (time.perf_counter() - begun)


async def mesh_driver(nc: Nats, mode: Mode = "strong") -> Driver:
    """Return the driver of the product over NATS."""
    name = f"chain_{mode}"
    await deploy(nc.jetstream(), name, {**echo_chain(STEPS), "mode": mode})
    express = await Express.of(nc)
    body = pack_inputs({"text": "hi"})
    subject = submit(DEFAULT_TENANT, name)

    async def send(run_id: str) -> None:
        headers = {
            Header.RUN_ID: run_id,
            Header.CONTENT_TYPE: "application/msgpack",
            Header.VERSION: "1",
        }
        pub_ack(await express.ask(subject, body, encode_head(headers)))

    driver = Driver(nc, send)
    running = f"\r\n{Header.STATUS}: running\r\n".encode()

    def on_live(frame: Frame) -> None:
        if running not in frame.head:
            driver.ended(run_key(frame.subject).run_id)

    await express.subscribe(every("live", "*.*"), on_live)
    return driver


async def floor_driver(nc: Nats, size: int) -> Driver:
    """Return the driver of the relays."""
    express = await Express.of(nc)
    body = bytes(size)

    async def send(run_id: str) -> None:
        pub_ack(await express.ask(f"floor.submit.{run_id}", body, encode_head({"Run": run_id})))

    driver = Driver(nc, send)
    seen: dict[str, int] = {}

    def on_live(frame: Frame) -> None:
        run_id = frame.subject.rpartition(".")[2]
        seen[run_id] = seen.get(run_id, 0) + 1
        if seen[run_id] == COMMITS:
            del seen[run_id]
            driver.ended(run_id)

    await express.subscribe("floor.live.*", on_live)
    return driver


async def message_bytes(nc: Nats, driver: Driver, master_key: bytes) -> int:
    """Return the mean size of the commits of a real run, which the floor's messages then have."""
    ids: list[str] = []
    send = driver.submit

    async def noting(run_id: str) -> None:
        ids.append(run_id)
        await send(run_id)

    driver.submit = noting
    await driver.one()
    driver.submit = send
    store = JetStreamEventStore(nc, JetStreamKeyRing(nc.jetstream(), master_key))
    commits = await store.stored(RunKey(DEFAULT_TENANT, ids[0]))
    return round(statistics.mean(len(commit.data) for commit in commits))


@contextmanager
def relays(url: str, size: int) -> Iterator[None]:
    """Run the two relay processes."""
    processes = [
        subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "bench.relay", role, url, str(STEPS), str(size)]
        )
        for role in ("orchestrator", "worker")
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def measure(nc: Nats, url: str, master_key: bytes) -> list[dict[str, Any]]:
    """Measure product and floor turn by turn; return latency and throughput rows."""
    mesh = await mesh_driver(nc)
    size = await message_bytes(nc, mesh, master_key)
    await relay.make_streams(nc)
    with relays(url, size):
        floor = await floor_driver(nc, size)
        for driver in (mesh, floor):
            await driver.load(200, 32)  # warm both
        return [await _latency(mesh, floor, size), *await _throughput(mesh, floor)]


async def _latency(mesh: Driver, floor: Driver, size: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {"mesh": [], "floor": []}
    for _ in range(ROUNDS):
        for name, driver in (("mesh", mesh), ("floor", floor)):
            times[name] += [await driver.one() for _ in range(SINGLE_RUNS // ROUNDS)]
    p50 = {name: statistics.median(values) * 1000 for name, values in times.items()}
    p99 = {name: statistics.quantiles(values, n=100)[98] * 1000 for name, values in times.items()}
    return {
        "scenario": "latency_3_nodes",
        "message_bytes": size,
        "p50_ms": round(p50["mesh"], 2),
        "p99_ms": round(p99["mesh"], 2),
        "floor_p50_ms": round(p50["floor"], 2),
        "floor_p99_ms": round(p99["floor"], 2),
        "ratio": round(p50["mesh"] / p50["floor"], 2),
        "goal": "ratio <= 2",
        "met": p50["mesh"] <= 2 * p50["floor"],
    }


async def _throughput(mesh: Driver, floor: Driver) -> list[dict[str, Any]]:
    rows = []
    for in_flight in IN_FLIGHT:
        runs = LOAD_RUNS if in_flight > 1 else SINGLE_RUNS // 2
        rates: dict[str, list[float]] = {"mesh": [], "floor": []}
        for _ in range(3):
            for name, driver in (("mesh", mesh), ("floor", floor)):
                rates[name].append(await driver.load(runs, in_flight))
        ours, theirs = (statistics.median(rates[name]) for name in ("mesh", "floor"))
        rows.append(
            {
                "scenario": f"throughput_{in_flight}_in_flight",
                "runs_per_s": round(ours, 1),
                "floor_runs_per_s": round(theirs, 1),
                "ratio": round(ours / theirs, 2),
                "goal": "ratio >= 0.6",
                "met": ours >= 0.6 * theirs,
            }
        )
    return rows

"""How fast the run index and the statistics of nodes are built anew from the log."""

import statistics
import time
from typing import Any

from nats.aio.client import Client as Nats

from bench.replay import commits
from events.evolve import fold
from events.index import RunIndex
from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.projections import Projector, log_end, scan
from events.statistics import Statistics
from events.store import EMPTY, Append
from events.subjects import RunKey
from schemas.catalogue import load
from schemas.compiler import compile_plan
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.workflow import parse_definition
from tests.support.workflows import echo_chain


NODES = 3
RUNS = 2_000
ROUNDS = 5
GOAL = 20_000


async def measure(nc: Nats, master_key: bytes) -> list[dict[str, Any]]:
    """Fill the log with runs of three nodes that each fail once, then build both repeatedly."""
    plan = compile_plan(parse_definition(echo_chain(NODES)), load())
    keys = JetStreamKeyRing(nc.jetstream(), master_key)
    store = JetStreamEventStore(nc, keys)
    _, before = await log_end(nc)
    made = commits(plan)
    over = fold(event for happened in made for event in happened)
    assert over is not None, "its state keeps orchestrators away from runs that are half written"
    for _ in range(RUNS):
        key, head = RunKey(DEFAULT_TENANT, new_id()), EMPTY
        for happened in made:
            head = await store.append(Append(key, new_id(), happened, head, over))
    created, last = await log_end(nc)
    rates: list[float] = []
    busy: list[float] = []
    digests: set[str] = set()
    events = count = 0
    for _ in range(ROUNDS):
        index, nodes = RunIndex(":memory:"), Statistics(":memory:")
        nodes.begin(created, last)
        projector = Projector(nc, keys, nodes)
        begun, worked, events, count = time.perf_counter(), time.process_time(), 0, 0
        async for batch in scan(nc, before + 1, last):
            events += await projector.record(nodes, batch)
            count += len(batch)
            index.record(batch)
        rates.append(events / (time.perf_counter() - begun))
        busy.append(events / (time.process_time() - worked))
        digests.add(index.digest() + nodes.digest())
        index.close()
        nodes.close()
    rate = statistics.median(rates)
    return [
        {
            "scenario": "projections",
            "events": events,
            "commits": count,
            "events_per_s": round(rate),
            "events_per_cpu_s": round(statistics.median(busy)),
            "same_digest": len(digests) == 1,
            "goal": f">= {GOAL} events/s",
            "met": rate >= GOAL and len(digests) == 1,
        }
    ]

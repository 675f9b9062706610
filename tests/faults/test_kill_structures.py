"""Orchestrators and workers die in the middle of workflows that use every structure."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client as Nats

from events.catalog import TERMINAL, Event, NodeCompleted, NodeScheduled
from events.definitions import DefinitionStore, DeployedWorkflow, called
from events.evolve import fold
from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.subjects import RunKey, every, submit
from schemas.catalogue import load
from schemas.compiler import compile_plan
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.messages import Header
from schemas.submission import pack_inputs
from schemas.workflow import parse_definition
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer
from tests.support.outside import Outside, serving
from tests.support.play import control, graph, model
from tests.support.wait import until


pytestmark = pytest.mark.nats

MASTER = bytes(32)
MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
RUNS = 24
KILLS = 12
LONG = "x" * 20_000
"""More than echo takes."""
SMALL = {"events_bytes_max": "268435456", "blobs_bytes_max": "268435456"}


def everything(url: str) -> dict[str, Any]:
    """Return a workflow of all structures; `last` decides whether it ends well."""
    item = graph(
        model("say", "input.item"),
        control("rest", "delay", seconds=0.05),
        model("again", "say.text"),
        edges="say>rest rest>again",
    )
    node = '{"id": "d", "type": "template", "params": {"template": "made"}}'
    definition = graph(
        model("book", '"booked"', compensate=graph(model("unbook", '"undone"'))),
        control("each", "foreach", items="range_of.items", max_parallel=2, body=item),
        control("range_of", "set", values={"items": '["a", "b", "c", "d"]'}),
        control(
            "count",
            "loop",
            init={"text": '""'},
            while_="len(input.text) < 3",
            next={"text": "grow.text"},
            body=graph(model("grow", 'input.text + "i"')),
        ),
        control(
            "guard",
            "try",
            body=graph(model("bad", "run.long")),
            catch=graph(model("mend", "input.error.code")),
            finally_=graph(model("tidy", '"tidied"')),
        ),
        control("route", "switch", cases={"many": "each.count > 3"}, default="few"),
        model("many", '"many"'),
        model("few", '"few"'),
        control("made", "dynamic", graph=f'{{"nodes": [{node}]}}'),
        control("sub", "workflow", workflow="part"),
        {**control("word", "signal", default="none"), "timeout_s": 0.4},
        control("out", "emit", subject="killed.said"),
        control("call", "http", url=url, method="POST"),
        model("alone", "call.body.path", concurrency={"key": '"all"', "limit": 2}),
        model("known", '"known"', memo=True, priority="low"),
        model("last", "run.last"),
    )
    definition["edges"] = [
        {"source": left, "target": right}
        for left, right in (
            ("range_of", "each"),
            ("each", "route"),
            ("book", "count"),
            ("count", "guard"),
            ("many", "made"),
            ("few", "made"),
            ("made", "sub"),
            ("guard", "word"),
            ("word", "out"),
            ("out", "call"),
            ("call", "alone"),
            ("alone", "known"),
            ("known", "last"),
            ("sub", "last"),
        )
    ] + [{"source": "route", "target": case, "case": case} for case in ("many", "few")]
    return definition


@pytest.fixture
def mesh(nats_server: NatsServer, tmp_path: Path) -> Iterator[Mesh]:
    """Two orchestrators and two text workers, with quick redelivery."""
    extra = {"ack_wait_s": "2", "max_deliver": "100", "master_key": MASTER_TEXT, **SMALL}
    extra["http_allow"] = "127.0.0.1"
    mesh = Mesh(tmp_path, nats_server.url, extra)
    mesh.add_core(replicas=2)
    mesh.start()
    yield mesh
    mesh.stop()


@pytest.fixture
def outside() -> Iterator[Outside]:
    """A server that is no part of the mesh."""
    with serving() as server:
        yield server


async def deploy(nc: Nats, name: str, document: dict[str, Any]) -> None:
    """Deploy a workflow whose nodes may name others."""
    store = DefinitionStore(nc.jetstream())
    definition = parse_definition(document)
    workflows = await called(store, DEFAULT_TENANT, definition)
    await store.deploy(
        DEFAULT_TENANT,
        DeployedWorkflow(
            name=name,
            version=0,
            digest=definition.digest(),
            definition=definition,
            plan=compile_plan(definition, load(), workflows),
            deployed_at=0.0,
        ),
    )


async def kill(mesh: Mesh, rng: random.Random) -> None:
    """Kill and start again one orchestrator or worker after the other."""
    names = list(mesh.services)
    for number in range(KILLS):
        await asyncio.sleep(rng.uniform(0.1, 0.5))
        victim = names[number % len(names)]
        mesh.services[victim].signal(signal.SIGKILL)
        mesh.services[victim].start()


def check(events: list[Event], *, fine: bool) -> None:
    """Compare a history with what the workflow means."""
    state = fold(events)
    assert state is not None
    assert 1 == sum(isinstance(event, TERMINAL) for event in events)
    done = Counter(event.node_id for event in events if isinstance(event, NodeCompleted))
    assert {} == {path: count for path, count in done.items() if count > 1}
    attempts = Counter(
        (event.node_id, event.attempt) for event in events if isinstance(event, NodeScheduled)
    )
    assert {} == {key: count for key, count in attempts.items() if count > 1}
    assert {f"each[{number}]/again" for number in range(4)} <= done.keys()
    wanted = {"guard[catch]/mend", "guard[finally]/tidy", "many", "made[body]/d", "sub[body]/p"}
    assert wanted <= done.keys()
    assert {"text": "/orders"} == state.nodes["alone"].outputs
    assert {"text": "iii", "iterations": 3} == state.nodes["count"].outputs
    if fine:
        assert ("completed", {"last": {"text": "fine"}}) == (state.status, state.outputs)
    else:
        assert ("failed", 1) == (state.status, done["book[compensate]/unbook"])


@pytest.mark.timeout(240)
async def test_every_structure_survives_kills(
    mesh: Mesh, nats_server: NatsServer, outside: Outside
) -> None:
    """Each run ends as it would have, every node is recorded once, what failed is undone."""
    nc = await nats.connect(nats_server.url, max_reconnect_attempts=-1)
    said: set[str] = set()

    async def hear(message: Any) -> None:
        said.add(message.headers[Header.RUN_ID])

    await nc.subscribe(every("topic"), cb=hear)
    await deploy(nc, "part", graph(model("p", '"part"')))
    await deploy(nc, "everything", everything(f"{outside.url}/orders"))
    keys = {RunKey(DEFAULT_TENANT, new_id()): number % 3 != 0 for number in range(RUNS)}
    rng = random.Random(11)

    async def start() -> None:
        for key, fine in keys.items():
            await asyncio.sleep(rng.uniform(0.0, 0.2))
            headers = {Header.RUN_ID: key.run_id, Header.CONTENT_TYPE: "application/msgpack"}
            body = pack_inputs({"long": LONG, "last": "fine" if fine else LONG})
            await nc.jetstream().publish(submit(key.tenant, "everything"), body, headers=headers)

    async with asyncio.TaskGroup() as group:
        group.create_task(kill(mesh, rng))
        group.create_task(start())
    store = JetStreamEventStore(nc, JetStreamKeyRing(nc.jetstream(), MASTER))
    waiting = set(keys)

    async def all_over() -> bool:
        for key in list(waiting):
            state = (await store.load(key)).state()
            if state is None or not state.terminal:
                return False
            waiting.discard(key)
        return True

    await until(all_over, what="the end of all runs", timeout_s=120)
    for key, fine in keys.items():
        check((await store.load(key)).events(), fine=fine)
    assert {key.run_id for key in keys} == said
    assert RUNS == len({seen["idempotency-key"] for seen in outside.seen})
    await nc.close()

"""SIGKILL at random moments, under load: nothing accepted is lost, nothing is recorded twice."""

import asyncio
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client as Nats
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

from events import jetstream
from events.catalog import RunStarted
from events.commands import StartRun
from events.index import RunIndex
from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.snapshots import MemorySnapshotStore
from events.store import Append
from events.streams import StreamLimits, ensure
from events.subjects import RunKey, submit
from schemas.catalogue import load
from schemas.compiler import compile_plan
from schemas.errors import DataLoss, RetryableError
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.messages import Header
from schemas.submission import pack_inputs
from schemas.workflow import parse_definition
from services.orchestrator.runs import Runs
from tests.support.checker import Submission, check, recorded
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer
from tests.support.wait import until
from tests.support.workflows import deploy, echo_chain


pytestmark = pytest.mark.nats

RUNS = 200
KILLS_MIN = 10
LOSSLESS = ("strong", "ordered")
"""Modes that lose nothing that was accepted."""
MASTER = bytes(32)
MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
LIMITS = {
    "events_bytes_max": str(2**28),
    "commands_bytes_max": str(2**28),
    "blobs_bytes_max": str(2**28),
    "work_bytes_max": str(2**26),
}


@pytest.fixture
def mesh(nats_server: NatsServer, tmp_path: Path) -> Iterator[Mesh]:
    """Two orchestrators and two text workers, with quick redelivery; one worker never goes on."""
    extra = {"ack_wait_s": "2", "max_deliver": "100", "master_key": MASTER_TEXT, **LIMITS}
    mesh = Mesh(tmp_path, nats_server.url, extra)
    mesh.add_core(replicas=2)
    mesh.services["text-1"].environment["CLAWDBOT_CHAIN_MS"] = "0"
    mesh.start()
    yield mesh
    mesh.stop()


async def _submit(nc: Nats, key: RunKey, workflow: str) -> None:
    """Submit until acked, as any client with a run id of its own may."""
    headers = {Header.RUN_ID: key.run_id, Header.CONTENT_TYPE: "application/msgpack"}
    body = pack_inputs({"text": key.run_id})
    while True:
        try:
            await nc.jetstream(timeout=1).publish(
                submit(key.tenant, workflow), body, headers=headers
            )
            return
        except (NatsError, JetStreamError, TimeoutError):
            await asyncio.sleep(0.05)


async def _kill_for(
    mesh: Mesh, server: NatsServer, rng: random.Random, done: asyncio.Event
) -> list[str]:
    """Kill and restart one victim after another until the load is through."""
    killed: list[str] = []
    while not done.is_set() or len(killed) < KILLS_MIN:
        await asyncio.sleep(rng.uniform(0.1, 0.6))
        victim = rng.choice([*mesh.services, "nats-server"])
        killed.append(victim)
        if victim == "nats-server":
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        else:
            mesh.services[victim].signal(signal.SIGKILL)
            mesh.services[victim].start()
    return killed


@pytest.mark.timeout(240)
async def test_killed_processes_lose_nothing_and_record_nothing_twice(
    mesh: Mesh, nats_server: NatsServer, patient: Nats
) -> None:
    """200 accepted runs all end once, with one result a node, whatever was killed meanwhile."""
    for mode in LOSSLESS:
        await deploy(patient.jetstream(), mode, {**echo_chain(3), "mode": mode})
    rng = random.Random(7)
    keys = [RunKey(DEFAULT_TENANT, new_id()) for _ in range(RUNS)]
    modes = {key: rng.choice(LOSSLESS) for key in keys}
    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        killer = group.create_task(_kill_for(mesh, nats_server, rng, done))
        for key in keys:
            await asyncio.sleep(rng.uniform(0, 0.04))
            await _submit(patient, key, modes[key])
        done.set()
    assert len(killer.result()) >= KILLS_MIN

    store = JetStreamEventStore(patient, JetStreamKeyRing(patient.jetstream(), MASTER))
    open_keys = set(keys)

    async def all_over() -> bool:
        for key in list(open_keys):
            try:
                state = (await store.load(key)).state()
            except RetryableError:
                return False
            if state is None or not state.terminal:
                return False
            open_keys.discard(key)
        return True

    await until(all_over, what=f"the end of all runs after {killer.result()}", timeout_s=90)
    wanted = [
        Submission(key.run_id, mode, {"text": key.run_id}, True, {"n2": {"text": key.run_id}})
        for key, mode in modes.items()
    ]
    assert [] == check(await recorded(store, keys), wanted)


async def test_the_checker_sees_what_optimistic_concurrency_prevents(
    nc: Nats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the expected sequence two orchestrators fork a history, and the checks say so."""
    await ensure(nc, StreamLimits(events_bytes_max=2**28, blobs_bytes_max=2**28))
    real = jetstream.commit_headers

    def unguarded(append: Append, version: int) -> dict[str, str]:
        headers = real(append, version)
        del headers[Header.EXPECTED]
        return headers

    definition = parse_definition(echo_chain(1))
    plan = compile_plan(definition, load())
    command = StartRun("chain", 1, "d", plan, {"text": "x"}, "i", "c", 1.0)
    store = JetStreamEventStore(nc, JetStreamKeyRing(nc.jetstream(), MASTER))
    indexes = [RunIndex(tmp_path / f"{number}.sqlite") for number in range(2)]
    desks = [Runs(store, MemorySnapshotStore(), index) for index in indexes]

    async def start_twice(key: RunKey) -> None:
        for desk in desks:
            await desk.obey(key, command, fresh=True)

    guarded = RunKey(DEFAULT_TENANT, new_id())
    await start_twice(guarded)
    events = (await store.load(guarded)).events()
    assert 1 == sum(isinstance(event, RunStarted) for event in events)

    monkeypatch.setattr(jetstream, "commit_headers", unguarded)
    forked = RunKey(DEFAULT_TENANT, new_id())
    await start_twice(forked)
    with pytest.raises(DataLoss):
        await store.load(forked)
    log = await recorded(store, [guarded, forked])
    told = [Submission(key.run_id, "chain", {"text": "x"}, True) for key in (guarded, forked)]
    found = check(log, told, complete=False)
    assert found
    assert all(text.startswith(forked.run_id) for text in found)
    for index in indexes:
        index.close()

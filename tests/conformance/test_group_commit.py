"""Group commit against a real server: whatever befalls a batch, each run's commit has one fate."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from functools import partial

import nats
import pytest
from nats.aio.client import Client as Nats

from events.blobs import JetStreamBlobStore
from events.export import export_run, restore, unpack
from events.express import Express, Frame
from events.group_commit import BATCH_MIN, GroupCommit
from events.jetstream import JetStreamEventStore, read_subject
from events.keys import JetStreamKeyRing
from events.store import EMPTY, Append, Head
from events.streams import EVENTS, StreamLimits, ensure
from events.subjects import RunKey, event, every
from schemas.errors import StoreUnavailable, VersionConflict
from schemas.ids import new_id
from tests.support.nats import NatsServer
from tests.support.runs import given, node, plan, start
from tests.support.wait import until


pytestmark = pytest.mark.nats
LIMITS = StreamLimits(events_bytes_max=2**28, blobs_bytes_max=2**28)
CHAIN = plan(node("a"), node("b", "a"))
RUNS = 60
ROUNDS = 5


@dataclass
class Log:
    """An event store, and what is under it."""

    nc: Nats
    keys: JetStreamKeyRing
    store: JetStreamEventStore
    group: GroupCommit
    express: Express
    fates: dict[RunKey, Head | Exception] = field(default_factory=dict)

    async def append(self, append: Append) -> None:
        """Append, and note what became of it."""
        try:
            self.fates[append.key] = await self.store.append(append)
        except (VersionConflict, StoreUnavailable) as error:
            self.fates[append.key] = error

    async def append_all(self, appends: list[Append]) -> None:
        """Append at once."""
        async with asyncio.TaskGroup() as group:
            for append in appends:
                group.create_task(self.append(append))


@pytest.fixture
async def log(nats_server: NatsServer) -> AsyncIterator[Log]:
    """A store that has appended before, so that it knows the tenant's key."""
    nc = await nats.connect(
        nats_server.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1, ping_interval=1
    )
    await ensure(nc, LIMITS)
    keys = JetStreamKeyRing(nc.jetstream(), bytes(32))
    store = JetStreamEventStore(nc, keys)
    await store.append(first(new_key()))
    assert store._commits is not None
    yield Log(nc, keys, store, store._commits, await Express.of(nc))
    await nc.close()


def new_key() -> RunKey:
    """Return a run of its own."""
    return RunKey("default", new_id())


def first(key: RunKey) -> Append:
    """Return the first commit of a run."""
    state, events = given(start(CHAIN))
    return Append(key, new_id(), events, EMPTY, state)


async def test_a_few_commits_go_one_by_one(log: Log) -> None:
    """Below the size that pays no batch is made."""
    await log.append_all([first(new_key()) for _ in range(BATCH_MIN - 1)])
    assert 0 == log.group.batches
    assert all(isinstance(fate, Head) for fate in log.fates.values())


async def test_commits_that_queue_are_one_batch(log: Log) -> None:
    """Each append returns the head that the log has."""
    appends = [first(new_key()) for _ in range(RUNS)]
    await log.append_all(appends)
    assert 1 == log.group.batches
    for append in appends:
        history = await log.store.load(append.key)
        assert log.fates[append.key] == history.head
        assert [append.commit_id] == [commit.commit_id for commit in history.commits]
    sequences = {fate.sequence for fate in log.fates.values() if isinstance(fate, Head)}
    assert RUNS == len(sequences)


async def test_one_conflict_harms_no_other(log: Log) -> None:
    """In every batch one run was written by somebody else: it alone conflicts."""
    for number in range(ROUNDS):
        appends = [first(new_key()) for _ in range(RUNS)]
        taken = appends[number * 11]
        await log.store.append(replace(taken, commit_id=new_id()))
        log.group._alone_until = 0.0  # else the round after a refusal makes no batch
        await log.append_all(appends)
        assert number + 1 == log.group.batches
        assert isinstance(log.fates[taken.key], VersionConflict)
        for append in appends:
            if append is not taken:
                assert log.fates[append.key] == (await log.store.load(append.key)).head


async def test_a_refused_batch_is_followed_by_single_commits(log: Log) -> None:
    """Where others write to the same runs, batches would be refused again and again."""
    appends = [first(new_key()) for _ in range(RUNS)]
    await log.store.append(replace(appends[0], commit_id=new_id()))
    await log.append_all(appends)
    await log.append_all([first(new_key()) for _ in range(RUNS)])
    assert 1 == log.group.batches


async def test_two_commits_of_a_run_share_no_batch(log: Log) -> None:
    """Of two on one head one is stored, whatever queues around them."""
    twice = first(new_key())
    rival = replace(twice, commit_id=new_id())
    others = [first(new_key()) for _ in range(RUNS)]
    outcomes: list[object] = []

    async def attempt(append: Append) -> None:
        try:
            outcomes.append(await log.store.append(append))
        except VersionConflict as error:
            outcomes.append(error)

    async with asyncio.TaskGroup() as group:
        for append in (twice, *others, rival):
            group.create_task(attempt(append))
    assert [VersionConflict] == [type(each) for each in outcomes if not isinstance(each, Head)]
    assert 1 == (await log.store.load(twice.key)).head.version


async def test_a_batch_whose_ack_is_lost_is_resolved(log: Log) -> None:
    """Every run reads who wrote its last commit, finds itself, and nothing is stored twice."""
    lost: list[Frame] = []
    [(inbox, heard)] = [
        item for item in log.express.handlers.items() if item[1] == log.express._on_answer
    ]

    def lossy(frame: Frame) -> None:
        if b'"batch"' in frame.data:
            lost.append(frame)
        else:
            heard(frame)

    log.express.handlers[inbox] = lossy
    log.express.timeout_s = 0.3
    appends = [first(new_key()) for _ in range(RUNS)]
    await log.append_all(appends)
    assert 1 == len(lost)
    for append in appends:
        history = await log.store.load(append.key)
        assert (1, log.fates[append.key]) == (len(history.commits), history.head)


async def test_a_batched_run_moves_elsewhere(log: Log) -> None:
    """A bundle of it can be restored: it carries nothing of the batch."""
    appends = [first(new_key()) for _ in range(RUNS)]
    await log.append_all(appends)
    key, head = appends[1].key, log.fates[appends[1].key]
    assert isinstance(head, Head)
    assert "Nats-Batch-Id" in (await log.store.stored(key))[0].headers
    blobs = JetStreamBlobStore(log.nc, log.keys)
    bundle = unpack(await export_run(log.store, blobs, log.keys, key, at=1.0))
    await log.nc.jetstream().purge_stream(EVENTS, subject=event(key))
    restored = await restore(log.nc, blobs, log.keys, bundle)
    assert (head.version, head.digest) == (restored.version, restored.digest)
    assert (await log.store.load(key)).head == restored


async def test_a_killed_server_keeps_whole_batches(log: Log, nats_server: NatsServer) -> None:
    """SIGKILL under load: each batch is there whole or not at all, and every acked commit is."""
    await log.nc.jetstream().purge_stream(EVENTS)
    log.express.timeout_s = 1.0
    done = asyncio.Event()

    async def write() -> None:
        while not done.is_set():
            await log.append(first(new_key()))

    async with asyncio.TaskGroup() as group:
        for _ in range(RUNS):
            group.create_task(write())
        for _ in range(ROUNDS):
            await until(partial(_beyond, log.group, log.group.batches + 3), what="more batches")
            nats_server.kill()
            nats_server.start()
        done.set()
    stored = await read_subject(log.nc, EVENTS, every("event", "*.*"))
    batches: dict[str, list[tuple[int, bool]]] = defaultdict(list)
    for item in stored:
        if "Nats-Batch-Id" in item.headers:
            number, last = item.headers["Nats-Batch-Sequence"], "Nats-Batch-Commit" in item.headers
            batches[item.headers["Nats-Batch-Id"]].append((int(number), last))
    assert len(batches) >= 2 * ROUNDS
    for members in batches.values():
        count = len(members)
        assert [(number, number == count) for number in range(1, count + 1)] == members
    kept = {item.subject: item.sequence for item in stored}
    acked = {key: fate for key, fate in log.fates.items() if isinstance(fate, Head)}
    assert acked
    assert {key: head.sequence for key, head in acked.items()} == {
        key: kept[event(key)] for key in acked
    }


async def _beyond(group: GroupCommit, batches: int) -> bool:
    return group.batches > batches

"""The contract of the event store: one suite over the memory and the JetStream store."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import nats
import pytest
from nats.aio.client import Client as Nats
from nats.js.api import StreamConfig, SubjectTransform
from typing_extensions import override

from events.catalog import Event, NodeCompleted
from events.commands import CancelRun
from events.evolve import fold
from events.express import Express
from events.jetstream import JetStreamEventStore, StoredCommit
from events.keys import JetStreamKeyRing
from events.memory import MemoryEventStore
from events.run import decide
from events.state import RunState
from events.store import EMPTY, Append, EventStore, Head
from events.streams import EVENTS, StreamLimits, ensure
from events.subjects import PARTS, RunKey, event, live, part
from schemas.errors import (
    AlreadyExists,
    ClawdbotError,
    DataLoss,
    NotFound,
    StoreUnavailable,
    VersionConflict,
)
from schemas.ids import new_id
from schemas.messages import Timings
from tests.support.nats import NatsServer
from tests.support.runs import answer, given, node, plan, start
from tests.support.wait import until


CHAIN = plan(node("a"), node("b", "a"))
LIMITS = StreamLimits(events_bytes_max=2**28, blobs_bytes_max=2**28)


@pytest.fixture(params=["memory", pytest.param("jetstream", marks=pytest.mark.nats)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[EventStore]:
    """Both implementations."""
    if request.param == "memory":
        yield MemoryEventStore()
        return
    connection = await nats.connect(request.getfixturevalue("nats_server").url)
    yield await jetstream_store(connection)
    await connection.close()


async def jetstream_store(connection: Nats) -> JetStreamEventStore:
    """Return a store over a connection, its streams made."""
    await ensure(connection, LIMITS)
    return JetStreamEventStore(connection, JetStreamKeyRing(connection.jetstream(), bytes(32)))


def first(key: RunKey, commit_id: str = "") -> Append:
    """Return the first commit of a run."""
    state, events = given(start(CHAIN))
    return Append(key, commit_id or new_id(), events, EMPTY, state)


def following(before: Append, head: Head, at: float = 1.0) -> Append:
    """Return the commit that records the answer of node `a`."""
    events = decide(before.state, answer("a", at=at))
    state = fold(events, before.state)
    assert state is not None
    return Append(before.key, new_id(), events, head, state)


@pytest.fixture
def key() -> RunKey:
    """A run of its own for each test."""
    return RunKey("default", new_id())


async def test_head_is_where_the_log_ends(store: EventStore) -> None:
    """It equals what `append` returned; it is empty before, and an error once retired."""
    key = RunKey("default", new_id())
    assert EMPTY == await store.head(key)
    head = await store.append(first(key))
    assert head == await store.head(key)
    await store.retire(key, head, 5.0)
    with pytest.raises(NotFound, match="retired"):
        await store.head(key)


async def test_unknown_run_is_empty(store: EventStore, key: RunKey) -> None:
    """A run nobody wrote has no commits and the empty head."""
    history = await store.load(key)
    assert ((), (), EMPTY, None) == (
        history.commits,
        history.sequences,
        history.head,
        history.state(),
    )


async def test_what_is_appended_is_loaded(store: EventStore, key: RunKey) -> None:
    """Commits come back in order, equal, with the head that `append` gave."""
    one = first(key)
    head_1 = await store.append(one)
    two = following(one, head_1)
    head_2 = await store.append(two)
    history = await store.load(key)
    assert [1, 2] == [commit.originator_version for commit in history.commits]
    assert [one.commit_id, two.commit_id] == [commit.commit_id for commit in history.commits]
    assert [*one.events, *two.events] == history.events()
    assert (head_1.sequence, head_2.sequence) == history.sequences
    assert head_2 == history.head
    assert two.state == history.state()


async def test_heads_rise(store: EventStore, key: RunKey) -> None:
    """Versions count from 1, sequences rise, digests change."""
    one = first(key)
    head_1 = await store.append(one)
    head_2 = await store.append(following(one, head_1))
    assert (1, 2) == (head_1.version, head_2.version)
    assert 0 < head_1.sequence < head_2.sequence
    assert head_1.digest != head_2.digest


async def test_runs_and_tenants_are_apart(store: EventStore) -> None:
    """The same run id under two tenants is two runs."""
    run_id = new_id()
    await store.append(first(RunKey("acme", run_id)))
    assert EMPTY == (await store.load(RunKey("other", run_id))).head
    await store.append(first(RunKey("other", run_id)))
    assert 1 == (await store.load(RunKey("acme", run_id))).head.version


@pytest.mark.parametrize("stale", ["empty", "first"])
async def test_stale_head_conflicts(store: EventStore, key: RunKey, stale: str) -> None:
    """A decision on an old state is refused and leaves no trace."""
    one = first(key)
    head_1 = await store.append(one)
    head_2 = await store.append(following(one, head_1))
    late = following(one, EMPTY if stale == "empty" else head_1, at=2.0)
    with pytest.raises(VersionConflict):
        await store.append(late)
    assert head_2 == (await store.load(key)).head


async def test_head_of_the_future_conflicts(store: EventStore, key: RunKey) -> None:
    """So is a decision on a commit that never was."""
    ahead = Head(sequence=10**9, version=1, digest="f" * 64)
    with pytest.raises(VersionConflict):
        await store.append(replace(first(key), head=ahead))
    assert EMPTY == (await store.load(key)).head


async def test_same_commit_twice_is_once(store: EventStore, key: RunKey) -> None:
    """The same commit id on the same head is one commit, and both get its head."""
    one = first(key)
    assert await store.append(one) == await store.append(one)
    assert 1 == len((await store.load(key)).commits)


async def test_log_goes_on_after_a_repeated_append(store: EventStore, key: RunKey) -> None:
    """The head of a repeated append is the stored commit's: the chain stays sound."""
    one = first(key)
    await store.append(one)
    head = await store.append(one)
    await store.append(following(one, head))
    assert 2 == (await store.load(key)).head.version


async def test_one_of_many_wins(store: EventStore, key: RunKey) -> None:
    """Of concurrent appends on one head exactly one is stored."""
    one = first(key)
    head = await store.append(one)
    rivals = [following(one, head, at=float(index)) for index in range(1, 17)]
    outcomes: list[Head | ClawdbotError] = []

    async def attempt(append: Append) -> None:
        try:
            outcomes.append(await store.append(append))
        except VersionConflict as error:
            outcomes.append(error)

    async with asyncio.TaskGroup() as group:
        for rival in rivals:
            group.create_task(attempt(rival))
    winners = [outcome for outcome in outcomes if isinstance(outcome, Head)]
    assert (1, 16) == (len(winners), len(outcomes))
    assert winners[0] == (await store.load(key)).head


async def test_many_runs_at_once(store: EventStore) -> None:
    """Runs do not disturb each other."""
    keys = [RunKey("default", new_id()) for _ in range(64)]
    async with asyncio.TaskGroup() as group:
        for each in keys:
            group.create_task(store.append(first(each)))
    for each in keys:
        assert 1 == (await store.load(each)).head.version


@pytest.mark.parametrize("size", [64 * 1024, 512 * 1024, 2 * 1024 * 1024])
async def test_big_commits(store: EventStore, key: RunKey, size: int) -> None:
    """A commit of any allowed size comes back whole."""
    one = first(key)
    head = await store.append(one)
    noise = "".join(chr(33 + (index * index) % 90) for index in range(size))
    big = NodeCompleted(
        at=1.0,
        node_id="a",
        attempt=1,
        outputs={"text": noise},
        model="echo",
        worker="text-1",
        timings=Timings(),
    )
    state = fold([big], one.state)
    assert state is not None
    await store.append(Append(key, new_id(), [big], head, state))
    assert big == (await store.load(key)).events()[-1]


async def test_long_logs(store: EventStore, key: RunKey) -> None:
    """A log of more commits than one read brings comes back whole."""
    one = first(key)
    head = await store.append(one)
    for index in range(300):
        filler: list[Event] = list(one.events[-1:])
        head = await store.append(Append(key, f"c{index}", filler, head, one.state))
    history = await store.load(key)
    assert 301 == len(history.commits)
    assert head == history.head


async def test_the_rest_after_a_head(store: EventStore, key: RunKey) -> None:
    """Loading after a head gives only what follows; after the last one, nothing."""
    one = first(key)
    head_1 = await store.append(one)
    two = following(one, head_1)
    head_2 = await store.append(two)
    rest = await store.load(key, head_1)
    assert [two.commit_id] == [commit.commit_id for commit in rest.commits]
    assert head_2 == rest.head
    assert ((), head_2) == ((await store.load(key, head_2)).commits, head_2)


async def test_unknown_head_is_data_loss(store: EventStore, key: RunKey) -> None:
    """A log that lacks a commit we know of is refused."""
    head = await store.append(first(key))
    with pytest.raises(DataLoss):
        await store.load(key, replace(head, digest="0" * 64))


class LateReplica(JetStreamEventStore):
    """Reads are answered by a copy that has nothing of the run yet."""

    @override
    async def stored(self, key: RunKey, after: Head = EMPTY) -> list[StoredCommit]:
        """Return nothing."""
        return []


@pytest.mark.nats
async def test_a_late_replica_is_no_data_loss(nc: Nats, key: RunKey) -> None:
    """What one copy does not have yet, and the leader has, may be read again; else it is lost."""
    head = await (await jetstream_store(nc)).append(first(key))
    late = LateReplica(nc, JetStreamKeyRing(nc.jetstream(), bytes(32)))
    with pytest.raises(StoreUnavailable):
        await late.load(key, head)
    with pytest.raises(DataLoss):
        await late.load(key, replace(head, version=2))


async def test_retired_run_keeps_its_id(store: EventStore, key: RunKey) -> None:
    """After retirement reading says so, writing is refused, and again is the same as once."""
    one = first(key)
    head = await store.append(one)
    events = decide(one.state, CancelRun("", 1.0))
    state: RunState | None = fold(events, one.state)
    assert state is not None
    head = await store.append(Append(key, new_id(), events, head, state))
    await store.retire(key, head, at=5.0)
    await store.retire(key, head, at=6.0)
    with pytest.raises(NotFound, match="retired"):
        await store.load(key)
    with pytest.raises(AlreadyExists):
        await store.append(first(key))


# ---------------------------------------------------------------- JetStream alone


@pytest.mark.nats
async def test_parts_are_the_servers(nc: Nats) -> None:
    """Our `part` puts every run where the server's `partition(64, ...)` does."""
    js = nc.jetstream()
    await js.add_stream(
        StreamConfig(
            name="PARTS",
            subjects=["ids.*"],
            subject_transform=SubjectTransform(
                src="ids.*", dest="parts.{{partition(64,1)}}.{{wildcard(1)}}"
            ),
        )
    )
    ids = [*[new_id() for _ in range(200)], "a", "A_b-9", "x" * 64]
    for run_id in ids:
        await js.publish(f"ids.{run_id}", b"")
    for sequence, run_id in enumerate(ids, start=1):
        stored = await js.get_msg("PARTS", seq=sequence)
        assert f"parts.{part(run_id)}.{run_id}" == stored.subject
    assert 50 < len({part(run_id) for run_id in ids}) <= PARTS


@pytest.mark.nats
async def test_commits_are_republished(nc: Nats, key: RunKey) -> None:
    """A waiter on `live` sees each commit with its sequence."""
    store = await jetstream_store(nc)
    waiter = await nc.subscribe(live(key))
    await nc.flush()
    head = await store.append(first(key))
    seen = await waiter.next_msg(timeout=5)
    assert str(head.sequence) == (seen.headers or {})["Nats-Sequence"]
    assert event(key) == (seen.headers or {})["Nats-Subject"]


async def _alter(nc: Nats, key: RunKey, head: Head) -> None:
    found = await nc.jetstream().get_msg(EVENTS, seq=head.sequence)
    headers = dict(found.headers or {})
    await nc.jetstream().delete_msg(EVENTS, head.sequence)
    headers.pop("Nats-Expected-Last-Subject-Sequence", None)
    body = bytes([*(found.data or b"")[:-1], (found.data or b"\0")[-1] ^ 1])
    await nc.jetstream().publish(event(key), body, headers=headers)


async def _remove(nc: Nats, key: RunKey, head: Head) -> None:
    await nc.jetstream().delete_msg(EVENTS, head.sequence)


@pytest.mark.nats
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("harm", [_alter, _remove])
async def test_harmed_logs_are_refused(
    nc: Nats, key: RunKey, which: int, harm: Callable[[Nats, RunKey, Head], Awaitable[None]]
) -> None:
    """A commit altered or removed behind our back is DataLoss, not a shorter history."""
    store = await jetstream_store(nc)
    one = first(key)
    heads = [await store.append(one)]
    heads.append(await store.append(following(one, heads[0])))
    heads.append(await store.append(replace(following(one, heads[1]), commit_id=new_id())))
    await harm(nc, key, heads[which])
    if harm is _remove and which == len(heads) - 1:
        assert heads[1] == (await store.load(key)).head  # the tail: high-water marks find that
        return
    with pytest.raises(DataLoss):
        await store.load(key)


@pytest.mark.nats
async def test_log_survives_a_kill(nc: Nats, nats_server: NatsServer, key: RunKey) -> None:
    """What `append` returned for is there after SIGKILL of the server."""
    store = await jetstream_store(nc)
    head = await store.append(first(key))
    nats_server.kill()
    nats_server.start()
    await until(lambda: answers(store, key), what="the store after the restart")
    assert head == (await store.load(key)).head


async def answers(store: EventStore, key: RunKey) -> bool:
    """Return whether the store can be read."""
    try:
        await store.load(key)
    except StoreUnavailable:
        return False
    return True


@pytest.mark.nats
async def test_frozen_server_is_unavailable_then_exact(
    nc: Nats, nats_server: NatsServer, key: RunKey
) -> None:
    """An append into silence is StoreUnavailable; tried again later it is one commit."""
    store = await jetstream_store(nc)
    express = await Express.of(nc)
    express.timeout_s = 0.3  # the silence need not last
    one = first(key)
    await store.append(first(RunKey("default", new_id())))  # the data key is known from here on
    nats_server.pause()
    try:
        with pytest.raises(StoreUnavailable):
            await store.append(one)
    finally:
        nats_server.resume()
    express.timeout_s = 5.0
    await until(lambda: answers(store, key), what="the store after the silence")
    head = await store.append(one)
    history = await store.load(key)
    assert (1, head) == (len(history.commits), history.head)
    await store.append(following(one, head))
    assert 2 == (await store.load(key)).head.version


@pytest.mark.nats
async def test_append_over_a_restart(nc: Nats, nats_server: NatsServer, key: RunKey) -> None:
    """An append whose server dies under it ends in one commit or in an honest refusal."""
    store = await jetstream_store(nc)
    one = first(key)
    await store.append(first(RunKey("default", new_id())))
    express = await Express.of(nc)
    nats_server.pause()
    async with asyncio.TaskGroup() as group:
        pending = group.create_task(append_until_stored(store, one))
        await until(lambda: _true(express.unanswered == 1), what="the commit on its way")
        nats_server.kill()
        nats_server.start()
    head = pending.result()
    history = await store.load(key)
    assert (1, head) == (len(history.commits), history.head)


async def _true(value: bool) -> bool:
    return value


async def append_until_stored(store: EventStore, append: Append) -> Head:
    """Append as the runtime does: again, as long as the store is away."""
    for _ in range(10):
        try:
            return await store.append(append)
        except StoreUnavailable:
            continue
    raise AssertionError("the store never came back")

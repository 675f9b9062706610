"""Snapshots: one suite over both stores, and `load_state` over sound and damaged ones."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import nats
import pytest

import events.snapshots as module
from events.catalog import Event
from events.commands import CancelRun, CheckClock, Command, RecordResult, StartRun
from events.evolve import fold
from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.memory import MemoryEventStore
from events.run import decide
from events.snapshots import (
    JetStreamSnapshotStore,
    MemorySnapshotStore,
    Snapshot,
    SnapshotStore,
    due,
    load_state,
)
from events.state import RunState
from events.store import EMPTY, Append, EventStore, Head
from events.streams import SNAPSHOTS, StreamLimits, ensure
from events.subjects import RunKey, snapshot
from schemas.errors import DataLoss, NotFound
from schemas.ids import new_id
from schemas.messages import Fault, TaskResult
from schemas.plan import Binding, Plan, PlanNode
from schemas.workflow import RetryPolicy


Damage = Callable[[RunKey], Awaitable[None]]


class Case:
    """A store of each kind and the ways to hurt a snapshot."""

    def __init__(self, log: EventStore, snapshots: SnapshotStore, damage: Damage) -> None:
        self.log = log
        self.snapshots = snapshots
        self.damage = damage
        self.key = RunKey("default", new_id())

    async def write(self, count: int) -> tuple[list[RunState], list[Head]]:
        """Write a run of `count` commits and return the state and head after each."""
        state: RunState | None = None
        head, states, heads = EMPTY, [], []
        for events in list(commits())[:count]:
            state = fold(events, state)
            assert state is not None
            head = await self.log.append(Append(self.key, new_id(), events, head, state))
            states.append(state)
            heads.append(head)
        return states, heads


@pytest.fixture(params=["memory", pytest.param("jetstream", marks=pytest.mark.nats)])
async def case(request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    """Both implementations."""
    if request.param == "memory":
        kept = MemorySnapshotStore()

        async def garble(key: RunKey) -> None:
            kept.stored[snapshot(key)] = kept.stored[snapshot(key)][:-3]

        yield Case(MemoryEventStore(), kept, garble)
        return
    nc = await nats.connect(request.getfixturevalue("nats_server").url)
    await ensure(nc, StreamLimits(events_bytes_max=2**28, blobs_bytes_max=2**28))
    js = nc.jetstream()
    keys = JetStreamKeyRing(js, bytes(32))

    async def damage(key: RunKey) -> None:
        found = await js.get_last_msg(SNAPSHOTS, snapshot(key))
        await js.publish(snapshot(key), (found.data or b"")[:-3], headers=found.headers)

    yield Case(JetStreamEventStore(nc, keys), JetStreamSnapshotStore(nc, keys), damage)
    await nc.close()


def commits() -> list[list[Event]]:
    """Return the commits of a run with a parallel join and a retry."""
    nodes = (node("left"), node("right"), node("join", "left", "right"))
    plan = Plan(nodes=nodes, outputs=("join",))
    commands: list[Command] = [
        StartRun("w", 1, "d", plan, {"text": "hi"}, "i", "c", 1.0),
        result("left", 1, 2.0, retryable=True),
        CheckClock(3.0),
        result("left", 2, 4.0),
        result("right", 1, 5.0),
        result("join", 1, 6.0),
        CancelRun("late", 7.0),
    ]
    state: RunState | None = None
    made: list[list[Event]] = []
    for command in commands:
        events = decide(state, command)
        if events:
            state = fold(events, state)
            made.append(events)
    return made


def node(name: str, *sources: str) -> PlanNode:
    """Return a node fed by the run's text."""
    return PlanNode(
        id=name,
        model="upper",
        modality="text",
        sources=sources,
        bindings={"text": Binding(node="input", output="text")},
        timeout_s=60.0,
        retry=RetryPolicy(),
    )


def result(name: str, attempt: int, at: float, *, retryable: bool = False) -> RecordResult:
    """Return a worker's answer."""
    fault = Fault(code="UNAVAILABLE", message="away", retryable=True) if retryable else None
    outputs = None if retryable else {"text": name, "raw": {"$binary": binary()}}
    return RecordResult(
        TaskResult(
            tenant="default",
            run_id="r",
            node_id=name,
            attempt=attempt,
            outputs=outputs,
            error=fault,
            model="upper",
            worker="w1",
        ),
        at,
    )


def binary() -> dict[str, object]:
    """Return bytes in wire form."""
    return {"media_type": "application/octet-stream", "data": bytes(range(256))}


async def test_every_cut_gives_the_same_state(case: Case) -> None:
    """Wherever a snapshot was taken, snapshot + tail = the whole log folded."""
    states, heads = await case.write(99)
    for state, head in zip(states, heads, strict=True):
        await case.snapshots.put(case.key, Snapshot(state, head))
        loaded = await load_state(case.log, case.snapshots, case.key)
        assert (states[-1], heads[-1], "snapshot") == (loaded.state, loaded.head, loaded.origin)
        assert heads[-1].version - head.version == loaded.folded


async def test_no_snapshot_folds_the_log(case: Case) -> None:
    """Without a snapshot the log is folded; without a log there is no state."""
    empty = await load_state(case.log, case.snapshots, case.key)
    assert (None, EMPTY, "log") == (empty.state, empty.head, empty.origin)
    states, heads = await case.write(3)
    loaded = await load_state(case.log, case.snapshots, case.key)
    assert (states[-1], heads[-1], "log") == (loaded.state, loaded.head, loaded.origin)


async def test_damaged_snapshot_is_ignored(case: Case) -> None:
    """Altered bytes are noticed, and the log is folded from its start."""
    states, heads = await case.write(4)
    await case.snapshots.put(case.key, Snapshot(states[1], heads[1]))
    await case.damage(case.key)
    with pytest.raises(DataLoss):
        await case.snapshots.get(case.key)
    loaded = await load_state(case.log, case.snapshots, case.key)
    assert (states[-1], heads[-1], "bad_snapshot") == (loaded.state, loaded.head, loaded.origin)


@pytest.mark.parametrize("lie", [{"digest": "0" * 64}, {"sequence": 10**9}, {"version": 9}])
async def test_snapshot_of_another_log_is_ignored(case: Case, lie: dict[str, Any]) -> None:
    """A snapshot whose head the log does not hold is ignored: ahead of it, or of another past."""
    states, heads = await case.write(4)
    await case.snapshots.put(case.key, Snapshot(states[0], replace(heads[1], **lie)))
    loaded = await load_state(case.log, case.snapshots, case.key)
    assert (states[-1], heads[-1], "bad_snapshot") == (loaded.state, loaded.head, loaded.origin)


async def test_another_reducer_version_is_ignored(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot written by another version of `evolve` is as good as none."""
    states, heads = await case.write(2)
    monkeypatch.setattr(module, "REDUCER_VERSION", 999)
    await case.snapshots.put(case.key, Snapshot(states[0], heads[0]))
    monkeypatch.undo()
    assert await case.snapshots.get(case.key) is None
    assert (await load_state(case.log, case.snapshots, case.key)).origin == "log"


async def test_delete_and_retired(case: Case) -> None:
    """A deleted snapshot is gone; a retired run stays retired even with a snapshot left behind."""
    states, heads = await case.write(6)
    await case.snapshots.put(case.key, Snapshot(states[-1], heads[-1]))
    await case.log.retire(case.key, heads[-1], 9.0)
    with pytest.raises(NotFound):
        await load_state(case.log, case.snapshots, case.key)
    await case.snapshots.delete(case.key)
    await case.snapshots.delete(case.key)
    assert await case.snapshots.get(case.key) is None


def test_due_counts_commits() -> None:
    """A snapshot is due after so many commits, never for an empty log."""
    assert [False, False, True] == [due(Head(9, n, "d"), 5, 10) for n in (0, 14, 15)]
    assert not due(EMPTY, 0, 1)

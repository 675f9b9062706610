"""Workflows whose effects may lead their log."""

import asyncio
from collections.abc import Iterator

import pytest
from typing_extensions import override

from events.index import RunIndex
from events.memory import MemoryEventStore
from events.snapshots import MemorySnapshotStore
from events.store import Append, Head
from events.subjects import RunKey
from schemas.errors import StoreFull, VersionConflict
from schemas.plan import Plan
from services.orchestrator.behind import DECISIONS_MAX
from services.orchestrator.runs import Runs
from tests.support.runs import answer, brief, node, plan, start


KEY = RunKey("default", "r")
CHAIN = plan(node("a"), node("b", "a"), node("c", "b"))


class SlowStore(MemoryEventStore):
    """A log that stores when it is let, and may be full for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.full = 0
        self.asked = asyncio.Event()

    @override
    async def append(self, append: Append) -> Head:
        self.asked.set()
        await self.gate.wait()
        if self.full:
            self.full -= 1
            raise StoreFull("no room")
        return await super().append(append)


@pytest.fixture
def store() -> SlowStore:
    """Return a log that stores nothing yet."""
    return SlowStore()


@pytest.fixture
def desk(store: SlowStore) -> Iterator[Runs]:
    """Return a desk over that log."""
    index = RunIndex(":memory:")
    yield Runs(store, MemorySnapshotStore(), index)
    index.close()


def ordered(of: Plan) -> Plan:
    """Return a plan whose effects lead its log."""
    return of.model_copy(update={"mode": "ordered"})


async def test_a_decision_does_not_wait_for_the_log(store: SlowStore, desk: Runs) -> None:
    """What is decided while a commit is under way is stored together, in order."""
    first = await desk.obey(KEY, start(ordered(CHAIN)), fresh=True)
    await store.asked.wait()
    second = await desk.obey(KEY, answer("a", at=1.0))
    third = await desk.obey(KEY, answer("b", at=2.0))
    assert ["NodeCompleted b 1", "NodeScheduled c 1"] == brief(third.events)
    for decision in (first, second, third):
        assert decision.stored is not None
        assert not decision.stored.done()
    store.gate.set()
    await desk.flush()
    assert all(item.stored and item.stored.done() for item in (first, second, third))
    history = await store.load(KEY)
    assert [2, 4] == [len(commit.events) for commit in history.commits]
    state = await desk.state(KEY)
    assert state == history.state() == third.state


async def test_what_looks_stale_waits_too(store: SlowStore, desk: Runs) -> None:
    """A message that comes again is done when what its first delivery led to is stored."""
    first = await desk.obey(KEY, start(ordered(CHAIN)), fresh=True)
    again = asyncio.ensure_future(desk.obey(KEY, start(ordered(CHAIN))))
    await store.asked.wait()
    assert not again.done()  # it looks into the log, once that has what was decided
    store.gate.set()
    assert [] == (await again).events
    assert first.stored is not None
    assert first.stored.done()


async def test_strong_decisions_wait(store: SlowStore, desk: Runs) -> None:
    """Nothing comes back before it is stored."""
    waiting = asyncio.ensure_future(desk.obey(KEY, start(CHAIN), fresh=True))
    await store.asked.wait()
    assert not waiting.done()
    store.gate.set()
    assert (await waiting).stored is None


async def test_a_full_log_holds_what_is_behind(store: SlowStore, desk: Runs) -> None:
    """It is stored when there is room."""
    store.full = 1
    store.gate.set()
    decision = await desk.obey(KEY, start(ordered(CHAIN)), fresh=True)
    assert decision.stored is not None
    await decision.stored
    assert 1 == len((await store.load(KEY)).commits)


async def test_whoever_was_first_wins(store: SlowStore, desk: Runs) -> None:
    """What was decided on a log that went on elsewhere is given up and decided anew."""
    store.gate.set()
    await desk.obey(KEY, start(ordered(CHAIN)), fresh=True)
    await desk.flush()
    index = RunIndex(":memory:")
    other = Runs(store, MemorySnapshotStore(), index)
    await other.obey(KEY, answer("a", at=1.0))
    await other.flush()
    late = await desk.obey(KEY, answer("a", at=1.5))
    assert late.stored is not None
    with pytest.raises(VersionConflict):
        await late.stored
    again = await desk.obey(KEY, answer("a", at=1.5))
    assert [] == again.events
    assert 2 == (await store.head(KEY)).version
    index.close()


async def test_many_decisions_make_several_commits(store: SlowStore, desk: Runs) -> None:
    """A commit has its limit."""
    names = [f"n{number}" for number in range(DECISIONS_MAX + 3)]
    wide = ordered(plan(*(node(name) for name in names)))
    await desk.obey(KEY, start(wide), fresh=True)
    await store.asked.wait()
    for name in names:
        await desk.obey(KEY, answer(name, at=1.0))
    store.gate.set()
    await desk.flush()
    assert 3 == (await store.head(KEY)).version

"""Several orchestrators at one run: what each remembers is never taken for the truth."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from events.commands import CheckClock
from events.index import RunIndex
from events.memory import MemoryEventStore
from events.snapshots import MemorySnapshotStore
from events.store import Head
from events.subjects import RunKey
from schemas.errors import DataLoss
from services.orchestrator.runs import Runs
from tests.support.runs import answer, brief, node, plan, start


KEY = RunKey("default", "r")


class Witness:
    """Writes down what it is told, and keeps the gate."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.seen: list[tuple[RunKey, int]] = []
        self.alarms: list[tuple[RunKey, str]] = []

    async def sound(self) -> None:
        """Return when the gate is open."""
        await self.gate.wait()

    def saw(self, key: RunKey, head: Head) -> None:
        """Take note of a commit."""
        self.seen.append((key, head.version))

    def damaged(self, key: RunKey, reason: str) -> None:
        """Take note of an alarm."""
        self.alarms.append((key, reason))


@pytest.fixture
def index(tmp_path: Path) -> Iterator[RunIndex]:
    """An index that outlives the log."""
    index = RunIndex(tmp_path / "index.sqlite")
    yield index
    index.close()


@pytest.fixture
def desks(tmp_path: Path) -> Iterator[tuple[Runs, Runs]]:
    """Two desks over one log; neither hears of the other's commits."""
    store, snapshots = MemoryEventStore(), MemorySnapshotStore()
    indexes = [RunIndex(tmp_path / f"{number}.sqlite") for number in range(2)]
    yield Runs(store, snapshots, indexes[0]), Runs(store, snapshots, indexes[1])
    for index in indexes:
        index.close()


async def test_a_result_that_looks_stale_is_decided_on_the_log(desks: tuple[Runs, Runs]) -> None:
    """The first desk never saw `b` begin; it still records what `b` brought."""
    here, there = desks
    await here.obey(KEY, start(plan(node("a"), node("b", "a"))), fresh=True)
    await there.obey(KEY, answer("a", at=1.0))
    decision = await here.obey(KEY, answer("b", at=2.0))
    assert brief(decision.events) == ["NodeCompleted b 1", "RunCompleted"]


async def test_the_state_is_that_of_the_log(desks: tuple[Runs, Runs]) -> None:
    """The reconciler republishes what is open now, not what was open when it last looked."""
    here, there = desks
    await here.obey(KEY, start(plan(node("a"), node("b", "a"))), fresh=True)
    await there.obey(KEY, answer("a", at=1.0))
    state = await here.state(KEY)
    assert state is not None
    assert list(state.open_nodes()) == ["b"]


async def test_a_conflict_is_decided_again(desks: tuple[Runs, Runs]) -> None:
    """Both desks take the same result; it is recorded once."""
    here, there = desks
    await here.obey(KEY, start(plan(node("a"), node("b", "a"))), fresh=True)
    await there.state(KEY)
    first = await here.obey(KEY, answer("a", at=1.0))
    second = await there.obey(KEY, answer("a", at=1.0))
    assert brief(first.events) == ["NodeCompleted a 1", "NodeScheduled b 1"]
    assert second.events == []


async def test_a_second_submission_is_the_same_run(desks: tuple[Runs, Runs]) -> None:
    """A submission that is delivered to another orchestrator again begins nothing."""
    here, there = desks
    await here.obey(KEY, start(plan(node("a"))), fresh=True)
    again = await there.obey(KEY, start(plan(node("a"))), fresh=True)
    assert again.events == []
    assert again.state is not None


async def test_a_run_that_lost_its_end_is_refused(index: RunIndex) -> None:
    """The index saw two commits; where the log has one, nothing is decided, by whatever way."""
    witness, whole, cut = Witness(), MemoryEventStore(), MemoryEventStore()
    begin = start(plan(node("a"), node("b", "a")))
    for store in (whole, cut):
        with contextlib.closing(RunIndex(":memory:")) as elsewhere:
            await Runs(store, MemorySnapshotStore(), elsewhere).obey(KEY, begin)
    seen = Runs(whole, MemorySnapshotStore(), index, witness)
    await seen.obey(KEY, answer("a", at=1.0))
    assert [(KEY, 2)] == witness.seen
    after = Runs(cut, MemorySnapshotStore(), index, witness)
    for command in (answer("a", at=2.0), CheckClock(99.0), begin):
        with pytest.raises(DataLoss, match="ends after commit 1; 2 were seen"):
            await after.obey(KEY, command, fresh=command is begin)
    with pytest.raises(DataLoss):
        await after.state(KEY)
    assert {KEY} == {key for key, _ in witness.alarms}
    assert 1 == (await cut.head(KEY)).version


async def test_a_run_that_is_lost_whole_does_not_begin_again(index: RunIndex) -> None:
    """Its id was seen: a second submission must not look like the first."""
    begin = start(plan(node("a")))
    await Runs(MemoryEventStore(), MemorySnapshotStore(), index).obey(KEY, begin, fresh=True)
    empty = MemoryEventStore()
    with pytest.raises(DataLoss, match="ends after commit 0; 1 were seen"):
        await Runs(empty, MemorySnapshotStore(), index).obey(KEY, begin, fresh=True)
    assert () == (await empty.load(KEY)).commits


async def test_a_desk_remembers_what_it_wrote(index: RunIndex) -> None:
    """Even where the index forgot: a log that is shorter than the desk left it is refused."""
    store = MemoryEventStore()
    desk = Runs(store, MemorySnapshotStore(), index)
    await desk.obey(KEY, start(plan(node("a"), node("b", "a"))), fresh=True)
    await desk.obey(KEY, answer("a", at=1.0))
    index.reset()
    desk.forget(KEY)
    next(iter(store._logs.values())).pop()
    with pytest.raises(DataLoss):
        await desk.obey(KEY, answer("b", at=2.0))


async def test_nothing_is_decided_while_the_log_is_in_doubt(index: RunIndex) -> None:
    """The desk waits at the gate, and goes on when it opens."""
    witness, store = Witness(), MemoryEventStore()
    witness.gate.clear()
    desk = Runs(store, MemorySnapshotStore(), index, witness)
    async with asyncio.TaskGroup() as group:
        work = group.create_task(desk.obey(KEY, start(plan(node("a"))), fresh=True))
        look = group.create_task(desk.state(RunKey("default", "other")))
        await asyncio.sleep(0)
        assert () == (await store.load(KEY)).commits
        assert [False, False] == [work.done(), look.done()]
        witness.gate.set()
    assert ["RunStarted", "NodeScheduled a 1"] == brief(work.result().events)

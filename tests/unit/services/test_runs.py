"""Several orchestrators at one run: what each remembers is never taken for the truth."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from events.index import RunIndex
from events.memory import MemoryEventStore
from events.snapshots import MemorySnapshotStore
from events.subjects import RunKey
from services.orchestrator.runs import Runs
from tests.support.runs import answer, brief, node, plan, start


KEY = RunKey("default", "r")


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

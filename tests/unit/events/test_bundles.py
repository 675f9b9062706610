"""Importing runs: once, whole, and never over another one."""

import pytest
from typing_extensions import override

from events.blobs import MemoryBlobStore
from events.bundles import import_recording
from events.codec import Commit
from events.memory import MemoryEventStore
from events.recording import Recording
from events.store import Append, Head
from events.subjects import RunKey
from schemas.errors import AlreadyExists, FailedPrecondition, InvalidArgument, StoreUnavailable
from tests.conformance.golden.make import histories


KEY = RunKey("default", "r1")


def recording(name: str = "completed_parallel_join", *, until: int | None = None) -> Recording:
    """Return a golden run with a commit for each event."""
    events = histories()[name][:until]
    commits = tuple(
        Commit(
            originator_id="elsewhere.r1",
            originator_version=number,
            commit_id=f"{name}-{number}",
            events=(event,),
        )
        for number, event in enumerate(events, 1)
    )
    places = tuple(range(1, len(commits) + 1))
    return Recording(RunKey("elsewhere", "r1"), commits, places, ("0" * 64,) * len(commits), {})


class Weary(MemoryEventStore):
    """A store that stops answering after some appends."""

    left = 3

    @override
    async def append(self, append: Append) -> Head:
        """Append, while there is strength."""
        if not self.left:
            raise StoreUnavailable("the event log does not answer")
        self.left -= 1
        return await super().append(append)


async def test_an_import_has_the_same_events_under_its_own_chain() -> None:
    """And a second one changes nothing."""
    store, blobs, run = MemoryEventStore(), MemoryBlobStore(), recording()
    assert await import_recording(store, blobs, "default", run)
    there = await store.load(KEY)
    assert run.history().events() == there.events()
    assert [commit.commit_id for commit in run.commits] == [
        commit.commit_id for commit in there.commits
    ]
    assert not await import_recording(store, blobs, "default", run)
    assert there == await store.load(KEY)


async def test_an_import_that_was_cut_short_goes_on() -> None:
    """With the commit it stopped at; what is there already stays."""
    store, blobs, run = Weary(), MemoryBlobStore(), recording()
    with pytest.raises(StoreUnavailable):
        await import_recording(store, blobs, "default", run)
    assert 3 == len((await store.load(KEY)).commits)
    store.left = 100
    assert await import_recording(store, blobs, "default", run)
    assert run.history().events() == (await store.load(KEY)).events()


async def test_another_history_is_never_touched() -> None:
    """Longer, other, or retired."""
    store, blobs = MemoryEventStore(), MemoryBlobStore()
    await import_recording(store, blobs, "default", recording())
    before = await store.load(KEY)
    for name in ("failed", "cancelled"):
        with pytest.raises(AlreadyExists, match="another history"):
            await import_recording(store, blobs, "default", recording(name))
    assert before == await store.load(KEY)
    await store.retire(KEY, before.head, 1.0)
    with pytest.raises(AlreadyExists, match="retired"):
        await import_recording(store, blobs, "default", recording())


async def test_a_run_under_way_and_what_is_no_run_are_refused() -> None:
    """Before anything is written."""
    store, blobs = MemoryEventStore(), MemoryBlobStore()
    with pytest.raises(FailedPrecondition, match="is running"):
        await import_recording(store, blobs, "default", recording(until=3))
    run = recording()
    headless = Recording(run.key, run.commits[1:], run.sequences[1:], run.log_digests[1:], {})
    with pytest.raises(InvalidArgument, match="no run"):
        await import_recording(store, blobs, "default", headless)
    assert () == (await store.load(KEY)).commits

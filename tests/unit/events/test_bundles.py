"""Importing runs: once, whole, and never over another one."""

import hashlib
import io
import random
import zipfile
from typing import Any

import orjson
import pytest
from typing_extensions import override

from events.blobs import MemoryBlobStore
from events.bundles import import_recording
from events.codec import Commit
from events.memory import MemoryEventStore
from events.recording import Recording, pack_recording, unpack_recording
from events.store import Append, Head
from events.subjects import RunKey
from events.tape import Tape, run_view
from schemas.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    StoreUnavailable,
    TerminalError,
)
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


def mutated(packed: bytes, dice: random.Random) -> bytes:
    """Return a bundle with one value changed at random, its hash chain made good again."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        manifest = orjson.loads(archive.read("manifest.json"))
        lines = [orjson.loads(line) for line in archive.read("commits.ndjson").splitlines()]
    places: list[tuple[Any, Any]] = []
    pending: list[Any] = [lines]
    while pending:
        value = pending.pop()
        keys = value.keys() if isinstance(value, dict) else range(len(value))
        for key in keys:
            places.append((value, key))
            if isinstance(value[key], dict | list):
                pending.append(value[key])
    box, key = dice.choice(places)
    box[key] = dice.choice(
        [None, "", "x/y[0]", "a\r\nb", -1, 10**18, 1e308, True, [], {}, [[]] * 3, {"$bytes": "!"}]
    )
    digest, data = "", b""
    for line in lines:
        if isinstance(line, dict):
            line["previous"] = digest
        encoded = orjson.dumps(line, option=orjson.OPT_SORT_KEYS)
        digest = hashlib.sha256(encoded).hexdigest()
        data += encoded + b"\n"
    manifest["digest"] = digest
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("manifest.json", orjson.dumps(manifest))
        archive.writestr("commits.ndjson", data)
    return file.getvalue()


@pytest.mark.parametrize("seed", range(20))
async def test_a_forged_bundle_is_taken_or_refused_and_never_more(seed: int) -> None:
    """Whatever its events say: an import, or one of our errors, and the run can be shown."""
    dice = random.Random(seed)
    names = sorted(histories())
    for _ in range(8):
        name = dice.choice(names)
        bundle = mutated(pack_recording(recording(name), 1.0), dice)
        store = MemoryEventStore()
        try:
            found = unpack_recording(bundle)
            await import_recording(store, MemoryBlobStore(), "default", found)
        except TerminalError:
            assert () == (await store.load(RunKey("default", "r1"))).commits
            continue
        run_view(KEY, Tape.of(await store.load(KEY)).records)

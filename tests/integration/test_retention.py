"""Retention, bundles and tombstones against a real server."""

import io
import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import nats
import orjson
import pytest

from events.archive import DirectoryArchive, MemoryArchive
from events.blobs import JetStreamBlobStore, delete_unless_renewed
from events.catalog import Event, RunCancelled, RunStarted
from events.evolve import fold
from events.export import export_run, restore, unpack
from events.jetstream import JetStreamEventStore, read_subject
from events.keys import JetStreamKeyRing
from events.retention import (
    DAY_S,
    RetentionPolicy,
    Stores,
    SweepLimits,
    retire,
    sweep,
    sweep_blobs,
)
from events.snapshots import JetStreamSnapshotStore, Snapshot
from events.state import RunState
from events.store import EMPTY, RETIRED, Append, Head
from events.streams import BLOBS, EVENTS, KEYS, StreamLimits, ensure
from events.subjects import RunKey, blob_metas, event
from schemas.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    StoreFull,
)
from schemas.ids import new_id
from schemas.messages import Header
from schemas.plan import Plan
from schemas.values import to_wire


pytestmark = pytest.mark.nats


class Server(Protocol):
    """What these tests need of the fixture `nats_server`."""

    @property
    def url(self) -> str:
        """Address of a server with JetStream."""


POLICY = RetentionPolicy()
LIMITS = SweepLimits()


@pytest.fixture
async def stores(nats_server: Server) -> AsyncIterator[Stores]:
    """Every store over one connection, with an empty log."""
    nc = await nats.connect(nats_server.url)
    await ensure(nc, StreamLimits(events_bytes_max=2**28, blobs_bytes_max=2**28))
    await nc.jetstream().purge_stream(EVENTS)
    keys = JetStreamKeyRing(nc.jetstream(), bytes(32))
    yield Stores(
        nc,
        JetStreamEventStore(nc, keys),
        JetStreamSnapshotStore(nc, keys),
        JetStreamBlobStore(nc, keys),
        keys,
        MemoryArchive(),
    )
    await nc.close()


async def write(
    stores: Stores, *, finished: bool = True, blob: bytes = b"", tenant: str = "default"
) -> tuple[RunKey, RunState, Head]:
    """Write a run of one or two commits, perhaps with a blob among its inputs."""
    inputs: dict[str, object] = {"text": "hi"}
    if blob:
        inputs["audio"] = to_wire(await stores.blobs.put(tenant, blob, "audio/wav"))
    started = RunStarted(
        at=1.0,
        workflow="w",
        version=1,
        digest="d",
        plan=Plan(nodes=(), outputs=()),
        inputs=inputs,
        inputs_digest="i",
        correlation_id="c",
    )
    decisions: list[list[Event]] = [[started]]
    if finished:
        decisions.append([RunCancelled(at=2.0, reason="enough")])
    key, state, head = RunKey(tenant, new_id()), None, EMPTY
    for events in decisions:
        state = fold(events, state)
        assert state is not None
        head = await stores.log.append(Append(key, new_id(), events, head, state))
    assert state is not None
    return key, state, head


async def later(stores: Stores, days: float) -> float:
    """Return the time so many days after the log's last message."""
    info = await stores.nc.jetstream().stream_info(EVENTS)
    last = await stores.nc.jetstream().get_msg(EVENTS, info.state.last_seq)
    assert last.time is not None
    return last.time.timestamp() + days * DAY_S


async def messages(stores: Stores, key: RunKey) -> int:
    """Return how many messages the run's subject holds."""
    return len(await stores.log.stored(key))


async def test_expired_runs_are_archived_and_retired(stores: Stores) -> None:
    """Past its time a finished run is a bundle and one tombstone; younger and open ones stay."""
    key, state, head = await write(stores)
    still_open, _, _ = await write(stores, finished=False)
    await stores.snapshots.put(key, Snapshot(state, head))
    early = await sweep(stores, POLICY, LIMITS, now=await later(stores, 29))
    assert ([], 2) == (early.retired, await messages(stores, key))
    done = await sweep(stores, POLICY, LIMITS, now=await later(stores, 31))
    assert ([key], {}, 1) == (done.retired, done.failed, done.next_sequence)
    assert (1, 1) == (await messages(stores, key), await messages(stores, still_open))
    assert await stores.snapshots.get(key) is None
    bundle = unpack(await stores.archive.get(key) or b"")
    assert (key, head.digest, 2) == (bundle.key, bundle.manifest.digest, len(bundle.commits))
    again = await sweep(stores, POLICY, LIMITS, now=await later(stores, 99))
    assert [] == again.retired


async def test_tombstone_blocks_the_id(stores: Stores) -> None:
    """A retired run is told apart from one that never was, and its id cannot be used again."""
    key, state, head = await write(stores)
    await retire(stores, key, 86_400.0)
    with pytest.raises(NotFound, match="was retired on 1970-01-02T00:00:00"):
        await stores.log.load(key)
    for base in (EMPTY, head):
        with pytest.raises(AlreadyExists, match="retired"):
            await stores.log.append(Append(key, new_id(), [RunCancelled(at=3.0)], base, state))
    await retire(stores, key, 86_401.0)
    assert 86_400.0 == (await stores.log.stored(key))[0].retired_at


async def test_interrupted_retirement_is_finished(stores: Stores) -> None:
    """A crash between tombstone and purge leaves commits; the next sweep removes them."""
    key, _, head = await write(stores)
    headers = {
        Header.EXPECTED: str(head.sequence),
        Header.VERSION: "3",
        Header.PREVIOUS: head.digest,
        Header.STATUS: "retired",
        RETIRED: "5.000",
    }
    await stores.nc.jetstream().publish(event(key), b"", headers=headers)
    with pytest.raises(NotFound):
        await stores.log.load(key)
    done = await sweep(stores, POLICY, LIMITS, now=await later(stores, 31))
    assert ([key], 1) == (done.retired, await messages(stores, key))


async def test_full_log_can_shrink(stores: Stores) -> None:
    """With no room for a tombstone, the log is cut first; a crash in between is survived."""
    js = stores.nc.jetstream()
    key, _, _ = await write(stores)
    other, _, _ = await write(stores)
    config = (await js.stream_info(EVENTS)).config
    used = (await js.stream_info(EVENTS)).state.bytes
    await js.update_stream(replace(config, max_bytes=used))
    try:
        with pytest.raises(StoreFull):
            await write(stores)
        await retire(stores, key, 9.0)
        bundle = await export_run(stores.log, stores.blobs, stores.keys, other, at=9.0)
        await stores.archive.keep(other, bundle)
        await js.purge_stream(EVENTS, subject=event(other), keep=1)
        with pytest.raises(DataLoss):
            await stores.log.load(other)
        await retire(stores, other, 9.0)
    finally:
        await js.update_stream(config)
    for run in (key, other):
        assert await messages(stores, run) == 1
        with pytest.raises(NotFound):
            await stores.log.load(run)


async def test_damage_and_open_runs_stay(stores: Stores) -> None:
    """A run that is altered or not finished is never archived nor purged."""
    still_open, _, _ = await write(stores, finished=False)
    with pytest.raises(FailedPrecondition):
        await retire(stores, still_open, 9.0)
    key, _, _ = await write(stores)
    await stores.nc.jetstream().purge_stream(EVENTS, subject=event(key), keep=1)
    done = await sweep(stores, POLICY, LIMITS, now=await later(stores, 31))
    assert ([], {key}) == (done.retired, set(done.failed))
    assert (1, 1) == (await messages(stores, key), await messages(stores, still_open))


async def test_sweeps_are_bounded_and_resume(stores: Stores) -> None:
    """A sweep stops at its limits and the next one goes on from there."""
    keys = [(await write(stores))[0] for _ in range(5)]
    now = await later(stores, 31)
    first = await sweep(stores, POLICY, SweepLimits(runs_max=2), now=now)
    assert keys[:2] == first.retired
    second = await sweep(
        stores, POLICY, SweepLimits(messages_max=2), now=now, start=first.next_sequence
    )
    assert (2, keys[2:3]) == (second.scanned, second.retired)
    third = await sweep(stores, POLICY, LIMITS, now=now, start=second.next_sequence)
    assert keys[3:] == third.retired


async def test_bundle_restores_elsewhere(stores: Stores) -> None:
    """A bundle gives back log and blobs where the id is free, and continues after a crash."""
    key, state, head = await write(stores, blob=b"wav" * 1000)
    bundle = unpack(await export_run(stores.log, stores.blobs, stores.keys, key, at=9.0))
    assert 1 == len(bundle.blobs)
    assert b"wavwav" not in next(iter(bundle.blobs.values()))
    last = (await stores.log.stored(key))[-1]
    await stores.nc.jetstream().delete_msg(EVENTS, last.sequence)
    restored = await restore(stores.nc, stores.blobs, stores.keys, bundle)
    assert (head.version, head.digest) == (restored.version, restored.digest)
    assert restored == await restore(stores.nc, stores.blobs, stores.keys, bundle)
    assert (state, restored) == ((h := await stores.log.load(key)).state(), h.head)
    await retire(stores, key, 9.0)
    with pytest.raises(AlreadyExists):
        await restore(stores.nc, stores.blobs, stores.keys, bundle)


async def test_altered_bundles_are_refused(stores: Stores) -> None:
    """A missing, swapped or altered commit breaks the chain; clear text is there on demand."""
    key, _, _ = await write(stores)
    packed = await export_run(stores.log, stores.blobs, stores.keys, key, at=9.0, view=True)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        view = orjson.loads(archive.read("view.json"))
        lines = archive.read("commits.ndjson").splitlines(keepends=True)
        members = {name: archive.read(name) for name in archive.namelist()}
    assert ["RunStarted", "RunCancelled"] == [item["events"][0]["type"] for item in view]
    swapped = lines[0].replace(b'"data":"', b'"data":"AAAA')
    for commits in (lines[:1], lines[1:], lines[::-1], [swapped, lines[1]], [b"{}"], []):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in {**members, "commits.ndjson": b"".join(commits)}.items():
                archive.writestr(name, data)
        with pytest.raises(DataLoss):
            unpack(file.getvalue())
    with pytest.raises(DataLoss):
        unpack(b"not a zip")
    with zipfile.ZipFile(
        io.BytesIO(await export_run(stores.log, stores.blobs, stores.keys, key, at=9.0))
    ) as archive:
        assert "view.json" not in archive.namelist()


async def test_uncited_blobs_go_after_grace(stores: Stores) -> None:
    """Blobs cited by a remaining run stay; others go once nobody wrote them for the grace."""
    key, _, _ = await write(stores, blob=b"cited")
    orphan = await stores.blobs.put("default", b"orphan", "text/plain")
    now = await later(stores, 2)
    assert [] == (await sweep_blobs(stores, POLICY, LIMITS, now=now - 2 * DAY_S)).deleted
    assert orphan.sha256 in {
        name.partition("/")[2]
        for name in (await sweep_blobs(stores, POLICY, LIMITS, now=now)).deleted
    }
    with pytest.raises(NotFound):
        await stores.blobs.get("default", orphan.sha256)
    assert (await stores.log.load(key)).commits
    await retire(stores, key, now)
    done = await sweep_blobs(stores, POLICY, LIMITS, now=now)
    assert (1, 1) == (done.seen, len(done.deleted))
    again = await stores.blobs.put("default", b"orphan", "text/plain")
    assert (b"orphan", "text/plain") == await stores.blobs.get("default", again.sha256)


@pytest.mark.parametrize("how", ["put", "renew"])
async def test_a_blob_that_is_wanted_again_escapes_the_sweep(stores: Stores, how: str) -> None:
    """Between finding an old blob and deleting it, somebody may send or cite it: then it stays."""
    data = new_id().encode()
    ref = await stores.blobs.put("default", data, "text/plain")
    metas = await read_subject(stores.nc, f"OBJ_{BLOBS}", blob_metas(BLOBS))
    found = [item for item in metas if ref.sha256 in item.data.decode()]
    if how == "put":
        await stores.blobs.put("default", data, "text/plain")
    else:
        assert await stores.blobs.renew("default", ref.sha256)
    assert not await delete_unless_renewed(stores.nc, BLOBS, found[0])
    assert (data, "text/plain") == await stores.blobs.get("default", ref.sha256)
    newer = await read_subject(stores.nc, f"OBJ_{BLOBS}", found[0].subject)
    assert await delete_unless_renewed(stores.nc, BLOBS, newer[0])
    assert not await stores.blobs.renew("default", ref.sha256)


async def test_a_run_too_large_for_a_bundle_stays(stores: Stores) -> None:
    """It is counted as failed, with the reason, and nothing of it is touched."""
    key, _, _ = await write(stores, blob=b"wav" * 1000)
    small = replace(LIMITS, bundle_bytes_max=2000)
    done = await sweep(stores, POLICY, small, now=await later(stores, 31))
    assert ([], [key]) == (done.retired, list(done.failed))
    assert "too large" in done.failed[key]
    assert 2 == await messages(stores, key)


async def test_unreadable_commits_protect_their_tenants_blobs(stores: Stores) -> None:
    """Where a commit cannot be read nobody knows what it cites, so nothing is deleted."""
    orphan = await stores.blobs.put("erased", b"orphan", "text/plain")
    key = RunKey("erased", new_id())
    await stores.nc.jetstream().publish(event(key), b"garbage", headers={Header.VERSION: "1"})
    done = await sweep_blobs(stores, POLICY, LIMITS, now=await later(stores, 2))
    assert {"erased"} == done.undecided
    assert (await stores.blobs.get("erased", orphan.sha256))[0] == b"orphan"


async def test_erased_tenant_does_not_stop_a_sweep(stores: Stores) -> None:
    """With a tenant's key destroyed its runs stay, and those of the others go on being retired."""
    tenant = new_id()
    erased, _, _ = await write(stores, tenant=tenant)
    other, _, _ = await write(stores)
    bucket = await stores.nc.jetstream().key_value(KEYS)
    await bucket.delete(tenant)
    keys = JetStreamKeyRing(stores.nc.jetstream(), bytes(32))
    fresh = replace(stores, log=JetStreamEventStore(stores.nc, keys), keys=keys)
    await stores.blobs.put("default", b"another orphan", "text/plain")
    assert {tenant} == (
        await sweep_blobs(fresh, POLICY, LIMITS, now=await later(stores, 2))
    ).undecided
    done = await sweep(fresh, POLICY, LIMITS, now=await later(stores, 31))
    assert ([other], {erased}) == (done.retired, set(done.failed))


async def test_directory_archive(tmp_path: Path) -> None:
    """Bundles are files; ids that are no tokens never become paths."""
    archive = DirectoryArchive(tmp_path)
    key = RunKey("default", new_id())
    assert await archive.get(key) is None
    await archive.keep(key, b"one")
    await archive.keep(key, b"two")
    assert (b"two", [f"{key.run_id}.clawdbot.zip"]) == (
        await archive.get(key),
        [path.name for path in (tmp_path / "default").iterdir()],
    )
    for bad in (RunKey("..", "a"), RunKey("a", "../b"), RunKey("a", "/etc")):
        with pytest.raises(InvalidArgument):
            await archive.keep(bad, b"x")


@pytest.mark.parametrize(
    ("status", "days", "expired"),
    [
        ("completed", 29, False),
        ("completed", 31, True),
        ("failed", 89, False),
        ("failed", 91, True),
        ("rejected", 8, True),
        ("running", 9999, False),
        ("retired", 9999, False),
    ],
)
def test_policy(status: str, days: float, expired: bool) -> None:
    """Each outcome has its own time; what is not finished is kept for ever."""
    assert expired == POLICY.run_expired(status, 0.0, days * DAY_S)

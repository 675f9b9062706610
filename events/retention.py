"""Retention: finished runs past their time are archived and retired; uncited blobs are deleted.

What is left of a retired run is its tombstone (see `EventStore.retire`). The order makes every
crash harmless: bundle kept, tombstone written, log purged, snapshot deleted; the next sweep picks
up whatever was left in between. A blob is deleted when no remaining run cites it, and it has not
been written or touched for the grace period.
"""

import hashlib
from dataclasses import dataclass, field

import orjson
from nats.aio.client import Client as Nats

from events.archive import Archive
from events.blobs import BlobStore, delete_unless_renewed
from events.export import BUNDLE_BYTES_MAX, export_run, unpack
from events.jetstream import (
    READ_BATCH,
    JetStreamEventStore,
    StoredCommit,
    read_subject,
    stored_at,
)
from events.keys import KeyRing
from events.recording import cited
from events.snapshots import SnapshotStore
from events.store import Head
from events.streams import BLOBS, EVENTS
from events.subjects import RunKey, blob_metas, every, run_key
from schemas.errors import ClawdbotError, DataLoss, FailedPrecondition
from schemas.messages import Header


DAY_S = 86_400.0
_BLOB_STREAM = f"OBJ_{BLOBS}"


@dataclass(frozen=True)
class RetentionPolicy:
    """How long things are kept, in seconds after the last commit or write."""

    completed_s: float = 30 * DAY_S
    failed_s: float = 90 * DAY_S
    cancelled_s: float = 30 * DAY_S
    rejected_s: float = 7 * DAY_S
    blob_grace_s: float = DAY_S
    """Longer than any time between putting a blob and committing what cites it."""

    def kept_s(self, status: str) -> float | None:
        """Return how long a run of this status is kept; None for ever (it is not terminal)."""
        return {
            "completed": self.completed_s,
            "failed": self.failed_s,
            "cancelled": self.cancelled_s,
            "rejected": self.rejected_s,
        }.get(status)

    def run_expired(self, status: str, ended_at: float, now: float) -> bool:
        """Tell whether a run may be retired."""
        kept_s = self.kept_s(status)
        return kept_s is not None and now - ended_at > kept_s

    def blob_expired(self, written_at: float, now: float, *, is_cited: bool) -> bool:
        """Tell whether a blob may be deleted."""
        return not is_cited and now - written_at > self.blob_grace_s

    def nothing_expired_since(self, now: float) -> float:
        """Return a time after which no run can have expired."""
        kept = (self.completed_s, self.failed_s, self.cancelled_s, self.rejected_s)
        return now - min(kept)


@dataclass(frozen=True)
class SweepLimits:
    """Most work of one sweep."""

    messages_max: int = 20_000
    """Commits looked at."""
    runs_max: int = 200
    """Runs retired."""
    blobs_max: int = 1_000
    """Blobs deleted."""
    bundle_bytes_max: int = BUNDLE_BYTES_MAX
    """Commits and blobs of a run; a larger one stays and is counted as failed."""


@dataclass(frozen=True)
class Stores:
    """Everything a sweep touches."""

    nc: Nats
    log: JetStreamEventStore
    snapshots: SnapshotStore
    blobs: BlobStore
    keys: KeyRing
    archive: Archive


@dataclass
class RunSweep:
    """What a sweep of runs did."""

    next_sequence: int = 1
    """Where the next sweep begins; 1 after the end of the log."""
    scanned: int = 0
    retired: list[RunKey] = field(default_factory=list)
    failed: dict[RunKey, str] = field(default_factory=dict)
    """Runs that stay, and why."""


async def sweep(
    stores: Stores, policy: RetentionPolicy, limits: SweepLimits, *, now: float, start: int = 1
) -> RunSweep:
    """Archive and retire expired runs, from sequence `start` of the log on.

    Args:
        stores: The mesh's stores.
        policy: How long runs are kept.
        limits: Most work of this sweep.
        now: Seconds since the epoch.
        start: `next_sequence` of the sweep before.

    Raises:
        StoreUnavailable: The log cannot be reached.
    """
    done = RunSweep(start)
    horizon = policy.nothing_expired_since(now)
    while done.scanned < limits.messages_max:
        size = min(READ_BATCH, limits.messages_max - done.scanned)
        page = await _page(stores.nc, done.next_sequence, size)
        for item in page:
            if stored_at(item) > horizon:
                done.next_sequence = 1
                return done
            if len(done.retired) + len(done.failed) >= limits.runs_max:
                return done
            done.scanned += 1
            done.next_sequence = item.sequence + 1
            status = item.headers.get(Header.STATUS, "")
            if policy.run_expired(status, stored_at(item), now):
                await _try_retire(stores, limits, run_key(item.subject), now, done)
        if len(page) < size:
            done.next_sequence = 1
            return done
    return done


async def _try_retire(
    stores: Stores, limits: SweepLimits, key: RunKey, now: float, done: RunSweep
) -> None:
    try:
        await retire(stores, key, now, bytes_max=limits.bundle_bytes_max)
    except ClawdbotError as error:
        done.failed[key] = error.message
    else:
        done.retired.append(key)


async def retire(
    stores: Stores, key: RunKey, now: float, *, bytes_max: int = BUNDLE_BYTES_MAX
) -> None:
    """Archive a finished run and leave its tombstone; again finishes what was interrupted.

    Raises:
        FailedPrecondition: The run is not finished, or its bundle would exceed `bytes_max`.
        DataLoss: The log is damaged; it stays as it is.
        VersionConflict: The log grew meanwhile.
        StoreUnavailable: A store does not answer.
    """
    stored = await stores.log.stored(key)
    if not stored or (len(stored) == 1 and stored[0].retired_at is not None):
        return
    last = stored[-1]
    head = Head(last.sequence, last.version, hashlib.sha256(last.data).hexdigest())
    if last.retired_at is None:
        if stored[0].version == 1:
            await _archive(stores, key, stored, now, bytes_max)
        elif not await _archived(stores.archive, key, head):
            raise DataLoss(f"the log of run {key.run_id} lacks its first commits")
    await stores.log.retire(key, head, now)
    await stores.snapshots.delete(key)


async def _archive(
    stores: Stores, key: RunKey, stored: list[StoredCommit], now: float, bytes_max: int
) -> None:
    state = (await stores.log.decode(key, stored)).state()
    if state is None or not state.terminal:
        raise FailedPrecondition(f"run {key.run_id} is not finished")
    bundle = await export_run(
        stores.log, stores.blobs, stores.keys, key, at=now, bytes_max=bytes_max
    )
    await stores.archive.keep(key, bundle)


async def _archived(archive: Archive, key: RunKey, head: Head) -> bool:
    """Tell whether the archive has the log up to this head: a full log was cut to its last commit.

    See `JetStreamEventStore.retire`.
    """
    bundle = await archive.get(key)
    return bundle is not None and unpack(bundle).manifest.digest == head.digest


@dataclass
class BlobSweep:
    """What a sweep of blobs did."""

    seen: int = 0
    deleted: list[str] = field(default_factory=list)
    """Names, `<tenant>/<sha256>`."""
    undecided: set[str] = field(default_factory=set)
    """Tenants with a commit that cannot be read; their blobs all stay."""


async def sweep_blobs(
    stores: Stores, policy: RetentionPolicy, limits: SweepLimits, *, now: float
) -> BlobSweep:
    """Delete blobs that no remaining run cites and nobody has written for the grace period.

    Reads the whole log, so it belongs in a quiet hour.

    Raises:
        StoreUnavailable: A store does not answer.
    """
    done = BlobSweep()
    old: dict[str, StoredCommit] = {}
    for item in await read_subject(stores.nc, _BLOB_STREAM, blob_metas(BLOBS)):
        info = orjson.loads(item.data)
        done.seen += not info.get("deleted", False)
        if not info.get("deleted") and policy.blob_expired(stored_at(item), now, is_cited=False):
            old[info["name"]] = item
    if not old:
        return done
    marked = await _mark(stores, done.undecided)
    for name, item in old.items():
        if len(done.deleted) >= limits.blobs_max:
            return done
        is_cited = name in marked or name.partition("/")[0] in done.undecided
        if not is_cited and await delete_unless_renewed(stores.nc, BLOBS, item):
            done.deleted.append(name)
    return done


async def _mark(stores: Stores, undecided: set[str]) -> set[str]:
    """Return the names of all cited blobs."""
    marked: set[str] = set()
    start, page = 1, await _page(stores.nc, 1, READ_BATCH)
    while page:
        for item in page:
            if item.retired_at is not None:
                continue
            tenant = run_key(item.subject).tenant
            try:
                commit = (await stores.log.decoder(item))()
            except DataLoss:
                undecided.add(tenant)
                continue
            marked.update(f"{tenant}/{sha256}" for sha256 in cited([commit]))
        start = page[-1].sequence + 1
        page = await _page(stores.nc, start, READ_BATCH)
    return marked


async def _page(nc: Nats, start: int, limit: int) -> list[StoredCommit]:
    return await read_subject(nc, EVENTS, every("event", "*.*"), start=start, limit=limit)

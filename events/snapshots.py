"""Snapshots: one per run, disposable; the log alone is the truth.

A snapshot is a folded state and the head it stands for, encoded like a commit: MessagePack,
compression, the tenant's cipher. It is bound to its run and to REDUCER_VERSION; one that is
damaged, foreign, of another version or ahead of the log is as good as none.
"""

import asyncio
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from cryptography.exceptions import InvalidTag
from eventsourcing.persistence import Cipher
from nats.aio.client import Client as Nats
from nats.js.errors import APIError, NotFoundError
from pydantic import TypeAdapter, ValidationError
from typing_extensions import override

from events.codec import MsgpackTranscoder, SizeCompressor
from events.evolve import REDUCER_VERSION, fold
from events.hedge import DIRECT_ASKED_MAX, hedged
from events.jetstream import APPEND_TIMEOUT_S, BUS_ERRORS, STREAM_FULL
from events.keys import KeyRing
from events.state import RunState
from events.store import EMPTY, EventStore, Head
from events.streams import SNAPSHOTS
from events.subjects import RunKey, snapshot
from schemas.errors import DataLoss, StoreFull, StoreUnavailable
from schemas.messages import Header


SNAPSHOT_EVERY = 32
"""Commits between two snapshots of a run."""
REDUCER = "Clawdbot-Reducer-Version"
_STATE = TypeAdapter(RunState)
_HEAD = TypeAdapter(Head)

Origin = Literal["log", "snapshot", "bad_snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """A run's state as of a head of its log."""

    state: RunState
    head: Head


@dataclass(frozen=True)
class Loaded:
    """What `load_state` found."""

    state: RunState | None
    """None when the run does not exist."""
    head: Head
    folded: int
    """Commits read and folded."""
    origin: Origin
    """`bad_snapshot`: one was there but unusable, so the log was folded from the start."""
    snapshot_version: int = 0
    """Version of the head the usable snapshot stands for; 0 without one."""


class SnapshotStore(ABC):
    """Keeps the newest snapshot of each run."""

    @abstractmethod
    async def put(self, key: RunKey, taken: Snapshot) -> None:
        """Replace the run's snapshot; losing it loses nothing but time.

        Raises:
            StoreFull: No room.
            StoreUnavailable: The store does not answer.
        """

    @abstractmethod
    async def get(self, key: RunKey) -> Snapshot | None:
        """Return the run's snapshot; None when there is none of this REDUCER_VERSION.

        Raises:
            DataLoss: It is damaged, or belongs to another run.
            StoreUnavailable: The store does not answer.
        """

    @abstractmethod
    async def delete(self, key: RunKey) -> None:
        """Remove the run's snapshot, if there is one.

        Raises:
            StoreUnavailable: The store does not answer.
        """


class SnapshotCodec:
    """From snapshots to stored bytes and back."""

    def __init__(self, cipher: Cipher | None = None) -> None:
        self._transcoder = MsgpackTranscoder()
        self._compressor = SizeCompressor()
        self._cipher = cipher

    def encode(self, key: RunKey, taken: Snapshot) -> bytes:
        """Return stored bytes."""
        document = {
            "key": asdict(key),
            "reducer": REDUCER_VERSION,
            "head": asdict(taken.head),
            "state": _STATE.dump_python(taken.state),
        }
        data = self._compressor.compress(self._transcoder.encode(document))
        return self._cipher.encrypt(data) if self._cipher else data

    def decode(self, key: RunKey, stored: bytes) -> Snapshot | None:
        """Read stored bytes; None for another REDUCER_VERSION.

        Raises:
            DataLoss: Damaged, or of another run.
        """
        try:
            data = self._cipher.decrypt(stored) if self._cipher else stored
            document = self._transcoder.decode(self._compressor.decompress(data))
            if document["key"] != asdict(key):
                raise DataLoss(f"the snapshot of run {key.run_id} belongs to another run")
            if document["reducer"] != REDUCER_VERSION:
                return None
            return Snapshot(
                _STATE.validate_python(document["state"]), _HEAD.validate_python(document["head"])
            )
        except (ValueError, KeyError, TypeError, zlib.error, InvalidTag, ValidationError) as error:
            raise DataLoss(f"the snapshot of run {key.run_id} is damaged") from error


class MemorySnapshotStore(SnapshotStore):
    """The twin for tests; it keeps stored bytes."""

    def __init__(self) -> None:
        self._codec = SnapshotCodec()
        self.stored: dict[str, bytes] = {}

    @override
    async def put(self, key: RunKey, taken: Snapshot) -> None:
        self.stored[snapshot(key)] = self._codec.encode(key, taken)

    @override
    async def get(self, key: RunKey) -> Snapshot | None:
        stored = self.stored.get(snapshot(key))
        return None if stored is None else self._codec.decode(key, stored)

    @override
    async def delete(self, key: RunKey) -> None:
        self.stored.pop(snapshot(key), None)


class JetStreamSnapshotStore(SnapshotStore):
    """Over the SNAPSHOTS stream, which keeps one message per run."""

    def __init__(self, nc: Nats, keys: KeyRing) -> None:
        self._js = nc.jetstream(timeout=APPEND_TIMEOUT_S)
        self._keys = keys

    @override
    async def put(self, key: RunKey, taken: Snapshot) -> None:
        codec = SnapshotCodec(await self._keys.cipher(key.tenant))
        body = await asyncio.to_thread(codec.encode, key, taken)
        headers = {REDUCER: str(REDUCER_VERSION), Header.VERSION: str(taken.head.version)}
        try:
            await self._js.publish(snapshot(key), body, headers=headers)
        except APIError as error:
            if error.err_code in STREAM_FULL:
                raise StoreFull("the snapshot does not fit into its stream") from error
            raise StoreUnavailable("the snapshot was refused", cause=str(error)) from error
        except BUS_ERRORS as error:
            raise StoreUnavailable("the snapshots do not answer") from error

    @override
    async def get(self, key: RunKey) -> Snapshot | None:
        try:
            found = await hedged(
                lambda: self._js.get_last_msg(SNAPSHOTS, snapshot(key), direct=True),
                asked_max=DIRECT_ASKED_MAX,
            )
        except NotFoundError:
            return None
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the snapshots do not answer") from error
        if not _of_this_reducer(found.headers or {}):
            return None
        codec = SnapshotCodec(await self._keys.cipher(key.tenant))
        return await asyncio.to_thread(codec.decode, key, found.data or b"")

    @override
    async def delete(self, key: RunKey) -> None:
        try:
            await self._js.purge_stream(SNAPSHOTS, subject=snapshot(key))
        except NotFoundError:
            return
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the snapshots do not answer") from error


def _of_this_reducer(headers: Mapping[str, str]) -> bool:
    return headers.get(REDUCER) == str(REDUCER_VERSION)


async def load_state(store: EventStore, snapshots: SnapshotStore, key: RunKey) -> Loaded:
    """Return a run's state from its snapshot and the commits after it.

    A snapshot that cannot be used costs a full fold, nothing else: errors of the snapshot store
    are no errors here.

    Raises:
        NotFound: The run was retired.
        StoreUnavailable: The log cannot be reached.
        DataLoss: The log itself is damaged.
    """
    origin: Origin = "log"
    try:
        taken = await snapshots.get(key)
        if taken is not None:
            tail = await store.load(key, taken.head)
            state = fold(tail.events(), taken.state)
            version = taken.head.version
            return Loaded(state, tail.head, len(tail.commits), "snapshot", version)
    except (DataLoss, StoreUnavailable):
        origin = "bad_snapshot"  # whatever is wrong, the full fold below finds out or is right
    history = await store.load(key)
    return Loaded(history.state(), history.head, len(history.commits), origin)


def due(head: Head, snapshot_version: int, every: int = SNAPSHOT_EVERY) -> bool:
    """Tell whether a run has grown by `every` commits (>= 1) since its last snapshot."""
    return head != EMPTY and head.version - snapshot_version >= every

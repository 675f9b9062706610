"""Run bundles: one file that holds a run's stored commits and the blobs they cite.

A `<run>.clawdbot.zip` holds

    manifest.json     format, run, head of the log, blobs and their media types
    commits.ndjson    one line per commit: sequence, headers, stored bytes (base64)
    blobs/<sha256>    a cited blob, under the tenant's cipher
    view.json         only when asked for: the events in clear

Commits stay as they were stored, so the hash chain verifies without a key, and destroying the
tenant's data key erases its bundles too (not their views).
"""

import asyncio
import base64
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from nats.aio.client import Client as Nats
from nats.js.errors import APIError
from pydantic import Field, ValidationError

from events.blobs import BlobStore
from events.catalog import SHORT_NAMES
from events.chain import check_link
from events.codec import Commit
from events.jetstream import (
    BUS_ERRORS,
    STREAM_FULL,
    WRONG_LAST_SEQUENCE,
    JetStreamEventStore,
    StoredCommit,
    read_subject,
)
from events.keys import KeyRing
from events.recording import cited
from events.store import EMPTY, Head
from events.streams import EVENTS
from events.subjects import RunKey, event
from schemas.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    NotFound,
    StoreFull,
    StoreUnavailable,
    VersionConflict,
)
from schemas.ids import RunId, Sha256, TenantId
from schemas.message import Message
from schemas.messages import Header
from schemas.values import to_json


BUNDLE_BYTES_MAX = 512 * 1024 * 1024
"""Most bytes of a bundle once unpacked."""
_MANIFEST, _COMMITS, _VIEW, _BLOBS = "manifest.json", "commits.ndjson", "view.json", "blobs/"
_TIME_STAMP = ("Nats-Time-Stamp",)
"""Kept in the bundle as evidence; a restored commit gets a new one."""
_OF_THE_SERVER = (
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Stream",
    "Nats-Num-Pending",
    "Nats-Last-",
    "Nats-Batch-",
)


class Manifest(Message):
    """What a bundle says about itself."""

    format: Literal["clawdbot.run.v1"] = "clawdbot.run.v1"
    tenant: TenantId
    run_id: RunId
    commits: int = Field(ge=1)
    digest: Sha256
    """Of the last commit's stored bytes: the end of the hash chain."""
    workflow: str
    status: str
    exported_at: float
    """Seconds since the epoch."""
    blobs: dict[Sha256, str] = Field(default_factory=dict)
    """Media types of the blobs in the bundle."""
    missing: tuple[Sha256, ...] = ()
    """Cited blobs that were gone already."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose hash chain is sound."""

    manifest: Manifest
    commits: tuple[StoredCommit, ...]
    blobs: Mapping[str, bytes]
    """Encrypted bytes by SHA-256 of the clear ones."""

    @property
    def key(self) -> RunKey:
        """The run."""
        return RunKey(self.manifest.tenant, self.manifest.run_id)


async def export_run(  # noqa: PLR0913 - three stores, and three things to say about the bundle
    store: JetStreamEventStore,
    blobs: BlobStore,
    keys: KeyRing,
    key: RunKey,
    *,
    at: float,
    view: bool = False,
    bytes_max: int = BUNDLE_BYTES_MAX,
) -> bytes:
    """Return a run as a bundle, read back and verified.

    Args:
        store: The log.
        blobs: Where cited blobs are.
        keys: Ciphers of the tenants.
        key: The run.
        at: Seconds since the epoch.
        view: Whether to add the events in clear.
        bytes_max: Most bytes of commits and blobs; about four times as many are held in memory.

    Raises:
        NotFound: No such run, or it was retired.
        FailedPrecondition: More than `bytes_max`.
        DataLoss: The log or a blob is damaged.
        StoreUnavailable: The log or a blob cannot be reached.
    """
    stored = await store.stored(key)
    history = await store.decode(key, stored)
    if not history.commits:
        raise NotFound(f"no run {key.run_id}")
    cipher = await keys.cipher(key.tenant)
    found = _Blobs(bytes_max - sum(len(item.data) for item in stored))
    for sha256 in sorted(cited(history.commits)):
        try:
            data, media_type = await blobs.get(key.tenant, sha256)
        except NotFound:
            found.missing.append(sha256)
            continue
        found.take(sha256, await asyncio.to_thread(cipher.encrypt, data), media_type)
    manifest = Manifest(
        tenant=key.tenant,
        run_id=key.run_id,
        commits=len(stored),
        digest=history.head.digest,
        workflow=stored[-1].headers.get(Header.WORKFLOW, ""),
        status=stored[-1].headers.get(Header.STATUS, ""),
        exported_at=at,
        blobs=found.media_types,
        missing=tuple(found.missing),
    )
    bundle = Bundle(manifest, tuple(stored), found.kept)
    packed = await asyncio.to_thread(pack, bundle, history.commits if view else ())
    await asyncio.to_thread(unpack, packed)
    return packed


@dataclass
class _Blobs:
    """What an export has found of the cited blobs."""

    room: int
    """Bytes left."""
    kept: dict[str, bytes] = field(default_factory=dict)
    media_types: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def take(self, sha256: str, stored: bytes, media_type: str) -> None:
        """Keep a blob."""
        self.room -= len(stored)
        if self.room < 0:
            raise FailedPrecondition("the run's commits and blobs are too large for a bundle")
        self.kept[sha256] = stored
        self.media_types[sha256] = media_type


def pack(bundle: Bundle, view: Sequence[Commit] = ()) -> bytes:
    """Return a bundle as bytes; the same bundle gives the same bytes."""
    lines = b"".join(_line(item) for item in bundle.commits)
    members = {_MANIFEST: orjson.dumps(bundle.manifest.model_dump(mode="json")), _COMMITS: lines}
    members |= {f"{_BLOBS}{sha256}": data for sha256, data in sorted(bundle.blobs.items())}
    if view:
        members[_VIEW] = orjson.dumps([_clear(commit) for commit in view])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def unpack(packed: bytes) -> Bundle:
    """Read a bundle from anywhere and verify its hash chain; needs no key.

    Raises:
        DataLoss: Not a bundle, altered, incomplete, or larger than BUNDLE_BYTES_MAX.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            if sum(item.file_size for item in archive.infolist()) > BUNDLE_BYTES_MAX * 2:
                raise DataLoss("the bundle is larger than any of ours")
            manifest = Manifest.model_validate_json(archive.read(_MANIFEST))
            commits = tuple(_commit(line) for line in archive.read(_COMMITS).splitlines())
            blobs = {sha256: archive.read(f"{_BLOBS}{sha256}") for sha256 in manifest.blobs}
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, ValidationError) as error:
        raise DataLoss("the bundle is damaged, or not a bundle") from error
    bundle = Bundle(manifest, commits, blobs)
    head = EMPTY
    for item in commits:
        previous = item.headers.get(Header.PREVIOUS, "")
        head = check_link(bundle.key, head, item.sequence, item.version, previous, item.data)
    if (head.version, head.digest) != (manifest.commits, manifest.digest):
        raise DataLoss(f"the bundle of run {manifest.run_id} is not complete")
    return bundle


async def restore(nc: Nats, blobs: BlobStore, keys: KeyRing, bundle: Bundle) -> Head:
    """Write a bundle's blobs and commits into a mesh; again continues where it stopped.

    Sequences are new; bytes, versions and the hash chain are the old ones. The mesh must hold the
    tenant's data key.

    Raises:
        AlreadyExists: The id has another log, or belongs to a run that was retired here.
        DataLoss: A blob is not what it should be, or its key is gone.
        StoreFull: No room.
        StoreUnavailable: The log cannot be reached.
    """
    cipher = await keys.cipher(bundle.key.tenant)
    for sha256, data in bundle.blobs.items():
        try:
            clear = await asyncio.to_thread(cipher.decrypt, data)
        except ValueError as error:
            raise DataLoss(f"blob {sha256} is altered or its key is gone") from error
        ref = await blobs.put(bundle.key.tenant, clear, bundle.manifest.blobs[sha256])
        if ref.sha256 != sha256:
            raise DataLoss(f"blob {sha256} is altered")
    there = await read_subject(nc, EVENTS, event(bundle.key))
    known = [item.data for item in bundle.commits[: len(there)]]
    if [item.data for item in there] != known or any(item.retired_at for item in there):
        raise AlreadyExists(f"run id {bundle.key.run_id} is taken; its log is another one")
    sequence = there[-1].sequence if there else 0
    for item in bundle.commits[len(there) :]:
        sequence = await _write(nc, event(bundle.key), item, sequence)
    return Head(sequence, bundle.manifest.commits, bundle.manifest.digest)


async def _write(nc: Nats, subject: str, item: StoredCommit, expected: int) -> int:
    headers = {name: value for name, value in item.headers.items() if name not in _TIME_STAMP}
    headers[Header.EXPECTED] = str(expected)
    try:
        return (await nc.jetstream().publish(subject, item.data, headers=headers)).seq
    except APIError as error:
        if error.err_code == WRONG_LAST_SEQUENCE:
            raise VersionConflict("somebody else wrote to the run meanwhile") from error
        if error.err_code in STREAM_FULL:
            raise StoreFull("the event log is full; free space or raise its limit") from error
        raise StoreUnavailable("the event log refused a commit", cause=str(error)) from error
    except BUS_ERRORS as error:
        raise StoreUnavailable("the event log does not answer") from error


def _line(item: StoredCommit) -> bytes:
    headers = {
        name: value
        for name, value in item.headers.items()
        if not name.startswith(_OF_THE_SERVER) and name != Header.EXPECTED
    }
    data = base64.b64encode(item.data).decode()
    return orjson.dumps({"sequence": item.sequence, "headers": headers, "data": data}) + b"\n"


def _commit(line: bytes) -> StoredCommit:
    document = orjson.loads(line)
    headers = {str(name): str(value) for name, value in document["headers"].items()}
    data = base64.b64decode(document["data"], validate=True)
    return StoredCommit("", int(document["sequence"]), headers, data)


def _clear(commit: Commit) -> dict[str, Any]:
    return {
        "version": commit.originator_version,
        "commit_id": commit.commit_id,
        "events": [
            {"type": SHORT_NAMES[type(item)], **to_json(item.model_dump())}
            for item in commit.events
        ],
    }

"""Runs leave a mesh as one file, and enter another one."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from events.blobs import BlobStore
from events.catalog import RunStarted
from events.codec import Commit
from events.definitions import DefinitionStore
from events.jetstream import JetStreamEventStore, commit_headers
from events.recording import Recording, cited, pack_recording, unpack_recording
from events.state import RunState
from events.store import EMPTY, Append, EventStore, Head
from events.subjects import RunKey
from events.tape import Tape, run_view
from schemas.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, NotFound
from schemas.ids import valid_token


async def export_recording(  # noqa: PLR0913 - three stores, and three things to say about the file
    store: JetStreamEventStore,
    blobs: BlobStore,
    definitions: DefinitionStore,
    key: RunKey,
    *,
    at: float,
    bytes_max: int,
    with_blobs: bool = True,
) -> bytes:
    """Return a run as a bundle in clear, read back and compared.

    Args:
        store: The log.
        blobs: Where cited blobs are.
        definitions: Where its workflow may still be.
        key: The run.
        at: Seconds since the epoch.
        bytes_max: Most bytes of commits and blobs.
        with_blobs: Whether cited blobs go with it.

    Raises:
        NotFound: No such run, or it was retired.
        FailedPrecondition: More than `bytes_max`.
        DataLoss: The log or a blob is damaged.
        StoreUnavailable: The log or a blob cannot be reached.
    """
    stored = await store.stored(key)
    history = await store.decode(key, stored)
    if not history.commits:
        raise NotFound(f"no run {key.run_id}", field="run_id")
    room = bytes_max - sum(len(item.data) for item in stored)
    kept, missing = await _blobs(blobs, key, history.commits, room if with_blobs else 0)
    recording = Recording(
        key=key,
        commits=history.commits,
        sequences=history.sequences,
        log_digests=tuple(hashlib.sha256(item.data).hexdigest() for item in stored),
        blobs=kept,
        missing=missing,
        definition=await _definition(definitions, key, history.commits[0]),
    )
    packed = await asyncio.to_thread(pack_recording, recording, at)
    again = await asyncio.to_thread(unpack_recording, packed)
    if again.commits != recording.commits and repr(again.commits) != repr(recording.commits):
        raise DataLoss(f"the log of run {key.run_id} cannot be written as JSON without loss")
    return packed


async def _blobs(
    store: BlobStore, key: RunKey, commits: Sequence[Commit], room: int
) -> tuple[dict[str, tuple[bytes, str]], tuple[str, ...]]:
    """Return the cited blobs, and which are missing; `room` 0 leaves all out."""
    names = sorted(cited(commits))
    if not room:
        return {}, tuple(names)
    kept: dict[str, tuple[bytes, str]] = {}
    missing: list[str] = []
    for name in names:
        try:
            kept[name] = await store.get(key.tenant, name)
        except NotFound:
            missing.append(name)
            continue
        room -= len(kept[name][0])
        if room < 0:
            raise FailedPrecondition(
                "the run's blobs are too large for one bundle; export it without them "
                "(blobs=false), or raise CLAWDBOT_BUNDLE_BYTES_MAX",
                field="blobs",
            )
    return kept, tuple(missing)


async def _definition(
    store: DefinitionStore, key: RunKey, first: Commit
) -> Mapping[str, Any] | None:
    """Return the workflow that a run ran, as a deployment."""
    started = first.events[0]
    if not isinstance(started, RunStarted):
        return None
    try:
        found = await store.version(key.tenant, started.workflow, started.version)
    except NotFound:
        return None
    if found.digest != started.digest:
        return None
    document = found.definition.model_dump(mode="json", exclude_defaults=True)
    return {"name": found.name, "definition": document}


async def import_recording(
    store: EventStore, blobs: BlobStore, tenant: str, recording: Recording
) -> bool:
    """Write a run into this mesh's log; again continues where it stopped.

    The events are those of the bundle, to the byte; sequences, encryption and hash chain are this
    mesh's own. Every commit carries the final status, so no orchestrator ever takes the run up.

    Returns:
        Whether anything was written: False when the same run is here already.

    Raises:
        FailedPrecondition: The run is not over; two meshes would go on with it.
        AlreadyExists: The id has another log here, or belonged to a run that was retired.
        InvalidArgument: The events are no run.
        StoreFull, StoreUnavailable: Nothing more can be written now.
    """
    key = RunKey(tenant, recording.key.run_id)
    state = folded(recording)
    if not state.terminal:
        raise FailedPrecondition(
            f"run {key.run_id} is {state.status}; only a run that is over can be imported",
            field="bundle",
        )
    head, known = await _already(store, key, recording)
    for sha256, (data, media_type) in recording.blobs.items():
        ref = await blobs.put(tenant, data, media_type)
        assert ref.sha256 == sha256, "checked when the bundle was read"
    for commit in recording.commits[known:]:
        head = await store.append(Append(key, commit.commit_id, commit.events, head, state))
    return known < len(recording.commits)


def folded(recording: Recording) -> RunState:
    """Fold the events of a bundle and show the run, as everybody will who looks at it.

    Raises:
        InvalidArgument: They are no run.
    """
    try:
        state = recording.history().state()
        run_view(recording.key, Tape.of(recording.history()).records)
        assert state is not None
        valid_token(state.workflow, field="bundle")
        commit_headers(Append(recording.key, "", (), EMPTY, state), 1)
    except (AssertionError, ArithmeticError, AttributeError, LookupError) as error:
        raise InvalidArgument("the events of this bundle are no run", field="bundle") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument("the events of this bundle are no run", field="bundle") from error
    return state


async def _already(store: EventStore, key: RunKey, recording: Recording) -> tuple[Head, int]:
    """Return where the run's log ends here, and how many of its commits are here already."""
    try:
        there = await store.load(key)
    except NotFound as error:
        raise AlreadyExists(error.message, field="bundle") from error
    known = len(there.commits)
    wanted = [(commit.commit_id, commit.events) for commit in recording.commits[:known]]
    if [(commit.commit_id, commit.events) for commit in there.commits] != wanted:
        raise AlreadyExists(
            f"run id {key.run_id} is taken here by a run with another history", field="bundle"
        )
    return (there.head if known else EMPTY), known

"""A run in one file, in clear: what `export` writes, and `import`, `replay` and `diff` read.

A `<run>.clawdbot` is a zip that holds

    manifest.json     format, run, tenant, workflow, head of the log, blobs and their types
    commits.ndjson    one line a commit: events, place in the log, SHA-256 of the line before
    definition.json   the workflow as it was deployed, if it is still there
    blobs/<sha256>    a cited blob

Nothing in it is encrypted: it is for reading a run where the tenant's data key is not. Each line
also names the SHA-256 of the commit's bytes in the log, so whoever has the log can tell that it is
the same. (Bundles of retired runs are another thing: `events.export`.)
"""

import base64
import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from pydantic import Field, ValidationError

from events.catalog import EVENT_TYPES, SHORT_NAMES, Event, RunStarted
from events.codec import Commit, read_event
from events.store import EMPTY, Head, History
from events.subjects import RunKey
from schemas.errors import InvalidArgument
from schemas.ids import RunId, Sha256, TenantId, valid_token
from schemas.message import Message


FORMAT = "clawdbot.recording.v1"
MEDIA_TYPE = "application/vnd.clawdbot.recording+zip"
UNPACKED_BYTES_MAX = 512 * 1024 * 1024
"""Most bytes of a bundle once unpacked."""
MEMBERS_MAX = 10_000
"""Most files in a bundle."""
_MANIFEST, _COMMITS, _DEFINITION, _BLOBS = (
    "manifest.json",
    "commits.ndjson",
    "definition.json",
    "blobs/",
)
_BYTES, _FLOAT, _LITERAL = "$bytes", "$float", "$literal"


class RecordedBlob(Message):
    """A blob that a run cites."""

    media_type: str
    size_bytes: int = Field(ge=0)


class RecordingManifest(Message):
    """What a bundle says about itself."""

    format: Literal["clawdbot.recording.v1"] = "clawdbot.recording.v1"
    tenant: TenantId
    run_id: RunId
    workflow: str
    version: int
    definition_digest: str = ""
    """Of the workflow as it was deployed; empty for a run that was rejected."""
    status: str
    """As the last commit left it."""
    commits: int = Field(ge=1)
    events: int = Field(ge=1)
    digest: Sha256
    """Of the last line of commits.ndjson: the end of the bundle's hash chain."""
    log_digest: Sha256
    """Of the last commit's bytes in the log: the end of the log's hash chain."""
    exported_at: float
    """Seconds since the epoch."""
    blobs: dict[Sha256, RecordedBlob] = Field(default_factory=dict)
    missing: tuple[Sha256, ...] = ()
    """Cited blobs that are not in the bundle: gone, or left out."""


@dataclass(frozen=True)
class Recording:
    """A run that was read from a bundle, or is about to be written to one."""

    key: RunKey
    commits: tuple[Commit, ...]
    sequences: tuple[int, ...]
    log_digests: tuple[str, ...]
    """SHA-256 of each commit's bytes in the log."""
    blobs: Mapping[str, tuple[bytes, str]] = field(default_factory=dict)
    """(bytes, media type) by SHA-256."""
    missing: tuple[str, ...] = ()
    definition: Mapping[str, Any] | None = None
    """A deployment: name and definition."""

    def history(self) -> History:
        """Return the run as the event store would."""
        head = Head(self.sequences[-1], len(self.commits), self.log_digests[-1])
        return History(self.commits, self.sequences, head if self.commits else EMPTY)


def cited(commits: Iterable[Commit]) -> set[str]:
    """Return the SHA-256 of every blob that commits cite."""
    return cited_by(event for commit in commits for event in commit.events)


def cited_by(events: Iterable[Event]) -> set[str]:
    """Return the SHA-256 of every blob that events cite."""
    found: set[str] = set()
    pending: list[Any] = [event.model_dump() for event in events]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            blob = value.get("$blob")
            if isinstance(blob, Mapping) and isinstance(blob.get("sha256"), str):
                found.add(blob["sha256"])
            pending.extend(value.values())
        elif isinstance(value, list | tuple):
            pending.extend(value)
    return found


def pack_recording(recording: Recording, at: float) -> bytes:
    """Return a bundle; the same recording at the same time gives the same bytes.

    Args:
        recording: The run; it has a commit.
        at: Seconds since the epoch.
    """
    lines: list[bytes] = []
    digest = ""
    for commit, sequence, log_digest in zip(
        recording.commits, recording.sequences, recording.log_digests, strict=True
    ):
        line = _line(commit, sequence, log_digest, digest)
        digest = hashlib.sha256(line).hexdigest()
        lines.append(line + b"\n")
    manifest = _manifest(recording, at, digest)
    members = {
        _MANIFEST: orjson.dumps(manifest.model_dump(mode="json"), option=orjson.OPT_INDENT_2),
        _COMMITS: b"".join(lines),
    }
    if recording.definition is not None:
        members[_DEFINITION] = orjson.dumps(recording.definition, option=orjson.OPT_INDENT_2)
    members |= {f"{_BLOBS}{name}": data for name, (data, _) in sorted(recording.blobs.items())}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 1)
    return file.getvalue()


def unpack_recording(packed: bytes, *, bytes_max: int = UNPACKED_BYTES_MAX) -> Recording:
    """Read a bundle from anywhere; verify its hash chain and its blobs. Needs no key.

    Args:
        packed: The file.
        bytes_max: Most bytes once unpacked.

    Raises:
        InvalidArgument: No bundle, altered, incomplete or too large; says what is wrong.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            names = _names(archive, bytes_max)
            manifest = RecordingManifest.model_validate_json(archive.read(_MANIFEST))
            lines = archive.read(_COMMITS).splitlines()
            blobs = {name: archive.read(f"{_BLOBS}{name}") for name in manifest.blobs}
            definition = orjson.loads(archive.read(_DEFINITION)) if _DEFINITION in names else None
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError) as error:
        raise _bad("it is damaged, or no bundle of ours") from error
    except ValidationError as error:
        raise _bad("its manifest is not one of ours") from error
    except ValueError as error:
        raise _bad("it holds something that is not JSON") from error
    _check_blobs(manifest, blobs, names)
    commits, sequences, log_digests = _read_lines(manifest, lines)
    return Recording(
        key=RunKey(manifest.tenant, manifest.run_id),
        commits=commits,
        sequences=sequences,
        log_digests=log_digests,
        blobs={name: (data, manifest.blobs[name].media_type) for name, data in blobs.items()},
        missing=manifest.missing,
        definition=definition if isinstance(definition, dict) else None,
    )


def _bad(why: str) -> InvalidArgument:
    return InvalidArgument(f"this bundle cannot be used: {why}", field="bundle")


def _manifest(recording: Recording, at: float, digest: str) -> RecordingManifest:
    state = recording.history().state()
    first = recording.commits[0].events[0]
    assert state is not None
    return RecordingManifest(
        tenant=recording.key.tenant,
        run_id=recording.key.run_id,
        workflow=state.workflow,
        version=state.version,
        definition_digest=first.digest if isinstance(first, RunStarted) else "",
        status=state.status,
        commits=len(recording.commits),
        events=sum(len(commit.events) for commit in recording.commits),
        digest=digest,
        log_digest=recording.log_digests[-1],
        exported_at=at,
        blobs={
            name: RecordedBlob(media_type=media_type, size_bytes=len(data))
            for name, (data, media_type) in sorted(recording.blobs.items())
        },
        missing=recording.missing,
    )


def _names(archive: zipfile.ZipFile, bytes_max: int) -> set[str]:
    """Return the names in a bundle: ours alone, each once, and not too much of them."""
    members = archive.infolist()
    if len(members) > MEMBERS_MAX:
        raise _bad(f"it holds {len(members)} files; at most {MEMBERS_MAX} are read")
    size = sum(item.file_size for item in members)
    if size > bytes_max:
        raise _bad(f"it unpacks to {size} bytes; at most {bytes_max} are read")
    names = {item.filename for item in members}
    if len(names) != len(members):
        raise _bad("a file is in it twice")
    for name in names - {_MANIFEST, _COMMITS, _DEFINITION}:
        digest = name.removeprefix(_BLOBS)
        if name == digest or len(digest) != 64 or set(digest) - set("0123456789abcdef"):  # noqa: PLR2004 - hex digits of SHA-256
            raise _bad(f"it holds a file '{name[:80]}', which is none of ours")
    return names


def _check_blobs(
    manifest: RecordingManifest, blobs: Mapping[str, bytes], names: Iterable[str]
) -> None:
    for name, data in blobs.items():
        if hashlib.sha256(data).hexdigest() != name or manifest.blobs[name].size_bytes != len(data):
            raise _bad(f"blob {name} is altered")
    for name in names:
        if name.startswith(_BLOBS) and name.removeprefix(_BLOBS) not in blobs:
            raise _bad(f"'{name}' is not in its manifest")


def _line(commit: Commit, sequence: int, log_digest: str, previous: str) -> bytes:
    document = {
        "version": commit.originator_version,
        "sequence": sequence,
        "commit_id": commit.commit_id,
        "log_digest": log_digest,
        "previous": previous,
        "events": [_event(event) for event in commit.events],
    }
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def _event(event: Event) -> dict[str, Any]:
    return {
        "type": SHORT_NAMES[type(event)],
        "class_version": type(event).class_version,
        "data": _encode(event.model_dump()),
    }


def _read_lines(
    manifest: RecordingManifest, lines: Sequence[bytes]
) -> tuple[tuple[Commit, ...], tuple[int, ...], tuple[str, ...]]:
    commits: list[Commit] = []
    sequences: list[int] = []
    log_digests: list[str] = []
    digest = ""
    originator = f"{manifest.tenant}.{manifest.run_id}"
    for number, line in enumerate(lines, 1):
        try:
            document = orjson.loads(line)
            if document["previous"] != digest or document["version"] != number:
                raise _bad(f"commit {number} does not follow the one before it")
            digest = hashlib.sha256(line).hexdigest()
            events = tuple(_read(item) for item in document["events"])
            commit_id = valid_token(document["commit_id"], field="bundle")
            sequence = int(document["sequence"])
            log_digests.append(str(document["log_digest"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise _bad(f"commit {number} cannot be read") from error
        commits.append(
            Commit(
                originator_id=originator,
                originator_version=number,
                commit_id=commit_id,
                events=events,
            )
        )
        sequences.append(sequence)
    if not commits or (len(commits), digest) != (manifest.commits, manifest.digest):
        raise _bad("commits are missing at its end")
    if not all(commit.events for commit in commits):
        raise _bad("a commit has no events")
    return tuple(commits), tuple(sequences), tuple(log_digests)


def _read(item: Mapping[str, Any]) -> Event:
    name, version = item["type"], item["class_version"]
    if name not in EVENT_TYPES or version not in range(1, EVENT_TYPES[name].class_version + 1):
        raise _bad(f"it holds an event {name!s:.80} version {version!s:.20}, unknown here")
    return read_event(name, version, _decode(item["data"]))


def _encode(value: Any) -> Any:
    """Return JSON that holds all that MessagePack does: bytes, and numbers that are none."""
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(value)}
    if isinstance(value, Mapping):
        encoded = {key: _encode(item) for key, item in value.items()}
        if len(value) == 1 and next(iter(value)) in {_BYTES, _FLOAT, _LITERAL}:
            return {_LITERAL: encoded}
        return encoded
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any) -> Any:
    """Undo `_encode`."""
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        key, item = next(iter(value.items()))
        if key == _BYTES:
            return base64.b64decode(item, validate=True)
        if key == _FLOAT:
            return float(item)
        if key == _LITERAL and isinstance(item, dict):
            return {name: _decode(part) for name, part in item.items()}
    return {key: _decode(item) for key, item in value.items()}

"""Bundles: what goes in comes out, and what was altered is refused."""

import io
import math
import zipfile
from collections.abc import Callable

import orjson
import pytest

from events.codec import Commit
from events.recording import Recording, pack_recording, unpack_recording
from events.subjects import RunKey
from schemas.errors import InvalidArgument
from tests.conformance.golden.make import histories


ODD = {
    "bytes": {"$binary": {"media_type": "audio/wav", "data": b"\x00\xff"}},
    "deep": [{"$tensor": {"datatype": "FP32", "shape": [1], "data": b"1234"}}],
    "looks": {"$bytes": "not base64"},
    "like": {"$literal": {"$float": "x"}},
    "inf": math.inf,
    "text": "Grüße, 世界 \u2028",
    "large": 2**63,
}
BLOB = b"a picture"
SHA256 = "62e9b1ebfb7dc15a1f6fe4ff87bd57d7b5e9af8cc9d98ae05e8ab2d1e6ea5dd0"


def recording(name: str = "completed_parallel_join") -> Recording:
    """Return a run of golden events, a commit for each."""
    events = histories()[name]
    commits = tuple(
        Commit(
            originator_id="default.r1",
            originator_version=number,
            commit_id=f"c{number}",
            events=(event,),
        )
        for number, event in enumerate(events, 1)
    )
    numbers = range(1, len(commits) + 1)
    return Recording(
        key=RunKey("default", "r1"),
        commits=commits,
        sequences=tuple(numbers),
        log_digests=tuple(f"{number:064x}" for number in numbers),
    )


def changed(packed: bytes, name: str, change: Callable[[bytes], bytes | None]) -> bytes:
    """Return a bundle with one file changed, left out, or added."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed)) as old, zipfile.ZipFile(file, "w") as new:
        members = {item: old.read(item) for item in old.namelist()}
        data = change(members.pop(name, b""))
        if data is not None:
            members[name] = data
        for item, content in members.items():
            new.writestr(item, content)
    return file.getvalue()


@pytest.mark.parametrize("name", sorted(histories()))
def test_every_golden_run_survives(name: str) -> None:
    """What is read is what was written, and folds to the same state."""
    run = recording(name)
    again = unpack_recording(pack_recording(run, 1.0))
    assert run == again
    assert run.history().state() == again.history().state()


def test_every_kind_of_value_survives() -> None:
    """Bytes anywhere, numbers that are none, and JSON that looks like our own marks."""
    run = recording()
    first = run.commits[0].events[0].model_copy(update={"inputs": ODD})
    commit = run.commits[0].model_copy(update={"events": (first,)})
    run = Recording(run.key, (commit,), (1,), ("0" * 64,))
    assert run == unpack_recording(pack_recording(run, 1.0))


def test_the_same_run_gives_the_same_bytes() -> None:
    """A bundle holds no time but the one it is given."""
    assert pack_recording(recording(), 1.0) == pack_recording(recording(), 1.0)


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("commits.ndjson", lambda data: data.replace(b"a cat", b"a dog"), "does not follow"),
        ("commits.ndjson", lambda data: data.replace(b"left", b"lost", 1), "does not follow"),
        ("commits.ndjson", lambda data: data[: data.rindex(b'{"commit_id')], "missing"),
        ("commits.ndjson", lambda data: data[data.index(b"\n") + 1 :], "does not follow"),
        ("commits.ndjson", lambda _: b"[1]\n", "cannot be read"),
        ("commits.ndjson", lambda _: None, "damaged"),
        ("manifest.json", lambda _: b"{}", "manifest"),
        ("manifest.json", lambda data: data.replace(b"recording.v1", b"recording.v9"), "manifest"),
        ("../../etc/passwd", lambda _: b"x", "none of ours"),
        ("/abs", lambda _: b"x", "none of ours"),
        ("blobs/" + "0" * 64, lambda _: b"x", "not in its manifest"),
        ("definition.json", lambda _: b"{", "not JSON"),
    ],
)
def test_what_was_altered_is_refused(
    name: str, change: Callable[[bytes], bytes | None], why: str
) -> None:
    """Each alteration is found, and the error says which."""
    packed = changed(pack_recording(recording(), 1.0), name, change)
    with pytest.raises(InvalidArgument, match=why) as told:
        unpack_recording(packed)
    assert "bundle" == told.value.field


def test_blobs_are_what_their_names_say() -> None:
    """A blob comes back with its type; an altered one is refused."""
    run = recording()
    run = Recording(
        run.key, run.commits, run.sequences, run.log_digests, {SHA256: (BLOB, "image/png")}
    )
    with pytest.raises(InvalidArgument, match="altered"):
        unpack_recording(pack_recording(run, 1.0))


def test_no_bundle_and_too_much_of_one() -> None:
    """Any bytes, a foreign zip, a bomb: one clear error."""
    with pytest.raises(InvalidArgument, match="no bundle of ours"):
        unpack_recording(b"PK nonsense")
    with pytest.raises(InvalidArgument, match="unpacks to"):
        unpack_recording(pack_recording(recording(), 1.0), bytes_max=100)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("commits.ndjson", bytes(4 * 1024 * 1024))
    with pytest.raises(InvalidArgument, match="unpacks to"):
        unpack_recording(file.getvalue(), bytes_max=1024 * 1024)


def test_lines_are_readable_json() -> None:
    """Anybody can read a bundle: events by type, with their data."""
    with zipfile.ZipFile(io.BytesIO(pack_recording(recording(), 1.0))) as archive:
        line = orjson.loads(archive.read("commits.ndjson").splitlines()[0])
    assert ("RunStarted", 1) == (line["events"][0]["type"], line["events"][0]["class_version"])
    assert "meeting" == line["events"][0]["data"]["workflow"]

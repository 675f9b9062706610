"""From commits to stored bytes and back."""

import os
from typing import Any, ClassVar

import ormsgpack
import pytest
from eventsourcing.persistence import MapperDeserialisationError, StoredEvent

from events import catalog
from events.catalog import EVENT_TYPES, SHORT_NAMES, DomainEvent, NodeCompleted
from events.codec import (
    COMMIT_TOPIC,
    COMPRESS_OVER_BYTES,
    Commit,
    CommitMapper,
    SizeCompressor,
    read_event,
)
from events.commands import CancelRun, Command
from events.keys import cipher_of
from schemas.messages import Timings
from tests.support.runs import AWAY, BROKEN, answer, given, node, plan, start, tick


KEY = bytes(range(32))
WHOLE = plan(node("a"), node("b", "a"), node("c", "a"))


def commit(*events: Any) -> Commit:
    """Return a commit of events."""
    return Commit(
        originator_id="acme.r1", originator_version=3, commit_id="c3", events=tuple(events)
    )


def completed(text: str) -> NodeCompleted:
    """Return an event of any size."""
    return NodeCompleted(
        at=1.0,
        node_id="a",
        attempt=1,
        outputs={"text": text, "raw": {"$binary": {"media_type": "a/b", "data": b"\x00\xff"}}},
        model="echo",
        worker="text-1",
        timings=Timings(),
    )


HISTORIES: dict[str, list[Command]] = {
    "retried": [start(WHOLE), answer("a", at=1.0, error=AWAY), tick(2.0), answer("a", 2, at=3.0)],
    "failed": [start(WHOLE), answer("a", at=1.0, error=BROKEN)],
    "cancelled": [start(WHOLE), answer("a", at=1.0), CancelRun("enough", 2.0)],
    "completed": [start(WHOLE), *[answer(name, at=1.0) for name in "abc"]],
}


@pytest.mark.parametrize("cipher", [None, cipher_of(KEY)], ids=["plain", "encrypted"])
@pytest.mark.parametrize("name", HISTORIES)
def test_round_trip(name: str, cipher: Any) -> None:
    """Every kind of event comes back equal, encrypted or not."""
    mapper = CommitMapper(cipher)
    _, events = given(*HISTORIES[name])
    original = commit(*events)
    assert original == mapper.to_domain_event(mapper.to_stored_event(original))


def test_every_event_has_one_name_for_ever() -> None:
    """The registry is complete and its names are the classes' own."""
    ours = {kind for kind in DomainEvent.__subclasses__() if kind.__module__ == catalog.__name__}
    assert ours == set(EVENT_TYPES.values())
    assert EVENT_TYPES == {kind.__name__: kind for kind in EVENT_TYPES.values()}
    assert EVENT_TYPES == {SHORT_NAMES[kind]: kind for kind in EVENT_TYPES.values()}


def test_large_commits_shrink() -> None:
    """What is long and repetitive is stored compressed; what is short is not."""
    mapper = CommitMapper()
    small = mapper.to_stored_event(commit(completed("x"))).state
    large = mapper.to_stored_event(commit(completed("x" * 100_000))).state
    assert b"\0" == small[:1]
    assert b"\1" == large[:1]
    assert len(large) < 2000


@pytest.mark.parametrize("size", [0, 1, COMPRESS_OVER_BYTES, COMPRESS_OVER_BYTES + 1, 1_000_000])
def test_compressor_round_trip(size: int) -> None:
    """Compression loses nothing at any size, even of noise."""
    data = os.urandom(size)
    assert data == SizeCompressor().decompress(SizeCompressor().compress(data))


def test_encrypted_bytes_show_nothing() -> None:
    """Stored bytes of an encrypted commit hold none of its words."""
    stored = CommitMapper(cipher_of(KEY)).to_stored_event(commit(completed("a secret word")))
    assert b"secret" not in stored.state
    assert b"NodeCompleted" not in stored.state


def test_another_key_reads_nothing() -> None:
    """A tenant's bytes under another tenant's key are an error, not garbage."""
    stored = CommitMapper(cipher_of(KEY)).to_stored_event(commit(completed("x")))
    with pytest.raises(MapperDeserialisationError, match="commit 3 of acme"):
        CommitMapper(cipher_of(bytes(32))).to_domain_event(stored)


@pytest.mark.parametrize("position", [0, 5, 20, -1])
def test_altered_ciphertext_is_refused(position: int) -> None:
    """One flipped bit anywhere is detected."""
    mapper = CommitMapper(cipher_of(KEY))
    stored = mapper.to_stored_event(commit(completed("x")))
    state = bytearray(stored.state)
    state[position] ^= 1
    with pytest.raises(MapperDeserialisationError):
        mapper.to_domain_event(StoredEvent("acme.r1", 3, COMMIT_TOPIC, bytes(state)))


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"commit_id": "c", "events": [["Unknown", 1, {}]]},
        {"commit_id": "c", "events": [["RunCancelled", 1]]},
        {"commit_id": "c", "events": [["RunCancelled", 1, {"at": "soon"}]]},
        {"commit_id": "c", "events": [["RunCancelled", 1, {}]]},
        {"commit_id": "c", "events": 7},
        {"events": []},
    ],
)
def test_other_documents_are_refused(document: object) -> None:
    """Bytes that are no commit raise the library's one error for that."""
    state = b"\0" + ormsgpack.packb(document)
    with pytest.raises(MapperDeserialisationError):
        CommitMapper().to_domain_event(StoredEvent("acme.r1", 1, COMMIT_TOPIC, state))


@pytest.mark.parametrize("state", [b"", b"\0", b"\1", b"\1abc", b"\0\xc1", b"\2\x80"])
def test_other_bytes_are_refused(state: bytes) -> None:
    """So do bytes that are not even MessagePack."""
    with pytest.raises(MapperDeserialisationError):
        CommitMapper().to_domain_event(StoredEvent("acme.r1", 1, COMMIT_TOPIC, state))


class Renamed(DomainEvent):
    """An event whose field got another name in version 2 and a unit in version 3."""

    class_version: ClassVar[int] = 3
    wait_ms: float

    @staticmethod
    def upcast_v1_v2(state: dict[str, Any]) -> None:
        """`pause` became `wait`."""
        state["wait"] = state.pop("pause")

    @staticmethod
    def upcast_v2_v3(state: dict[str, Any]) -> None:
        """Seconds became milliseconds."""
        state["wait_ms"] = state.pop("wait") * 1000


@pytest.mark.parametrize(
    ("version", "state"),
    [
        (1, {"at": 1.0, "pause": 2.0}),
        (2, {"at": 1.0, "wait": 2.0}),
        (3, {"at": 1.0, "wait_ms": 2000.0}),
    ],
)
def test_old_versions_are_upcast(
    version: int, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stored event passes every upcaster between its version and today's."""
    monkeypatch.setitem(EVENT_TYPES, "Renamed", Renamed)
    found: DomainEvent = read_event("Renamed", version, state)
    assert Renamed(at=1.0, wait_ms=2000.0) == found

"""From commits to stored bytes and back: the `eventsourcing` mapper with our transcoder.

A commit is what one decision appended: 1..n events. It is one `StoredEvent`, so its state passes
transcoder, compressor and the tenant's cipher once.
"""

import zlib
from typing import Any, cast

import ormsgpack
from eventsourcing.persistence import (
    Cipher,
    Compressor,
    Mapper,
    MapperDeserialisationError,
    StoredEvent,
    Transcoder,
)
from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import override

from events.catalog import EVENT_TYPES, SHORT_NAMES, Event


COMMIT_TOPIC = "clawdbot:commit"
COMPRESS_OVER_BYTES = 2048
RawEvent = tuple[str, dict[str, Any]]
"""Short name and state of one event."""


class Commit(BaseModel):
    """The events of one decision; also a domain event of the `eventsourcing` library."""

    model_config = ConfigDict(frozen=True)

    originator_id: str
    """`<tenant>.<run>`."""
    originator_version: int
    """1 for the first commit of a run; no gaps."""
    commit_id: str
    events: tuple[Event, ...]


class MsgpackTranscoder(Transcoder):
    """MessagePack: bytes stay bytes."""

    @override
    def encode(self, obj: Any) -> bytes:
        """Return MessagePack."""
        return ormsgpack.packb(obj)

    @override
    def decode(self, data: bytes) -> Any:
        """Read MessagePack."""
        return ormsgpack.unpackb(data)


class SizeCompressor(Compressor):
    """zlib for what is large enough to gain; one leading byte says which."""

    @override
    def compress(self, data: bytes) -> bytes:
        """Return `0` + data, or `1` + deflated data."""
        if len(data) <= COMPRESS_OVER_BYTES:
            return b"\0" + data
        return b"\1" + zlib.compress(data, 1)

    @override
    def decompress(self, data: bytes) -> bytes:
        """Undo `compress`."""
        return zlib.decompress(data[1:]) if data[:1] == b"\1" else data[1:]


class CommitMapper(Mapper[str]):
    """Maps commits, each event under its registered short name and through its upcasters."""

    def __init__(self, cipher: Cipher | None = None) -> None:
        super().__init__(MsgpackTranscoder(), SizeCompressor(), cipher)

    @override
    def to_stored_event(self, domain_event: Any) -> StoredEvent:
        """Return a commit as stored bytes."""
        commit = cast("Commit", domain_event)
        events = [
            [SHORT_NAMES[type(event)], type(event).class_version, event.model_dump()]
            for event in commit.events
        ]
        state = self.transcoder.encode({"commit_id": commit.commit_id, "events": events})
        assert self.compressor is not None
        state = self.compressor.compress(state)
        if self.cipher:
            state = self.cipher.encrypt(state)
        return StoredEvent(commit.originator_id, commit.originator_version, COMMIT_TOPIC, state)

    @override
    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        """Return the commit behind stored bytes.

        Raises:
            MapperDeserialisationError: Altered bytes, a wrong key, or an unknown event.
        """
        try:
            document = self._document(stored_event.state)
            commit_id = document["commit_id"]
            events = tuple(read_event(*item) for item in document["events"])
        except (ValueError, KeyError, TypeError, zlib.error, ValidationError) as error:
            raise MapperDeserialisationError(
                f"commit {stored_event.originator_version} of {stored_event.originator_id} "
                f"cannot be read"
            ) from error
        return Commit(
            originator_id=str(stored_event.originator_id),
            originator_version=stored_event.originator_version,
            commit_id=commit_id,
            events=events,
        )

    def raw_events(self, state: bytes) -> list[RawEvent]:
        """Return names and states of a commit's events, upcast but not validated: for projections.

        Raises:
            MapperDeserialisationError: Altered bytes, a wrong key, or an unknown event.
        """
        try:
            return [_raw_event(*item) for item in self._document(state)["events"]]
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise MapperDeserialisationError("a commit cannot be read") from error

    def _document(self, state: bytes) -> Any:
        if self.cipher:
            state = self.cipher.decrypt(state)
        assert self.compressor is not None
        return self.transcoder.decode(self.compressor.decompress(state))


def _raw_event(name: str, version: int, state: dict[str, Any]) -> RawEvent:
    kind = EVENT_TYPES[name]
    while version < kind.class_version:
        getattr(kind, f"upcast_v{version}_v{version + 1}")(state)
        version += 1
    return name, state


def read_event(name: str, version: int, state: dict[str, Any]) -> Event:
    """Return the event behind its stored state, through the upcasters it needs.

    Raises:
        KeyError: No event has this name.
        ValidationError: The state does not fit.
    """
    _, state = _raw_event(name, version, state)
    return cast("Event", EVENT_TYPES[name].model_validate(state))

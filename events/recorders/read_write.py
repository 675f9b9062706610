"""Read-write recorders on a stream of their own: one message for each stored event.

An event's subject ends in its originator and version, and every message expects its subject to be
unused; so (originator, version) is unique whoever writes, and several events are one atomic batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    DataError,
    IntegrityError,
    Notification,
    ProgrammingError,
    StoredEvent,
    Subscription,
    Tracking,
)
from nats.aio.client import Client as Nats
from nats.js.api import DiscardPolicy, RePublish, StorageType, StreamConfig
from typing_extensions import override

from events.jetstream import StoredCommit
from events.recorders.bridge import Bridge
from events.recorders.publishing import BATCH_MAX, INSERT_ID, Record, insert
from events.recorders.reading import (
    JetStreamSubscription,
    Window,
    notifications,
    read_all,
    read_last,
    select,
)
from events.streams import MIB, ensure_stream
from events.subjects import decode, encode, record
from schemas.ids import DEFAULT_TENANT, new_id


TOPIC, KIND = "Clawdbot-Topic", "Clawdbot-Originator-Kind"


@dataclass(frozen=True)
class RecordLog:
    """One log of an `eventsourcing` application, in a stream of its own."""

    name: str
    """One subject token."""
    tenant: str = DEFAULT_TENANT
    replicas: int = 1
    bytes_max: int = 1024 * MIB
    """Size at which the stream refuses more, bytes."""
    create: bool = True
    """Whether to create the stream when it is missing."""
    stream: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stream", f"RECORD={encode(self.tenant)}={encode(self.name)}")

    def subject(self, kind: str, *tokens: str) -> str:
        """Return a subject of this log."""
        return record(self.tenant, encode(self.name), kind, *tokens)

    def event(self, originator_id: UUID | str, version: int) -> str:
        """Return the one subject an event can have."""
        return self.subject("event", encode(str(originator_id)), str(version))

    def config(self) -> StreamConfig:
        """Return the stream's configuration."""
        return StreamConfig(
            name=self.stream,
            subjects=[self.subject("event", "*", "*"), self.subject("tracking", "*")],
            storage=StorageType.FILE,
            num_replicas=self.replicas,
            discard=DiscardPolicy.NEW,
            max_bytes=self.bytes_max,
            allow_direct=True,
            allow_atomic=True,
            republish=RePublish(
                src=self.subject("event", "*", "*"),
                dest=self.subject("live", "{{wildcard(1)}}", "{{wildcard(2)}}"),
                headers_only=True,
            ),
        )


class JetStreamAggregateRecorder(AggregateRecorder):
    """Keeps sequences of events, such as snapshots.

    Versions of one originator are expected to be inserted in rising order, as aggregates do: `gt`
    starts to read behind the message of that version.
    """

    def __init__(self, bridge: Bridge, log: RecordLog) -> None:
        self._bridge = bridge
        self._log = log
        if log.create:
            bridge.run(lambda nc: ensure_stream(nc.jetstream(), log.config()))

    @override
    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        """Store events, all or none.

        Raises:
            IntegrityError: A version of an originator is used already.
            DataError: More than BATCH_MAX events.
            OperationalError: NATS does not answer, refused, or has no room.
        """
        self._insert(stored_events, kwargs.get("tracking"))
        return None

    def _insert(
        self, stored_events: Sequence[StoredEvent], tracking: Tracking | None = None
    ) -> list[int]:
        records = self._records(stored_events, tracking)
        if not records:
            return []
        if len(records) > BATCH_MAX:
            raise DataError(f"at most {BATCH_MAX} events can be stored at once")
        if len({item.subject for item in records}) < len(records):
            raise IntegrityError("the same version of an originator is there twice")
        flights = self._bridge.flights
        last = self._bridge.run(lambda nc: insert(nc, self._log.stream, records, flights))
        return list(range(last - len(records) + 1, last + 1))[: len(stored_events)]

    def _records(
        self, stored_events: Sequence[StoredEvent], tracking: Tracking | None
    ) -> list[Record]:
        if tracking is not None:
            raise ProgrammingError("only a process recorder keeps positions")
        insert_id = new_id()
        return [
            Record(
                self._log.event(item.originator_id, item.originator_version),
                item.state,
                {
                    TOPIC: item.topic,
                    KIND: "uuid" if isinstance(item.originator_id, UUID) else "text",
                    INSERT_ID: insert_id,
                },
            )
            for item in stored_events
        ]

    @override
    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        """Return an originator's events."""
        subject = self._log.subject("event", encode(str(originator_id)), "*")

        async def read(nc: Nats) -> list[StoredCommit]:
            if desc and limit == 1 and gt is None and lte is None:
                last = await read_last(nc, self._log.stream, subject)
                return [] if last is None else [last]
            start = 1
            if gt is not None:
                known = await read_last(nc, self._log.stream, self._log.event(originator_id, gt))
                start = 1 if known is None else known.sequence + 1
            return await read_all(nc, self._log.stream, subject, start=start)

        events = [_stored_event(item) for item in self._bridge.run(read)]
        return select(events, gt=gt, lte=lte, desc=desc, limit=limit)


class JetStreamApplicationRecorder(JetStreamAggregateRecorder, ApplicationRecorder):
    """Keeps an application's events; a notification's id is its sequence in the stream."""

    @override
    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        """Store events, all or none, and return their notification ids."""
        return self._insert(stored_events, kwargs.get("tracking"))

    @override
    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        """Return events of all originators in the order of the stream."""
        window = Window.of(start, limit, stop, topics, inclusive_of_start=inclusive_of_start)
        return notifications(window, self._read, _notification)

    def _read(self, start: int, limit: int) -> list[StoredCommit]:
        subject = self._log.subject("event", "*", "*")
        return self._bridge.run(
            lambda nc: read_all(nc, self._log.stream, subject, start=start, limit=limit)
        )

    @override
    def max_notification_id(self) -> int | None:
        """Return the newest event's id; None when there is none."""
        subject = self._log.subject("event", "*", "*")
        last = self._bridge.run(lambda nc: read_last(nc, self._log.stream, subject))
        return None if last is None else last.sequence

    @override
    def subscribe(
        self, gt: int | None = None, topics: Sequence[str] = ()
    ) -> Subscription[ApplicationRecorder]:
        """Return an iterator over events: those recorded, then those to come."""
        live = self._log.subject("live", "*", "*")
        return JetStreamSubscription(self, self._bridge, live, gt=gt, topics=topics)


def _identity(item: StoredCommit) -> tuple[UUID | str, int, str]:
    *_, token, version = item.subject.split(".")
    text = decode(token)
    originator_id = UUID(text) if item.headers.get(KIND) == "uuid" else text
    return originator_id, int(version), item.headers[TOPIC]


def _stored_event(item: StoredCommit) -> StoredEvent:
    return StoredEvent(*_identity(item), state=item.data)


def _notification(item: StoredCommit) -> Notification:
    return Notification(*_identity(item), state=item.data, id=item.sequence)

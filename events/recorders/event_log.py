"""The mesh's own log, for readers that speak the `eventsourcing` library."""

from collections.abc import Sequence
from typing import Any, Never
from uuid import UUID

from eventsourcing.persistence import (
    ApplicationRecorder,
    DataError,
    Notification,
    NotSupportedError,
    StoredEvent,
    Subscription,
)
from typing_extensions import override

from events.codec import COMMIT_TOPIC
from events.jetstream import StoredCommit
from events.recorders.bridge import Bridge
from events.recorders.reading import (
    JetStreamSubscription,
    Window,
    notifications,
    read_all,
    read_last,
    select,
)
from events.streams import EVENTS
from events.subjects import RunKey, event, every, run_key


class EventLogRecorder(ApplicationRecorder):
    """Reads commits: originator `<tenant>.<run>`, notification id = stream sequence (gaps occur).

    The state stays as it is stored: read it through `events.codec.CommitMapper` with the tenant's
    cipher. Tombstones of retired runs are not shown.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    @override
    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Never:
        """Refuse: only the orchestrator writes the log.

        Raises:
            NotSupportedError: Always.
        """
        raise NotSupportedError("the mesh's log is read-only here; the orchestrator writes it")

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
        """Return the commits of one run.

        Raises:
            DataError: The originator id is not `<tenant>.<run>`.
        """
        tenant, dot, run_id = str(originator_id).partition(".")
        if not (tenant and dot and run_id):
            raise DataError("an originator of the mesh's log is <tenant>.<run>")
        subject = event(RunKey(tenant, run_id))
        stored = self._bridge.run(lambda nc: read_all(nc, EVENTS, subject))
        events = [_stored_event(item) for item in stored if item.retired_at is None]
        return select(events, gt=gt, lte=lte, desc=desc, limit=limit)

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
        """Return commits of all runs in the order of the stream."""
        window = Window.of(start, limit, stop, topics, inclusive_of_start=inclusive_of_start)
        if topics and COMMIT_TOPIC not in topics:
            return []
        return notifications(window, self._read, _notification)

    def _read(self, start: int, limit: int) -> list[StoredCommit]:
        return self._bridge.run(
            lambda nc: read_all(nc, EVENTS, every("event", "*.*"), start=start, limit=limit)
        )

    @override
    def max_notification_id(self) -> int | None:
        """Return the sequence of the log's newest message, tombstones too; None when empty."""
        last = self._bridge.run(lambda nc: read_last(nc, EVENTS, every("event", "*.*")))
        return None if last is None else last.sequence

    @override
    def subscribe(
        self, gt: int | None = None, topics: Sequence[str] = ()
    ) -> Subscription[ApplicationRecorder]:
        """Return an iterator over commits: those recorded, then those to come."""
        return JetStreamSubscription(self, self._bridge, every("live", "*.*"), gt=gt, topics=topics)


def _originator(item: StoredCommit) -> str:
    key = run_key(item.subject)
    return f"{key.tenant}.{key.run_id}"


def _stored_event(item: StoredCommit) -> StoredEvent:
    return StoredEvent(_originator(item), item.version, COMMIT_TOPIC, item.data)


def _notification(item: StoredCommit) -> Notification | None:
    if item.retired_at is not None:
        return None
    return Notification(_originator(item), item.version, COMMIT_TOPIC, item.data, item.sequence)

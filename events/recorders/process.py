"""Tracking: how far an application has followed another one, stored with its own events."""

import re
from collections.abc import Sequence

from eventsourcing.persistence import (
    IntegrityError,
    ProcessRecorder,
    StoredEvent,
    Tracking,
    TrackingRecorder,
)
from typing_extensions import override

from events.recorders.bridge import Bridge
from events.recorders.publishing import INSERT_ID, Record, insert
from events.recorders.read_write import JetStreamApplicationRecorder, RecordLog
from events.recorders.reading import read_last
from events.streams import ensure_stream
from events.subjects import encode
from schemas.ids import new_id


_NUMBER = re.compile(rb"[0-9]+")


class JetStreamTrackingRecorder(TrackingRecorder):
    """Keeps one message after another for each application followed."""

    def __init__(self, bridge: Bridge, log: RecordLog) -> None:
        self._bridge = bridge
        self._log = log
        if log.create:
            bridge.run(lambda nc: ensure_stream(nc.jetstream(), log.config()))

    @override
    def insert_tracking(self, tracking: Tracking) -> None:
        """Record a position.

        Raises:
            IntegrityError: It is not above the one recorded, or somebody else was first.
            OperationalError: NATS does not answer or refused.
        """
        item = tracking_record(self._bridge, self._log, tracking)
        self._bridge.run(lambda nc: insert(nc, self._log.stream, [item], self._bridge.flights))

    @override
    def max_tracking_id(self, application_name: str) -> int | None:
        """Return the position recorded for an application."""
        return _position(self._bridge, self._log, application_name)[0]


class JetStreamProcessRecorder(JetStreamApplicationRecorder, ProcessRecorder):
    """Keeps events and the position they come from in one atomic batch."""

    @override
    def _records(
        self, stored_events: Sequence[StoredEvent], tracking: Tracking | None
    ) -> list[Record]:
        records = super()._records(stored_events, None)
        if tracking is not None:
            records.append(tracking_record(self._bridge, self._log, tracking))
        return records

    @override
    def insert_tracking(self, tracking: Tracking) -> None:
        """Record a position without events."""
        self._insert([], tracking)

    @override
    def max_tracking_id(self, application_name: str) -> int | None:
        """Return the position recorded for an application."""
        return _position(self._bridge, self._log, application_name)[0]


def tracking_record(bridge: Bridge, log: RecordLog, tracking: Tracking) -> Record:
    """Return the message that records a position after the one there is.

    Raises:
        IntegrityError: The position is not above the one recorded.
    """
    position, sequence = _position(bridge, log, tracking.application_name)
    if position is not None and position >= tracking.notification_id:
        raise IntegrityError(
            f"position {tracking.notification_id} of {tracking.application_name} is not above "
            f"{position}, which is recorded"
        )
    return Record(
        log.subject("tracking", encode(tracking.application_name)),
        str(tracking.notification_id).encode(),
        {INSERT_ID: new_id()},
        sequence,
    )


def _position(bridge: Bridge, log: RecordLog, application_name: str) -> tuple[int | None, int]:
    subject = log.subject("tracking", encode(application_name))
    last = bridge.run(lambda nc: read_last(nc, log.stream, subject))
    if last is None:
        return None, 0
    if not _NUMBER.fullmatch(last.data):
        raise IntegrityError(f"the position of {application_name} is damaged")
    return int(last.data), last.sequence

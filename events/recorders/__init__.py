"""Recorders of the `eventsourcing` library over JetStream; services never use them (ADR-0006).

`PERSISTENCE_MODULE=events.recorders` gives an `eventsourcing` application the read-write ones;
`EventLogRecorder` lets the library read the mesh's own log.
"""

from events.recorders.bridge import Bridge
from events.recorders.event_log import EventLogRecorder
from events.recorders.factory import JetStreamFactory
from events.recorders.process import JetStreamProcessRecorder, JetStreamTrackingRecorder
from events.recorders.read_write import (
    JetStreamAggregateRecorder,
    JetStreamApplicationRecorder,
    RecordLog,
)


__all__ = [
    "Bridge",
    "EventLogRecorder",
    "JetStreamAggregateRecorder",
    "JetStreamApplicationRecorder",
    "JetStreamFactory",
    "JetStreamProcessRecorder",
    "JetStreamTrackingRecorder",
    "RecordLog",
]

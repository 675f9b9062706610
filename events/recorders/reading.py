"""What the recorders share: consistent reads and the subscription."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eventsourcing.persistence import (
    ApplicationRecorder,
    ListenNotifySubscription,
    Notification,
    StoredEvent,
)
from nats.aio.client import Client as Nats
from nats.js.errors import NotFoundError
from typing_extensions import override

from events.jetstream import READ_BATCH, StoredCommit, read_subject
from events.recorders.bridge import Bridge


async def read_all(
    nc: Nats, stream: str, subject: str, *, start: int = 1, limit: int | None = None
) -> list[StoredCommit]:
    """Read a filter in order, and ask the stream's leader whether that was really the end.

    A direct get may be answered by a replica that is behind; the leader is not.
    """
    found: list[StoredCommit] = []
    while limit is None or len(found) < limit:
        rest = None if limit is None else limit - len(found)
        found += await read_subject(nc, stream, subject, start=start, limit=rest)
        if found:
            start = found[-1].sequence + 1
        if limit is not None and len(found) >= limit:
            break
        following = await _of_leader(nc, stream, subject, start)
        if following is None:
            break
        found.append(following)
        start = following.sequence + 1
    return found


async def read_last(nc: Nats, stream: str, subject: str) -> StoredCommit | None:
    """Return the newest message of a filter, as the leader has it."""
    return await _of_leader(nc, stream, subject, None)


async def _of_leader(nc: Nats, stream: str, subject: str, start: int | None) -> StoredCommit | None:
    try:
        raw = await nc.jetstream().get_msg(
            stream, seq=start, subject=subject, next=start is not None
        )
    except NotFoundError:
        return None
    assert raw.seq is not None
    return StoredCommit(raw.subject or "", raw.seq, raw.headers or {}, raw.data or b"")


def select(
    events: list[StoredEvent], *, gt: int | None, lte: int | None, desc: bool, limit: int | None
) -> list[StoredEvent]:
    """Return the events the library asked for, in the order it asked for."""
    wanted = [
        event
        for event in events
        if (gt is None or event.originator_version > gt)
        and (lte is None or event.originator_version <= lte)
    ]
    wanted.sort(key=lambda event: event.originator_version, reverse=desc)
    return wanted if limit is None else wanted[:limit]


@dataclass(frozen=True)
class Window:
    """Which notifications are wanted."""

    first: int
    """Lowest id, >= 1."""
    limit: int
    stop: int | None = None
    """Highest id."""
    topics: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        start: int | None,
        limit: int,
        stop: int | None,
        topics: Sequence[str],
        *,
        inclusive_of_start: bool,
    ) -> "Window":
        """Read the library's way of saying it."""
        first = 1 if start is None else start + (not inclusive_of_start)
        return cls(max(first, 1), limit, stop, topics)


def notifications(
    window: Window,
    read: Callable[[int, int], list[StoredCommit]],
    convert: Callable[[StoredCommit], Notification | None],
) -> list[Notification]:
    """Page through a log until the window is full or the log ends.

    Args:
        window: What is wanted.
        read: Returns up to `limit` messages from a sequence on: `read(start, limit)`.
        convert: Returns a message's notification, or None for a message that is none.
    """
    found: list[Notification] = []
    start = window.first
    while len(found) < window.limit and (window.stop is None or start <= window.stop):
        size = min(READ_BATCH, window.limit - len(found))
        page = read(start, size)
        shown = [item for item in map(convert, page) if item is not None]
        found += [
            item
            for item in shown
            if (window.stop is None or item.id <= window.stop)
            and (not window.topics or item.topic in window.topics)
        ]
        if len(page) < size:
            break
        start = page[-1].sequence + 1
    return found


class JetStreamSubscription(ListenNotifySubscription[ApplicationRecorder]):
    """Woken by what the server republishes after storing; reads the rest by sequence."""

    def __init__(
        self,
        recorder: ApplicationRecorder,
        bridge: Bridge,
        live_subject: str,
        *,
        gt: int | None = None,
        topics: Sequence[str] = (),
    ) -> None:
        self._end: Callable[[], None] | None = None
        super().__init__(recorder=recorder, gt=gt, topics=topics)
        try:
            self._end = bridge.listen(live_subject, self._has_been_notified)
        except BaseException:
            super().stop()
            raise
        self._has_been_notified.set()  # something may have come before we listened

    @override
    def __exit__(self, *args: object, **kwargs: Any) -> None:
        try:
            super().__exit__(*args, **kwargs)
        finally:
            end, self._end = self._end, None
            if end is not None:
                end()

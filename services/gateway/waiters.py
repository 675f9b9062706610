"""Following runs: `live` says when to look, the log says what is true.

One subscription serves every waiter of the process. A waiter registers first, reads the log next,
and then takes what comes; a gap in the versions, a reconnect or a long silence sends it back to
the log.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from events.catalog import TERMINAL
from events.chain import check_link
from events.codec import Commit
from events.express import Frame
from events.jetstream import JetStreamEventStore, StoredCommit
from events.store import EMPTY, Head, retired
from events.subjects import RunKey, run_key
from schemas.errors import ResourceExhausted, RetryableError
from schemas.messages import Header
from services.runtime import Clock
from services.telemetry import get_logger


log = get_logger()

TOLD_MAX = 1024
UNDER_WAY = {"running", "paused"}
RETRY_S = 0.25


@dataclass(frozen=True)
class Landed:
    """A commit and its place in the log; decoded when it is looked at."""

    sequence: int
    is_last: bool
    """Whether the run is over after it."""
    decode: Callable[[], Commit]

    @cached_property
    def commit(self) -> Commit:
        """The commit.

        Raises:
            DataLoss: It cannot be read.
        """
        return self.decode()


class Feed:
    """What one waiter is told; None means: read the log."""

    def __init__(self, key: RunKey) -> None:
        self.key = key
        self._told: deque[StoredCommit | None] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def tell(self, item: StoredCommit | None) -> None:
        """Put an item in line; what does not fit is read from the log later."""
        if len(self._told) < TOLD_MAX:
            self._told.append(item)
        if self._waiter is not None:
            _wake(self._waiter)

    async def next(self, patience_s: float) -> StoredCommit | None:
        """Return the next item, or None after a silence of `patience_s` seconds."""
        if not self._told:  # `asyncio.wait_for` would cost a task for each commit
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(patience_s, _wake, self._waiter)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        return self._told.popleft() if self._told else None


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


class Waiters:
    """Hands the live commits to those who wait for them.

    Args:
        store: The log.
        clock: Tells when a follower's time is over.
        waits_max: Feeds open at the same time.
        recheck_s: Silence after which a follower reads the log, seconds.
    """

    def __init__(
        self, store: JetStreamEventStore, clock: Clock, *, waits_max: int, recheck_s: float
    ) -> None:
        self._store = store
        self._clock = clock
        self._waits_max = waits_max
        self._recheck_s = recheck_s
        self._feeds: dict[RunKey, set[Feed]] = {}
        self._open = 0

    def on_live(self, frame: Frame) -> None:
        """Take one republished commit."""
        feeds = self._feeds.get(run_key(frame.subject))
        if feeds:
            stored = StoredCommit.of(frame)
            for feed in feeds:
                feed.tell(stored)

    def look_again(self) -> None:
        """Send everybody to the log, as after a reconnect."""
        for feeds in self._feeds.values():
            for feed in feeds:
                feed.tell(None)

    @contextmanager
    def feed(self, key: RunKey) -> Iterator[Feed]:
        """Register for a run's commits.

        Raises:
            ResourceExhausted: Too many wait already.
        """
        if self._open >= self._waits_max:
            raise ResourceExhausted("too many requests wait for runs; try again")
        feed = Feed(key)
        feeds = self._feeds.setdefault(key, set())
        feeds.add(feed)
        self._open += 1
        try:
            yield feed
        finally:
            self._open -= 1
            feeds.discard(feed)
            if not feeds:
                self._feeds.pop(key, None)

    async def follow(
        self, feed: Feed, *, read_first: bool = True, until: float = math.inf
    ) -> AsyncGenerator[Landed, None]:
        """Yield every commit of a run from the first one on, once and in order.

        Args:
            feed: Of the run; registered before anything was read or submitted.
            read_first: Whether the run may have commits already.
            until: When to stop waiting, seconds since the epoch.

        Raises:
            NotFound: The run was retired.
            DataLoss: The log is altered.
        """
        head, read = EMPTY, read_first
        while True:
            if read:
                landed, head = await self._read(feed.key, head, until)
                for item in landed:
                    yield item
            left_s = until - self._clock.now()
            if left_s <= 0:
                return
            stored = await feed.next(min(left_s, self._recheck_s))
            read = stored is None or stored.version > head.version + 1
            if stored is None or stored.version != head.version + 1:
                continue
            if stored.retired_at is not None:
                raise retired(feed.key, stored.retired_at)
            head = _link(feed.key, head, stored)
            yield Landed(
                stored.sequence,
                stored.headers.get(Header.STATUS) not in UNDER_WAY,
                await self._store.decoder(stored),
            )

    async def _read(self, key: RunKey, head: Head, until: float) -> tuple[list[Landed], Head]:
        """Read what follows `head`, trying until the log answers or the time is over."""
        while self._clock.now() < until:
            try:
                history = await self._store.load(key, head)
            except RetryableError as error:
                log.info("follow_postponed", run_id=key.run_id, error=error.message)
                await asyncio.sleep(RETRY_S)
                continue
            pairs = zip(history.commits, history.sequences, strict=True)
            return [_landed(commit, sequence) for commit, sequence in pairs], history.head
        return [], head


def _landed(commit: Commit, sequence: int) -> Landed:
    is_last = isinstance(commit.events[-1], TERMINAL)
    return Landed(sequence, is_last, lambda: commit)


def _link(key: RunKey, head: Head, stored: StoredCommit) -> Head:
    previous = stored.headers.get(Header.PREVIOUS, "")
    return check_link(key, head, stored.sequence, stored.version, previous, stored.data)

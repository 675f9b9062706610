"""Group commit: commits that queue while others are under way are stored as one.

With `sync_interval: always` the server flushes each message by itself, one after the other. An
atomic batch (ADR-50) is flushed once, but costs 3 to 4 ms before its first message. So a few
commits under way are plain publishes, and what queues behind them becomes a batch as soon as there
is enough of it to pay (ADR 0010).
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from nats.errors import Error as NatsError

from events.express import Express, Refused, encode_head, pub_ack
from schemas.ids import new_id


BATCH_MIN = 16
"""Fewer commits are cheaper one by one: a batch costs the server 1.7 ms, a commit 0.12 ms."""
BATCH_MAX = 512
"""The server takes 1000."""
BATCH_BYTES_MAX = 4 * 1024 * 1024
ALONE_S = 0.5
"""How long commits go one by one after a refused batch: another writer is at the same runs."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A commit and whoever waits for its sequence."""

    subject: str
    head: bytes
    body: bytes
    stored: "asyncio.Future[int]"

    def settle(self, outcome: int | BaseException) -> None:
        if self.stored.done():
            return  # nobody waits any more
        if isinstance(outcome, int):
            self.stored.set_result(outcome)
        else:
            self.stored.set_exception(outcome)


class GroupCommit:
    """Publishes commits, at most one of a run in a batch.

    Args:
        express: The way to the stream.
        batch_min: Commits from which on a batch pays; so many may be under way singly.
    """

    def __init__(self, express: Express, batch_min: int = BATCH_MIN) -> None:
        self._express = express
        self._batch_min = batch_min
        self._name = new_id()
        self.batches = 0
        """Batches sent so far."""
        self._queue: deque[_Waiting] = deque()
        self._singles = 0
        self._batch_under_way = False
        self._looking = False
        self._alone_until = 0.0

    def append(
        self, subject: str, headers: dict[str, str], body: bytes, *, alone: bool = False
    ) -> "asyncio.Future[int]":
        """Queue a commit and return the stream sequence to come; `alone` keeps it out of batches.

        The future raises Refused, or what `Express.ask` raises: then nothing is known.
        """
        stored: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        item = _Waiting(subject, encode_head(headers), body, stored)
        if alone or len(body) > BATCH_BYTES_MAX:
            self._send_single(item)
        else:
            self._queue.append(item)
            self._look()
        return stored

    def _look(self) -> None:
        """Look at the queue once this turn of the loop has filled it."""
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._looking = False
        if self._batch_under_way:
            return
        alone = asyncio.get_running_loop().time() < self._alone_until
        if len(self._queue) >= self._batch_min and not alone:
            self._send_batch(self._take())
            return
        while self._queue and (alone or self._singles < self._batch_min):
            self._send_single(self._queue.popleft())

    def _take(self) -> list[_Waiting]:
        """Take a batch out of the queue; what does not fit, or repeats a run, stays."""
        taken: dict[str, _Waiting] = {}
        left: deque[_Waiting] = deque()
        size = 0
        for item in self._queue:
            fits = len(taken) < BATCH_MAX and size + len(item.body) <= BATCH_BYTES_MAX
            if fits and item.subject not in taken:
                taken[item.subject] = item
                size += len(item.body)
            else:
                left.append(item)
        self._queue = left
        return list(taken.values())

    def _send_single(self, item: _Waiting) -> None:
        self._singles += 1

        def landed(answer: "asyncio.Future[bytes]") -> None:
            self._singles -= 1
            self._look()
            item.settle(_sequence(answer))

        self._express.ask(item.subject, item.body, item.head).add_done_callback(landed)

    def _send_batch(self, batch: list[_Waiting]) -> None:
        """Publish all but the last without a reply; the answer to the last is for all of them.

        Source: ADR-50, atomic batch publishing.
        """
        self._batch_under_way = True
        self.batches += 1

        def landed(answer: "asyncio.Future[bytes]") -> None:
            self._batch_under_way = False
            self._look()
            self._settle(batch, _sequence(answer))

        name = f"Nats-Batch-Id: {self._name}{self.batches}\r\nNats-Batch-Sequence: ".encode()
        try:
            for number, item in enumerate(batch[:-1], start=1):
                head = b"%b%b%d\r\n\r\n" % (item.head[:-2], name, number)
                self._express.publish(item.subject, item.body, head)
        except NatsError:
            # Too large, or the connection is gone: what was sent of the batch is never committed.
            self._batch_under_way = False
            self._split(batch)
            return
        last = batch[-1]
        head = b"%b%b%d\r\nNats-Batch-Commit: 1\r\n\r\n" % (last.head[:-2], name, len(batch))
        self._express.ask(last.subject, last.body, head).add_done_callback(landed)

    def _settle(self, batch: list[_Waiting], outcome: int | BaseException) -> None:
        if isinstance(outcome, Refused):
            self._split(batch)
            return
        for before_last, item in enumerate(reversed(batch)):
            item.settle(outcome - before_last if isinstance(outcome, int) else outcome)

    def _split(self, batch: list[_Waiting]) -> None:
        """Send a batch's commits one by one: one was in the way of all, each meets its own fate."""
        self._alone_until = asyncio.get_running_loop().time() + ALONE_S
        for item in batch:
            self._send_single(item)


def _sequence(answer: "asyncio.Future[bytes]") -> int | BaseException:
    error = answer.exception()
    if error is not None:
        return error
    try:
        sequence: int = pub_ack(answer.result())["seq"]
    except Refused as refusal:
        return refusal
    return sequence

"""Messages for one stream that travel together when they queue.

A stream on disk is synced for each message, and once more for its ack; each costs a header block,
an ack and a delivery besides. So while a message is on its way to the stream, those that come
meanwhile wait for its ack and leave as one bundle (`services.bundles`), each item under its own
subject: nobody waits where nothing else is under way. Whoever takes a bundle from the stream
handles each item as a message of its own (`services.consumer`).
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from events.express import Express, encode_head
from services.bundles import BYTES_MAX, HEAD, Item, pack
from services.runtime import Outgoing


PATIENCE_S = 0.05
"""Longest wait for an ack of the message before: it may be lost, or the server busy."""
LANES_KEPT = 1024
"""Subjects that are remembered while nothing of theirs is under way."""


class Together:
    """Publishes into one stream.

    Args:
        express: The way to the stream.
        items_max: Messages in one bundle; with 1 each leaves at once and alone.
    """

    def __init__(self, express: Express, items_max: int) -> None:
        self._express = express
        self._items_max = items_max
        self._waiting: deque[tuple[Outgoing, asyncio.Future[bytes]]] = deque()
        self._under_way = 0
        self._next: asyncio.Handle | None = None
        """When something leaves, besides with the next ack."""

    @property
    def is_busy(self) -> bool:
        """Whether anything waits or is under way."""
        return bool(self._waiting or self._under_way)

    def ask(self, message: Outgoing) -> "asyncio.Future[bytes]":
        """Publish a message, alone or with others, and return the answer to come.

        The future raises what that of `Express.ask` raises. One that is cancelled before its
        message left takes it back.
        """
        if self._items_max == 1:
            return self._express.ask(message.subject, message.data, encode_head(message.headers))
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((message, answer))
        self._plan()
        return answer

    def _plan(self) -> None:
        """See to it that what waits will leave."""
        loop = asyncio.get_running_loop()
        if self._next is not None or not self._waiting:
            return
        if self._under_way:
            self._next = loop.call_later(PATIENCE_S, self._leave)
        else:
            self._next = loop.call_soon(self._leave)  # with all that comes in this turn of the loop

    def _leave(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        batch = self._take()
        if batch:
            self._send(batch)
        self._plan()

    def _send(self, batch: "Sequence[tuple[Outgoing, asyncio.Future[bytes]]]") -> None:
        messages = [message for message, _ in batch]
        first = messages[0]
        if len(batch) == 1:
            body, head = first.data, encode_head(first.headers)
        else:
            body, head = pack([Item(one.subject, one.headers, one.data) for one in messages]), HEAD

        def landed(answer: "asyncio.Future[bytes]") -> None:
            self._under_way -= 1
            _settle([waiting for _, waiting in batch], answer)
            self._leave()

        self._under_way += 1
        self._express.ask(first.subject, body, head).add_done_callback(landed)

    def _take(self) -> "Sequence[tuple[Outgoing, asyncio.Future[bytes]]]":
        """Take what leaves next, in order; a large message is alone."""
        taken: list[tuple[Outgoing, asyncio.Future[bytes]]] = []
        size = 0
        while self._waiting and len(taken) < self._items_max:
            message, answer = self._waiting[0]
            size += len(message.data)
            if taken and size > BYTES_MAX:
                break
            self._waiting.popleft()
            if not answer.done():  # else nobody waits for it any more
                taken.append((message, answer))
        return taken


class TogetherBySubject:
    """Publishes into one stream; only messages of one subject travel together.

    So whoever reads one subject out of its turn reads nobody else's messages with it (ADR-0060).

    Args:
        express: The way to the stream.
        items_max: As of `Together`.
    """

    def __init__(self, express: Express, items_max: int) -> None:
        self._express = express
        self._items_max = items_max
        self._lanes: dict[str, Together] = {}

    def ask(self, message: Outgoing) -> "asyncio.Future[bytes]":
        """Publish a message as `Together.ask` does."""
        lane = self._lanes.get(message.subject)
        if lane is None:
            if len(self._lanes) >= LANES_KEPT:
                self._lanes = {name: lane for name, lane in self._lanes.items() if lane.is_busy}
            lane = self._lanes[message.subject] = Together(self._express, self._items_max)
        return lane.ask(message)


def _settle(waiting: "list[asyncio.Future[bytes]]", answer: "asyncio.Future[bytes]") -> None:
    """Give everybody the answer to the message that theirs was in."""
    error = answer.exception()
    for one in waiting:
        if one.done():
            continue
        if error is None:
            one.set_result(answer.result())
        else:
            one.set_exception(error)

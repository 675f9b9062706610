"""Handles what was read from a work queue out of its turn, and deletes it."""

import asyncio
from collections.abc import Iterator, Sequence

import orjson
from nats.aio.client import Client as Nats
from nats.errors import Error as NatsError
from typing_extensions import override

from events.express import Express, Frame, Refused, delivered, encode_head, pub_ack
from events.jetstream import StoredCommit
from services.consumer import NOT_ITS_FAULT, Consumer, Letter, Pull, items_of
from services.runtime import Delivery, Handler
from services.telemetry import get_logger


log = get_logger()

READ_HEADERS = {
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
}
"""What the server adds to a message that is read. Source: ADR-31."""


class Picker(Consumer):
    """Handles messages of a work queue that were read from it, whosever turn it is.

    One that is done with is deleted. What cannot be done now is left to the consumer, whose turn
    comes; it may also have it in work at the same time, so the handler takes the same one twice.
    """

    def __init__(self, nc: Nats, pull: Pull, handler: Handler) -> None:
        super().__init__(nc, pull, handler)
        self._deletions: dict[str, asyncio.Future[bytes]] = {}
        """Under way, by what would have acked the message."""

    def opened(self, messages: Sequence[StoredCommit]) -> Iterator[tuple[Frame, int]]:
        """Yield messages as the consumer would deliver them first, and how much is in each."""
        for message in messages:
            own = {name: text for name, text in message.headers.items() if name not in READ_HEADERS}
            pull = self._pull
            reply = f"$JS.ACK.{pull.stream}.{pull.consumer}.1.{message.sequence}.0.0.0"
            head = encode_head(own) if own else b""
            frame = Frame(message.subject, reply, head, message.data)
            yield frame, max(1, len(items_of(frame)))

    async def pick(self, frames: Sequence[Frame]) -> None:
        """Handle messages, all at once; return when what is done with is gone from the queue."""
        self._express = await Express.of(self._nc)
        async with asyncio.TaskGroup() as group:
            for frame in frames:
                for work in self._begin(frame):
                    group.create_task(work)
        for frame in frames:
            deletion = self._deletions.pop(frame.reply, None)
            if deletion is None:
                continue
            try:
                pub_ack(await deletion)
            except (Refused, NatsError) as error:  # the consumer has it, or will have it
                log.debug("not_deleted", error=str(error))

    @override
    def _refill(self) -> None:
        """Ask for nothing: it is handed what there is."""

    @override
    async def _handle(self, delivery: Delivery, letter: Letter) -> tuple[str, int]:
        try:
            return await self._attempt(delivery, letter)
        except NOT_ITS_FAULT as error:
            delivery.facts["error"] = error.message
            letter.say(b"-NAK")
            return "left", 0

    @override
    def _answer(self, frame: Frame, verdict: bytes) -> None:
        if verdict in {b"+ACK", b"+TERM"}:
            body = {"seq": delivered(frame.reply).sequence, "no_erase": True}
            subject = f"$JS.API.STREAM.MSG.DELETE.{self._pull.stream}"
            self._deletions[frame.reply] = self._express.ask(subject, orjson.dumps(body))

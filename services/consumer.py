"""The pull consumer of every service: pull without pause, publish the answers, ack last.

The table of errors to bus outcomes lives here (`Consumer._handle`) and nowhere else.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import orjson
from nats.aio.client import Client as Nats
from nats.errors import Error as NatsError
from typing_extensions import override

from events.express import Express, Frame, Refused, delivered, encode_head, pub_ack
from events.jetstream import StoredCommit
from events.subjects import dead
from schemas.errors import (
    BusUnavailable,
    ClawdbotError,
    InvalidArgument,
    RetryableError,
    StoreFull,
    StoreUnavailable,
    TerminalError,
)
from schemas.messages import Header
from services.runtime import Delivery, Handler, Outgoing, publish
from services.telemetry import MessageMeter, get_logger


T = TypeVar("T")
log = get_logger()

BACKOFF_S = (0.1, 0.5, 2.0, 5.0)
HOLD_S = (0.1, 0.5, 1.0)
"""Between two tries of what is held: a cluster chooses a new leader within seconds."""
READ_HEADERS = {
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
}
"""What the server adds to a message that is read. Source: ADR-31."""
NOT_ITS_FAULT = (BusUnavailable, StoreUnavailable, StoreFull)
"""What no message is to blame for: it is kept and tried until the bus and the log are well."""


@dataclass(frozen=True)
class Pull:
    """How a consumer pulls."""

    service: str
    kind: str
    stream: str
    consumer: str
    in_flight_max: int = 256
    ack_wait_s: float = 30.0
    max_deliver: int = 5
    expires_s: float = 30.0
    heartbeat_s: float = 2.0


class Consumer:
    """Pulls without pause: asks for more while half of what was asked for is still to come.

    Args:
        nc: The connection.
        pull: Names and limits.
        handler: What to do with a message.
        exhausted: What to publish for a message that was delivered too often.
    """

    def __init__(
        self,
        nc: Nats,
        pull: Pull,
        handler: Handler,
        exhausted: Callable[[Delivery], Sequence[Outgoing]] | None = None,
    ) -> None:
        self._nc = nc
        self._express: Express
        """Of the connection, once it runs."""
        self._pull = pull
        self._handler = handler
        self._exhausted = exhausted or (lambda _: ())
        self._meter = MessageMeter(pull.service, pull.kind)
        self._inbox = nc.new_inbox()
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{pull.stream}.{pull.consumer}"
        self._requested = 0
        self._in_flight_max = pull.in_flight_max
        self._working: dict[int, Frame] = {}
        self._serial = 0
        self._seen_at = 0.0
        self._wanted = asyncio.Event()

    async def run(self) -> None:
        """Pull and handle until cancelled; what is in work then goes back to the queue at once."""
        self._express = await Express.of(self._nc)
        async with asyncio.TaskGroup() as group:

            def on_frame(frame: Frame) -> None:
                self._seen_at = time.monotonic()
                if frame.reply.startswith("$JS.ACK"):
                    self._requested = max(0, self._requested - 1)
                    self._serial += 1
                    self._working[self._serial] = frame
                    group.create_task(self._work(self._serial, frame))
                    self._refill()
                else:
                    self._status(frame.headers())

            subscription = await self._express.subscribe(f"{self._inbox}.*", on_frame)
            keeper = group.create_task(self._keep_alive())
            try:
                await self._ask_for_ever()
            finally:
                keeper.cancel()
                if self._nc.is_connected:
                    await self._express.unsubscribe(subscription)

    def widen(self, in_flight_max: int) -> None:
        """Have more messages in work from now on, or fewer; what was asked for comes anyway."""
        self._in_flight_max = in_flight_max
        self._refill()

    async def _ask_for_ever(self) -> None:
        """Ask again when told to, and when the server has been silent for too long."""
        patience_s = 2.5 * self._pull.heartbeat_s
        while True:
            self._wanted.clear()
            if time.monotonic() - self._seen_at > patience_s:
                self._requested = 0
                self._seen_at = time.monotonic()
            self._refill()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), self._pull.heartbeat_s / 4)

    def _refill(self) -> None:
        busy = self._requested + len(self._working)
        if busy <= self._in_flight_max // 2 and self._in_flight_max:
            self.request(self._in_flight_max - busy)

    def request(self, batch: int) -> None:
        """Ask for more messages, whatever is in work; for none without a connection."""
        if not self._nc.is_connected:
            return
        request = {
            "batch": batch,
            "expires": int(self._pull.expires_s * 1e9),
            "idle_heartbeat": int(self._pull.heartbeat_s * 1e9),
        }
        self._requested += batch
        self._serial += 1
        self._express.publish(
            self._next, orjson.dumps(request), reply=f"{self._inbox}.{self._serial}"
        )

    def _status(self, headers: Mapping[str, str]) -> None:
        """Read a status: a heartbeat, an expired request, a consumer that is not there."""
        match headers.get("Status"):
            case "100":
                return
            case "408" | "409" if "Nats-Pending-Messages" in headers:
                self._requested -= min(self._requested, int(headers["Nats-Pending-Messages"]))
                self._wanted.set()
            case _:
                # No such consumer: whoever rebuilds it needs a moment; the loop asks again.
                self._requested = 0

    async def _keep_alive(self) -> None:
        """Tell the server that messages in work are still in work."""
        while True:
            await asyncio.sleep(self._pull.ack_wait_s / 3)
            for frame in self._working.values():
                self._answer(frame, b"+WPI")

    async def _work(self, serial: int, frame: Frame) -> None:
        begun = time.monotonic()
        receipt = delivered(frame.reply)
        delivery = Delivery(
            subject=frame.subject,
            data=frame.data,
            headers=frame.headers(),
            sequence=receipt.sequence,
            count=receipt.deliveries,
            left=receipt.left,
        )
        self._meter.in_flight.inc()
        try:
            outcome, out_count = await self._handle(delivery, frame)
            handle_s = time.monotonic() - begun
            self._meter.handled(outcome, handle_s)
            line = {
                "outcome": outcome,
                "subject": delivery.subject,
                "correlation_id": delivery.headers.get(Header.CORRELATION_ID),
                "delivery_count": delivery.count,
                "handle_ms": round(handle_s * 1000, 3),
                "in_bytes": len(delivery.data),
                "out_count": out_count,
            }
            log.info("message_handled", **(line | delivery.facts))
        except asyncio.CancelledError:
            self._answer(frame, b"-NAK")
            raise
        finally:
            self._meter.in_flight.dec()
            self._working.pop(serial, None)
            self._refill()

    async def _handle(self, delivery: Delivery, frame: Frame) -> tuple[str, int]:
        """Handle, publish, ack; return the outcome and how many messages went out."""
        return await held(
            lambda: self._attempt(delivery, frame), "message_held", subject=delivery.subject
        )

    async def _attempt(self, delivery: Delivery, frame: Frame) -> tuple[str, int]:
        if delivery.count > self._pull.max_deliver:  # whoever had it died, or lost its bus
            return await self._bury(delivery, frame, "without an answer")
        try:
            delivery.before_ack.clear()
            out = await self._handler(delivery)
            if out:
                await publish(self._express, out)
            for stored in delivery.before_ack:
                await asyncio.shield(stored)  # others may wait for the same
        except NOT_ITS_FAULT:
            raise
        except TerminalError as error:
            await self._dead_letter(delivery, error)
            self._answer(frame, b"+TERM")
            return "undecodable" if isinstance(error, InvalidArgument) else "terminal", 1
        except RetryableError as error:
            return await self._failed(delivery, frame, error.message)
        except Exception as error:
            log.exception("handler_crashed", subject=delivery.subject)
            return await self._failed(delivery, frame, type(error).__name__)
        self._answer(frame, b"+ACK")
        return "ok", len(out)

    async def _failed(self, delivery: Delivery, frame: Frame, why: str) -> tuple[str, int]:
        """Have a message come again after a pause, or bury it when it came too often."""
        delivery.facts["error"] = why
        if delivery.count >= self._pull.max_deliver:
            return await self._bury(delivery, frame, f"and failed: {why}")
        delay_ns = int(_pause_s(delivery.count - 1) * 1e9)
        self._answer(frame, b"-NAK " + orjson.dumps({"delay": delay_ns}))
        return "retry", 0

    async def _bury(self, delivery: Delivery, frame: Frame, why: str) -> tuple[str, int]:
        """Dead-letter a message that was delivered too often, and say so to whoever waits."""
        times = min(delivery.count, self._pull.max_deliver)
        await self._dead_letter(delivery, InvalidArgument(f"delivered {times} times {why}"))
        out = list(self._exhausted(delivery))
        if out:
            await publish(self._express, out)
        self._answer(frame, b"+TERM")
        log.error("dead_lettered", subject=delivery.subject, delivery_count=delivery.count)
        return "dead", len(out) + 1

    async def _dead_letter(self, delivery: Delivery, error: ClawdbotError) -> None:
        delivery.facts["error"] = error.message
        name = f"{self._pull.stream}.{delivery.sequence}"
        letter = dead_letter(self._pull.kind, delivery, error, name, self._nc.max_payload)
        await publish(self._express, [letter])

    def _answer(self, frame: Frame, verdict: bytes) -> None:
        """Ack, nak or term. A lost one costs a redelivery, which every handler allows for."""
        try:
            self._express.publish(frame.reply, verdict)
        except NatsError as error:
            log.info("ack_lost", subject=frame.subject, error=str(error))


class Picker(Consumer):
    """Handles messages of a work queue that were read from it, whosever turn it is.

    One that is done with is deleted. What cannot be done now is left to the consumer, whose turn
    comes; it may also have it in work at the same time, so the handler takes the same one twice.
    """

    async def pick(self, messages: Sequence[StoredCommit]) -> None:
        """Handle messages, all at once; return when what is done with is gone from the queue."""
        self._express = await Express.of(self._nc)
        deletions = self._deletions = list[Awaitable[bytes]]()
        async with asyncio.TaskGroup() as group:
            for message in messages:
                self._serial += 1
                self._working[self._serial] = frame = self._frame(message)
                group.create_task(self._work(self._serial, frame))
        for deletion in deletions:
            try:
                pub_ack(await deletion)
            except (Refused, NatsError) as error:  # the consumer has it, or will have it
                log.debug("not_deleted", error=str(error))

    def _frame(self, message: StoredCommit) -> Frame:
        """Return a message as the consumer would have delivered it, for the first time."""
        own = {name: text for name, text in message.headers.items() if name not in READ_HEADERS}
        pull = self._pull
        reply = f"$JS.ACK.{pull.stream}.{pull.consumer}.1.{message.sequence}.0.0.0"
        return Frame(message.subject, reply, encode_head(own) if own else b"", message.data)

    @override
    def _refill(self) -> None:
        """Ask for nothing: it is handed what there is."""

    @override
    async def _handle(self, delivery: Delivery, frame: Frame) -> tuple[str, int]:
        try:
            return await self._attempt(delivery, frame)
        except NOT_ITS_FAULT as error:
            delivery.facts["error"] = error.message
            return "left", 0

    @override
    def _answer(self, frame: Frame, verdict: bytes) -> None:
        if verdict in {b"+ACK", b"+TERM"}:
            body = {"seq": delivered(frame.reply).sequence, "no_erase": True}
            subject = f"$JS.API.STREAM.MSG.DELETE.{self._pull.stream}"
            self._deletions.append(self._express.ask(subject, orjson.dumps(body)))


async def held(action: Callable[[], Awaitable[T]], event: str, **facts: str) -> T:
    """Do something again and again while the bus or the log cannot take it; say so once."""
    for turn in itertools.count():
        try:
            return await action()
        except NOT_ITS_FAULT as error:
            if not turn:
                log.warning(event, error=error.message, **facts)
            await asyncio.sleep(HOLD_S[min(turn, len(HOLD_S) - 1)])
    raise AssertionError


def dead_letter(
    kind: str, delivery: Delivery, error: ClawdbotError, name: str, bytes_max: int
) -> Outgoing:
    """Return a message for DEAD: as it came, with the reason; cut where it would not fit.

    Args:
        kind: What it was.
        delivery: The message.
        error: Why nobody could handle it.
        name: Its own within the tenant, so that it is kept once.
        bytes_max: What the server takes.
    """
    tenant = delivery.subject.split(".")[2]
    said = {
        Header.REASON: _one_line(error.message),
        Header.SUBJECT: delivery.subject,
        Header.MSG_ID: f"{tenant}.{name}",
    }
    headers = {**delivery.headers, **said}
    room = bytes_max - len(encode_head(headers))
    if room < len(delivery.data):  # what is said of it must still fit
        headers, room = said, bytes_max - len(encode_head(said))
    return Outgoing(dead(tenant, kind), delivery.data[:room], headers)


def _pause_s(turn: int) -> float:
    return BACKOFF_S[min(turn, len(BACKOFF_S) - 1)]


def _one_line(text: str) -> str:
    return " ".join(text.split())[:256]

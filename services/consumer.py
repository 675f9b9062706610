"""The pull consumer of every service: pull without pause, publish the answers, ack last.

The table of errors to bus outcomes lives here (`Consumer._handle`) and nowhere else.
"""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import orjson
from nats.aio.client import Client as Nats
from nats.errors import Error as NatsError

from events.express import Express, Frame, delivered
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
from services.bundles import HEAD, Item, unpack
from services.dead_letters import dead_letter
from services.runtime import Delivery, Handler, Outgoing, publish
from services.telemetry import MessageMeter, get_logger
from services.together import Together


T = TypeVar("T")
log = get_logger()

BACKOFF_S = (0.1, 0.5, 2.0, 5.0)
HOLD_S = (0.1, 0.25, 0.5)
"""Between two tries of what is held: a cluster chooses a new leader within seconds."""
EACH_WEIGHT = 0.1
"""Of the newest message in how many deliveries one brings."""
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
    heartbeat_s: float = 1.0


@dataclass(eq=False)
class Letter:
    """A message as it came, and what became of the deliveries in it."""

    frame: Frame
    left: int = 1
    """Deliveries that are not over: several in a bundle (`services.together`)."""
    verdict: bytes = b"+ACK"
    """What the server is told once all are over."""

    def say(self, verdict: bytes) -> None:
        """Take what one delivery came to; a bundle comes again if one of them must."""
        if not self.verdict.startswith(b"-NAK"):
            self.verdict = verdict


class Consumer:
    """Pulls without pause: asks for more while half of what was asked for is still to come.

    Args:
        nc: The connection.
        pull: Names and limits.
        handler: What to do with a message.
        exhausted: What to publish for a message that was delivered too often.
        together: What the handler's messages leave with, if they are all for one stream.
    """

    def __init__(
        self,
        nc: Nats,
        pull: Pull,
        handler: Handler,
        exhausted: Callable[[Delivery], Sequence[Outgoing]] | None = None,
        together: Together | None = None,
    ) -> None:
        self._nc = nc
        self._express: Express
        """Of the connection, once it runs."""
        self._pull = pull
        self._handler = handler
        self._exhausted = exhausted or (lambda _: ())
        self._ask = None if together is None else together.ask
        self._meter = MessageMeter(pull.service, pull.kind)
        self._inbox = nc.new_inbox()
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{pull.stream}.{pull.consumer}"
        self._requested = 0
        self._working: dict[Letter, None] = {}
        self._under_way = 0
        """Deliveries."""
        self._in_flight_max = pull.in_flight_max
        self._each = 1.0
        """Deliveries in a message, moving average."""
        self._parked: deque[Frame] = deque()
        """Came while as much was in work as may be: bundles hold more than was asked for."""
        self._group: asyncio.TaskGroup
        self._serial = 0
        self._seen_at = 0.0
        self._wanted = asyncio.Event()

    async def run(self) -> None:
        """Pull and handle until cancelled; what is in work then goes back to the queue at once."""
        self._express = await Express.of(self._nc)
        async with asyncio.TaskGroup() as group:
            self._group = group

            def on_frame(frame: Frame) -> None:
                self._seen_at = time.monotonic()
                if frame.reply.startswith("$JS.ACK"):
                    self._requested = max(0, self._requested - 1)
                    self._parked.append(frame)
                    self._unpark()
                    self._refill()
                else:
                    self._status(frame.headers())

            subscription = await self._express.subscribe(f"{self._inbox}.*", on_frame)
            keeper = group.create_task(self._keep_alive())
            try:
                await self._ask_for_ever()
            finally:
                keeper.cancel()
                while self._parked:
                    self._answer(self._parked.popleft(), b"-NAK")
                if self._nc.is_connected:
                    await self._express.unsubscribe(subscription)

    def widen(self, in_flight_max: int) -> None:
        """Have more messages in work from now on, or fewer; what was asked for comes anyway."""
        self._in_flight_max = in_flight_max
        self._unpark()
        self._refill()

    def step(self) -> None:
        """Have one more message come into work, however much is."""
        if self._parked:
            self._start(self._parked.popleft())
        else:
            self._request(1)

    def deliveries(self, messages: int) -> int:
        """Return about how many deliveries so many messages bring."""
        return int(messages * self._each)

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
        busy = (self._requested + len(self._parked)) * self._each + self._under_way
        if busy <= self._in_flight_max // 2 and self._in_flight_max:
            self._request(max(1, int((self._in_flight_max - busy) / self._each)))

    def _unpark(self) -> None:
        while self._parked and self._under_way < self._in_flight_max:
            self._start(self._parked.popleft())

    def _start(self, frame: Frame) -> None:
        for work in self._begin(frame):
            self._group.create_task(work)

    def _request(self, batch: int) -> None:
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
            for letter in self._working:
                self._answer(letter.frame, b"+WPI")
            for frame in self._parked:
                self._answer(frame, b"+WPI")

    def _begin(self, frame: Frame) -> Iterator[Coroutine[Any, Any, None]]:
        """Yield the work that a message brings."""
        receipt = delivered(frame.reply)
        sequence, count = receipt.sequence, receipt.deliveries
        letter = Letter(frame)
        self._working[letter] = None
        items = items_of(frame)
        apart = bool(items) and count > 1
        letter.left = 1 if apart else max(1, len(items))
        self._under_way += letter.left
        self._each += EACH_WEIGHT * (letter.left - self._each)
        behind = self.deliveries(max(receipt.left, len(self._parked)))
        if not items:
            headers = frame.headers()
            delivery = Delivery(frame.subject, frame.data, headers, sequence, count, left=behind)
            yield self._work(letter, delivery)
        elif apart:
            yield self._take_apart(letter, items)
        else:
            for place, (subject, headers, data) in enumerate(items, start=1):
                delivery = Delivery(subject, data, headers, sequence, count, place, behind)
                yield self._work(letter, delivery)

    async def _take_apart(self, letter: Letter, items: Sequence[Item[bytes]]) -> None:
        """Put the items of a bundle back into the stream, each as a message of its own.

        One of them ended the process that had it, or is to come again later: from now on each is
        delivered, and given up, by itself.
        """
        out = [Outgoing(subject, data, headers) for subject, headers, data in items]
        try:
            await held(partial(publish, self._express, out), "message_held")
            log.info("bundle_taken_apart", subject=letter.frame.subject, count=len(out))
        except BaseException:
            letter.say(b"-NAK")
            raise
        finally:
            self._over(letter)

    def _over(self, letter: Letter) -> None:
        """Count a delivery that is over; the last one of a message answers the server."""
        self._under_way -= 1
        letter.left -= 1
        if letter.left:
            return
        del self._working[letter]
        self._answer(letter.frame, letter.verdict)
        self._unpark()
        self._refill()

    async def _work(self, letter: Letter, delivery: Delivery) -> None:
        begun = time.monotonic()
        self._meter.in_flight.inc()
        try:
            outcome, out_count = await self._handle(delivery, letter)
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
        except BaseException:
            letter.say(b"-NAK")
            raise
        finally:
            self._meter.in_flight.dec()
            self._over(letter)

    async def _handle(self, delivery: Delivery, letter: Letter) -> tuple[str, int]:
        """Handle, publish, ack; return the outcome and how many messages went out."""
        return await held(
            lambda: self._attempt(delivery, letter), "message_held", subject=delivery.subject
        )

    async def _attempt(self, delivery: Delivery, letter: Letter) -> tuple[str, int]:
        if delivery.count > self._pull.max_deliver:  # whoever had it died, or lost its bus
            return await self._bury(delivery, letter, "without an answer")
        try:
            delivery.before_ack.clear()
            out = await self._handler(delivery)
            if out:
                await publish(self._express, out, self._ask)
            for stored in delivery.before_ack:
                await asyncio.shield(stored)  # others may wait for the same
        except NOT_ITS_FAULT:
            raise
        except TerminalError as error:
            await self._dead_letter(delivery, error)
            letter.say(b"+TERM")
            return "undecodable" if isinstance(error, InvalidArgument) else "terminal", 1
        except RetryableError as error:
            return await self._failed(delivery, letter, error.message)
        except Exception as error:
            log.exception("handler_crashed", subject=delivery.subject)
            return await self._failed(delivery, letter, type(error).__name__)
        return "ok", len(out)

    async def _failed(self, delivery: Delivery, letter: Letter, why: str) -> tuple[str, int]:
        """Have a message come again after a pause, or bury it when it came too often."""
        delivery.facts["error"] = why
        if delivery.count >= self._pull.max_deliver:
            return await self._bury(delivery, letter, f"and failed: {why}")
        delay_ns = int(_pause_s(delivery.count - 1) * 1e9)
        letter.say(b"-NAK " + orjson.dumps({"delay": delay_ns}))
        return "retry", 0

    async def _bury(self, delivery: Delivery, letter: Letter, why: str) -> tuple[str, int]:
        """Dead-letter a message that was delivered too often, and say so to whoever waits."""
        times = min(delivery.count, self._pull.max_deliver)
        await self._dead_letter(delivery, InvalidArgument(f"delivered {times} times {why}"))
        out = list(self._exhausted(delivery))
        if out:
            await publish(self._express, out)
        letter.say(b"+TERM")
        log.error("dead_lettered", subject=delivery.subject, delivery_count=delivery.count)
        return "dead", len(out) + 1

    async def _dead_letter(self, delivery: Delivery, error: ClawdbotError) -> None:
        delivery.facts["error"] = error.message
        name = f"{self._pull.stream}.{delivery.name}"
        letter = dead_letter(self._pull.kind, delivery, error, name, self._nc.max_payload)
        await publish(self._express, [letter])

    def _answer(self, frame: Frame, verdict: bytes) -> None:
        """Ack, nak or term. A lost one costs a redelivery, which every handler allows for."""
        try:
            self._express.publish(frame.reply, verdict)
        except NatsError as error:
            log.info("ack_lost", subject=frame.subject, error=str(error))


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


def _pause_s(turn: int) -> float:
    return BACKOFF_S[min(turn, len(BACKOFF_S) - 1)]


def items_of(frame: Frame) -> list[Item[bytes]]:
    """Return what a bundle holds; nothing of a message that is none, or that cannot be read."""
    if frame.head != HEAD:
        return []
    try:
        return unpack(frame.data)
    except InvalidArgument:
        return []  # its handler refuses it

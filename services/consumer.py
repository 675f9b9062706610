"""The pull consumer of every service: pull without pause, publish the answers, ack last.

The table of errors to bus outcomes lives here (`Consumer._handle`) and nowhere else.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from events.subjects import dead
from schemas.errors import ClawdbotError, InvalidArgument, RetryableError, TerminalError
from schemas.messages import Header
from services.runtime import Delivery, Handler, Outgoing, publish
from services.telemetry import HANDLE_SECONDS, IN_FLIGHT, MESSAGES, get_logger


log = get_logger()

BACKOFF_S = (0.1, 0.5, 2.0, 5.0)


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
        self._pull = pull
        self._handler = handler
        self._exhausted = exhausted or (lambda _: ())
        self._inbox = nc.new_inbox()
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{pull.stream}.{pull.consumer}"
        self._requested = 0
        self._working: dict[int, Msg] = {}
        self._serial = 0
        self._seen_at = 0.0
        self._wanted = asyncio.Event()

    async def run(self) -> None:
        """Pull and handle until cancelled; what is in work then goes back to the queue at once."""
        async with asyncio.TaskGroup() as group:

            async def on_message(message: Msg) -> None:
                self._seen_at = time.monotonic()
                if message.reply and message.reply.startswith("$JS.ACK"):
                    self._requested = max(0, self._requested - 1)
                    self._serial += 1
                    self._working[self._serial] = message
                    group.create_task(self._work(self._serial, message))
                    self._refill()
                else:
                    self._status(message)

            subscription = await self._nc.subscribe(f"{self._inbox}.*", cb=on_message)
            keeper = group.create_task(self._keep_alive())
            try:
                await self._ask_for_ever()
            finally:
                keeper.cancel()
                if self._nc.is_connected:
                    await subscription.unsubscribe()

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
        if busy > self._pull.in_flight_max // 2 or not self._nc.is_connected:
            return
        batch = self._pull.in_flight_max - busy
        request = {
            "batch": batch,
            "expires": int(self._pull.expires_s * 1e9),
            "idle_heartbeat": int(self._pull.heartbeat_s * 1e9),
        }
        self._requested += batch
        self._serial += 1
        # The connection buffers; publish only awaits when its buffer must be flushed.
        line = self._nc.publish(
            self._next, orjson.dumps(request), reply=f"{self._inbox}.{self._serial}"
        )
        asyncio.ensure_future(line).add_done_callback(_log_failure)

    def _status(self, message: Msg) -> None:
        """Read a status: a heartbeat, an expired request, a consumer that is not there."""
        headers = message.headers or {}
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
            for message in list(self._working.values()):
                await self._answer(message, b"+WPI")

    async def _work(self, serial: int, message: Msg) -> None:
        service, kind = self._pull.service, self._pull.kind
        begun = time.monotonic()
        meta = message.metadata
        delivery = Delivery(
            subject=message.subject,
            data=message.data,
            headers=message.headers or {},
            sequence=meta.sequence.stream,
            count=meta.num_delivered,
            published_at=meta.timestamp.timestamp(),
        )
        IN_FLIGHT.labels(service, kind).inc()
        try:
            outcome, out_count = await self._handle(delivery, message)
            handle_s = time.monotonic() - begun
            MESSAGES.labels(service, kind, outcome).inc()
            HANDLE_SECONDS.labels(service, kind).observe(handle_s)
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
            await self._answer(message, b"-NAK")
            raise
        finally:
            IN_FLIGHT.labels(service, kind).dec()
            self._working.pop(serial, None)
            self._refill()

    async def _handle(self, delivery: Delivery, message: Msg) -> tuple[str, int]:
        """Handle, publish, ack; return the outcome and how many messages went out."""
        try:
            return await self._attempt(delivery, message)
        except RetryableError as error:
            delivery.facts["error"] = error.message
            return await self._nak(delivery, message), 0
        except Exception:
            log.exception("handler_crashed", subject=delivery.subject)
            return await self._nak(delivery, message), 0

    async def _attempt(self, delivery: Delivery, message: Msg) -> tuple[str, int]:
        if delivery.count > self._pull.max_deliver:
            return await self._bury(delivery, message)
        try:
            out = await self._handler(delivery)
        except TerminalError as error:
            await self._dead_letter(delivery, error)
            await self._answer(message, b"+TERM")
            return "undecodable" if isinstance(error, InvalidArgument) else "terminal", 1
        if out:
            await publish(self._nc, out)
        await self._answer(message, b"+ACK")
        return "ok", len(out)

    async def _nak(self, delivery: Delivery, message: Msg) -> str:
        delay_s = BACKOFF_S[min(delivery.count, len(BACKOFF_S)) - 1]
        await self._answer(message, b"-NAK " + orjson.dumps({"delay": int(delay_s * 1e9)}))
        return "retry"

    async def _bury(self, delivery: Delivery, message: Msg) -> tuple[str, int]:
        """Dead-letter a message that was delivered too often, and say so to whoever waits."""
        reason = InvalidArgument(f"delivered {delivery.count - 1} times without an answer")
        await self._dead_letter(delivery, reason)
        out = list(self._exhausted(delivery))
        if out:
            await publish(self._nc, out)
        await self._answer(message, b"+TERM")
        log.error("dead_lettered", subject=delivery.subject, delivery_count=delivery.count)
        return "dead", len(out) + 1

    async def _dead_letter(self, delivery: Delivery, error: ClawdbotError) -> None:
        delivery.facts["error"] = error.message
        tenant = delivery.subject.split(".")[2]
        headers = {**delivery.headers, Header.REASON: _one_line(error.message)}
        headers["Clawdbot-Subject"] = delivery.subject
        headers[Header.MSG_ID] = f"{tenant}.{self._pull.stream}.{delivery.sequence}"
        await publish(self._nc, [Outgoing(dead(tenant, self._pull.kind), delivery.data, headers)])

    async def _answer(self, message: Msg, verdict: bytes) -> None:
        """Ack, nak or term. A lost one costs a redelivery, which every handler allows for."""
        try:
            await self._nc.publish(message.reply, verdict)
        except NatsError as error:
            log.info("ack_lost", subject=message.subject, error=str(error))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:256]


def _log_failure(done: "asyncio.Future[None]") -> None:
    if not done.cancelled() and done.exception() is not None:
        log.info("pull_request_failed", error=str(done.exception()))

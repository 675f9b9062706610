"""The kit of every service: connect to the bus, publish into streams."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from faststream.nats import NatsBroker
from nats.aio.client import Client as Nats
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError
from nats.js.errors import BadRequestError, NotFoundError
from nats.js.errors import Error as JetStreamError

from events.express import Express, Refused, encode_head, pub_ack
from events.jetstream import STREAM_FULL
from events.streams import (
    RESULT_CONSUMER,
    RESULTS,
    TASKS,
    StreamLimits,
    ensure,
    ensure_consumer,
    work_consumer,
)
from events.subjects import life
from schemas.errors import BusUnavailable, ClawdbotError, ResourceExhausted, StoreFull, Unavailable
from schemas.ids import new_id
from schemas.messages import Header
from services.telemetry import BUS_CONNECTED, get_logger


T = TypeVar("T")
log = get_logger()

BUS_ERRORS = (NatsError, JetStreamError)
"""What the client of the bus raises."""

PING_INTERVAL_S = 2
RECONNECT_WAIT_S = 0.25
PATIENCE_S = 0.5
"""Between two tries of a start to reach the bus."""
REQUEST_TIMEOUT_S = 5.0


class Clock(Protocol):
    """Gives the time."""

    def now(self) -> float:
        """Return seconds since the epoch."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return seconds since the epoch."""
        return time.time()


@dataclass(frozen=True)
class Outgoing:
    """A message a handler wants published before its input is acked."""

    subject: str
    data: bytes
    headers: dict[str, str]
    stored: bool = True
    """Whether a stream takes it and acknowledges; else it is for whoever listens now."""


@dataclass(frozen=True)
class Delivery:
    """One message of a stream, as a handler sees it."""

    subject: str
    data: bytes
    headers: dict[str, str]
    sequence: int
    """Of the stream."""
    count: int
    """1 for the first delivery."""
    left: int = 0
    """Messages the consumer has not delivered yet."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the handler wants in the canonical log line."""
    before_ack: list[Awaitable[None]] = field(default_factory=list)
    """What must be done, besides publishing what the handler returns, before it is acked."""


Handler = Callable[[Delivery], Awaitable[Sequence[Outgoing]]]
"""Maps a message to messages; its exceptions decide the outcome (`services.consumer`)."""


@dataclass(frozen=True)
class Link:
    """What happens to the connection."""

    on_loss: list[Callable[[], None]] = field(default_factory=list)
    """Called when it is lost, before any other server is asked."""
    came_back: asyncio.Event = field(default_factory=asyncio.Event)


def _broker(url: str, name: str, link: Link) -> NatsBroker:
    """Return a broker that reconnects for ever and notices a silent server within seconds."""
    said = ""

    async def disconnected() -> None:
        for call in link.on_loss:
            call()
        BUS_CONNECTED.labels(name).set(0)
        log.warning("bus_disconnected")

    async def reconnected() -> None:
        nonlocal said
        said = ""
        BUS_CONNECTED.labels(name).set(1)
        log.info("bus_reconnected")
        link.came_back.set()

    async def errored(error: Exception) -> None:
        nonlocal said
        text = f"{type(error).__name__}: {error}"
        if text != said:  # while the bus is away the same comes four times a second
            said = text
            log.info("bus_error", error=str(error), kind=type(error).__name__)

    return NatsBroker(
        [part.strip() for part in url.split(",")],
        name=f"clawdbot-{name}",
        allow_reconnect=True,
        max_reconnect_attempts=-1,
        reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type] # seconds; nats-py takes floats
        ping_interval=PING_INTERVAL_S,
        max_outstanding_pings=2,
        connect_timeout=2,
        disconnected_cb=disconnected,
        reconnected_cb=reconnected,
        error_cb=errored,
        logger=log,
        log_level=logging.DEBUG,  # of a line per message; what goes wrong is said anyway
    )


class Bus:
    """The streams as one service sees them: made when missing, noticed when made anew.

    FastStream owns the connection and serves what is not hot (`broker`); the hot path uses the
    same connection directly (`nc`), which costs a seventh of the CPU per message (ADR 0004).
    """

    def __init__(self, broker: NatsBroker, nc: Nats, limits: StreamLimits, link: Link) -> None:
        self.broker = broker
        self.nc = nc
        self._js = nc.jetstream(timeout=REQUEST_TIMEOUT_S)
        self._limits = limits
        self._link = link

    @classmethod
    async def connect(cls, url: str, name: str, limits: StreamLimits) -> "Bus":
        """Connect, trying for as long as it takes."""
        link = Link()
        broker = _broker(url, name, link)
        nc = await broker.connect()
        BUS_CONNECTED.labels(name).set(1)
        return cls(broker, nc, limits, link)

    async def close(self) -> None:
        """Let what FastStream serves finish, then disconnect."""
        await self.broker.stop()

    def when_lost(self, call: Callable[[], None]) -> None:
        """Have something called whenever the connection is lost, before it comes back."""
        self._link.on_loss.append(call)

    async def ensure(self) -> None:
        """Make the streams, buckets and consumers that are missing.

        Raises:
            BusUnavailable: The server does not answer.
        """
        with _answering():
            await ensure(self.nc, self._limits)

    async def generation(self) -> str:
        """Return what tells one life of the memory streams from the next.

        They, and all others, are made if they are missing.

        Raises:
            BusUnavailable: The server does not answer.
        """
        with _answering():
            with contextlib.suppress(NotFoundError):
                return await self._created()
            await self.ensure()
            return await self._created()

    async def patiently(self, action: Callable[[], Awaitable[T]]) -> T:
        """Do what a start needs, again and again while the bus is unavailable."""
        while True:
            try:
                return await action()
            except Unavailable as error:
                log.info("bus_not_ready", error=error.message)
                await asyncio.sleep(PATIENCE_S)

    async def ensure_consumer(self, stream: str, name: str, subject: str) -> None:
        """Make a durable work consumer unless it is there.

        Raises:
            BusUnavailable: The server does not answer.
        """
        with _answering():
            await ensure_consumer(self._js, stream, work_consumer(name, subject, self._limits))

    async def serve(self) -> None:
        """Begin to take what FastStream serves; again is the same as once.

        Raises:
            BusUnavailable: The server does not answer.
        """
        with _answering():
            await self.broker.start()

    async def earliest(self, stream: str, subject: str) -> int:
        """Return the sequence of a subject's oldest message in a stream; 0 when there is none.

        Raises:
            BusUnavailable: The server does not answer.
        """
        with _answering():
            try:
                found = await self._js.get_msg(stream, seq=1, subject=subject, next=True)
            except NotFoundError:
                return 0
        return found.seq or 0

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Publish into streams and wait for every ack."""
        if messages:
            await publish(await Express.of(self.nc), messages)

    async def teller(self) -> Callable[[str, bytes], None]:
        """Return what publishes to whoever listens: nothing is stored, and nothing waited for.

        What cannot be sent, as without a connection for long, is lost.
        """
        express = await Express.of(self.nc)

        def tell(subject: str, data: bytes) -> None:
            try:
                express.publish(subject, data)
            except NatsError as error:
                log.debug("not_told", subject=subject, error=str(error))

        return tell

    @property
    def connected(self) -> bool:
        """Whether the connection stands."""
        return self.nc.is_connected

    async def submit(self, message: Outgoing) -> int:
        """Publish one message into a stream; it is stored when this returns its sequence.

        Raises:
            BusUnavailable: It was not acknowledged.
            StoreFull: The stream has no room.
        """
        express, head = await Express.of(self.nc), encode_head(message.headers)
        try:
            ack = pub_ack(await express.ask(message.subject, message.data, head))
        except Refused as error:
            if error.code in STREAM_FULL:
                raise StoreFull("the queue of submissions is full; try again later") from error
            raise BusUnavailable("the bus refused the message", cause=str(error)) from error
        except NatsError as error:
            raise BusUnavailable("the bus did not acknowledge the message") from error
        return int(ack["seq"])

    async def free(self, stream: str) -> float:
        """Return the part of a stream that is free, in [0, 1].

        Raises:
            BusUnavailable: The server does not answer.
        """
        with _answering():
            info = await self._js.stream_info(stream)
        limit = info.config.max_bytes or 0
        return max(0.0, 1 - info.state.bytes / limit) if limit > 0 else 1.0

    async def count(self, stream: str, subjects: str) -> int:
        """Return how many messages a stream holds on subjects that match a filter."""
        return sum((await self.waiting(stream, subjects)).values())

    async def waiting(self, stream: str, subjects: str) -> dict[str, int]:
        """Return how many messages a stream holds by subject, for 100,000 that match a filter.

        Raises:
            BusUnavailable: The server does not answer.
        """
        with _answering():
            return (await self._js.stream_info(stream, subjects)).state.subjects or {}

    async def ping(self) -> None:
        """Return when JetStream answers.

        Raises:
            BusUnavailable: It does not.
        """
        with _answering():
            await self._js.account_info()

    @contextlib.asynccontextmanager
    async def prompt(self, limit_s: float) -> AsyncIterator[None]:
        """Turn a silent bus into an error within `limit_s` seconds, an absent one at once.

        Raises:
            BusUnavailable: The bus is away or silent; retryable.
        """
        if not self.connected:
            raise BusUnavailable("the bus is away; try again")
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError as error:
            raise BusUnavailable("the bus does not answer; try again") from error

    async def changed(self, timeout_s: float) -> bool:
        """Wait until the connection came back, at most `timeout_s`; tell whether it did."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._link.came_back.wait()
        came_back = self._link.came_back.is_set()
        self._link.came_back.clear()
        return came_back

    async def _created(self) -> str:
        tasks = await self._js.stream_info(TASKS)
        results = await self._js.stream_info(RESULTS)
        await self._js.consumer_info(RESULTS, RESULT_CONSUMER)
        return f"{tasks.created} {results.created} {await self._life()}"

    async def _life(self) -> str:
        """Return the name that TASKS keeps for as long as it keeps anything, or give it one.

        A cluster that was down as a whole comes back with the streams it had in memory, made when
        they were made, and empty.
        """
        for _ in range(2):
            try:
                message = await self._js.get_last_msg(TASKS, life())
                return (message.data or b"").decode()
            except NotFoundError:
                first = {Header.EXPECTED: "0"}
                with contextlib.suppress(BadRequestError):  # somebody else was first
                    await self._js.publish(life(), new_id().encode(), headers=first)
        raise BusUnavailable("the queue of tasks forgets at once what it is given")


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Turn what the client of the bus raises into our error."""
    try:
        yield
    except (NatsError, TimeoutError) as error:
        raise BusUnavailable("JetStream does not answer", cause=str(error)) from error


async def publish(express: Express, messages: Sequence[Outgoing]) -> None:
    """Publish into streams, all at once, and wait for every ack.

    Raises:
        BusUnavailable: At least one was not acknowledged.
        ResourceExhausted: One is larger than the server takes.
    """
    answers: list[Awaitable[bytes]] = []
    for message in messages:
        head = encode_head(message.headers)
        if message.stored:
            answers.append(express.ask(message.subject, message.data, head))
        else:
            express.publish(message.subject, message.data, head)
    failure: ClawdbotError | None = None
    for answer in answers:
        try:
            pub_ack(await answer)
        except MaxPayloadError:
            failure = ResourceExhausted("a message is larger than the server takes")
        except (Refused, NatsError) as error:
            failure = BusUnavailable("the bus did not acknowledge a message", cause=str(error))
    if failure is not None:
        raise failure

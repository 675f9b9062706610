"""The kit of every service: connect to the bus, publish into streams."""

import asyncio
import contextlib
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
from events.hedge import hedged
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
from services.connection import Link, connect
from services.settings import BUS_SILENCE_S
from services.telemetry import get_logger


T = TypeVar("T")
log = get_logger()

BUS_ERRORS = (NatsError, JetStreamError)
"""What the client of the bus raises."""

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
    place: int = 0
    """In the bundle it came in, from 1; 0 for a message of its own."""
    left: int = 0
    """About so many the consumer has not delivered yet."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the handler wants in the canonical log line."""
    before_ack: list[Awaitable[None]] = field(default_factory=list)
    """What must be done, besides publishing what the handler returns, before it is acked."""

    @property
    def name(self) -> str:
        """What no other message of its stream is called."""
        return f"{self.sequence}-{self.place}" if self.place else str(self.sequence)


Handler = Callable[[Delivery], Awaitable[Sequence[Outgoing]]]
"""Maps a message to messages; its exceptions decide the outcome (`services.consumer`)."""


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
    async def connect(
        cls, url: str, name: str, limits: StreamLimits, silence_s: float = BUS_SILENCE_S
    ) -> "Bus":
        """Connect, trying for as long as it takes; leave a server that is silent for so long."""
        link = Link()
        broker, nc = await connect(url, name, link, silence_s)
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
                found = await hedged(
                    lambda: self._js.get_msg(stream, seq=1, subject=subject, next=True)
                )
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
            BusUnavailable, StoreFull: As `stored`.
        """
        express, head = await Express.of(self.nc), encode_head(message.headers)
        return await stored(express.ask(message.subject, message.data, head))

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
            info = await hedged(lambda: self._js.stream_info(stream, subjects))
        return info.state.subjects or {}

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
        tasks = await hedged(lambda: self._js.stream_info(TASKS))
        results = await hedged(lambda: self._js.stream_info(RESULTS))
        await hedged(lambda: self._js.consumer_info(RESULTS, RESULT_CONSUMER))
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


async def stored(answer: Awaitable[bytes]) -> int:
    """Return the sequence of a submission once it is stored.

    Raises:
        BusUnavailable: It was not acknowledged.
        StoreFull: The stream has no room.
    """
    try:
        return int(pub_ack(await answer)["seq"])
    except Refused as error:
        if error.code in STREAM_FULL:
            raise StoreFull("the queue of submissions is full; try again later") from error
        raise BusUnavailable("the bus refused the message", cause=str(error)) from error
    except NatsError as error:
        raise BusUnavailable("the bus did not acknowledge the message") from error


Ask = Callable[[Outgoing], Awaitable[bytes]]
"""Publishes a message into a stream; gives its answer."""


async def publish(express: Express, messages: Sequence[Outgoing], ask: Ask | None = None) -> None:
    """Publish into streams, all at once, and wait for every ack.

    Args:
        express: The way to the streams.
        messages: What to publish.
        ask: Publishes what a stream takes, if it does not leave by itself.

    Raises:
        BusUnavailable: At least one was not acknowledged.
        ResourceExhausted: One is larger than the server takes.
    """
    answers: list[Awaitable[bytes]] = []
    for message in messages:
        if message.stored and ask is not None:
            answers.append(ask(message))
            continue
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

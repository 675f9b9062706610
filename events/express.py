"""The express: the short way through a NATS connection, for what comes in thousands.

nats-py owns the connection: handshake, reconnects, subscriptions and all that is rare. On each
message it spends a regular expression, header objects, a queue and a turn of a task; on each
request an inbox name, a timer and a future more: 25 to 150 µs. On the express a message is cut out
of the bytes as they came and handed to a plain function, everything published in one turn of the
loop leaves in one write, and one timer watches over all acks: about 5 µs (ADR 0010).

It stands on private parts of nats-py 2.16; `tests/conformance/test_express.py` tells when they
change.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import (
    ConnectionClosedError,
    ConnectionReconnectingError,
    MaxPayloadError,
    NoRespondersError,
    OutboundBufferLimitError,
    ProtocolError,
)
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeout
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser
from typing_extensions import override

from events.inlet import CRLF, Inlet
from schemas.pieces import Body, parts_of, runs


ASK_TIMEOUT_S = 2.5
SWEEP_S = 0.1
"""How often unanswered requests are looked at."""
BETWEEN_S = 0.001
STATUS = b"NATS/1.0 "
"""What the head of a status begins with, and of no other message."""
_NO_RESPONDERS = b"NATS/1.0 503"


class Frame(NamedTuple):
    """A message as it came."""

    subject: str
    reply: str
    head: bytes
    """The header block as on the wire; empty without headers."""
    data: bytes

    def headers(self) -> dict[str, str]:
        """Return the headers."""
        return decode_head(self.head)


class Delivered(NamedTuple):
    """What a consumer says of a message beside it."""

    deliveries: int
    """1 for the first one."""
    sequence: int
    """Of the stream."""
    at: float
    """When it was stored, seconds since the epoch."""
    left: int
    """Messages the consumer has not delivered yet."""


OnFrame = Callable[[Frame], None]


class Refused(Exception):
    """JetStream did not store a message, and says why."""

    def __init__(self, status: int, code: int, description: str) -> None:
        super().__init__(description)
        self.status = status
        """As HTTP's; 503 when it may work later."""
        self.code = code
        """JetStream's own error code, 10000 and up."""


def encode_head(headers: Mapping[str, str]) -> bytes:
    """Return headers as on the wire; a line break inside a value becomes a space."""
    lines = [f"{name}: {value}" for name, value in headers.items()]
    text = "\r\n".join(["NATS/1.0", *lines, "", ""])
    if text.count("\n") + text.count("\r") != 2 * len(lines) + 4:
        lines = [" ".join(line.splitlines()) for line in lines]
        text = "\r\n".join(["NATS/1.0", *lines, "", ""])
    return text.encode()


def decode_head(head: bytes) -> dict[str, str]:
    """Read headers; a status line becomes the header `Status`."""
    lines = head.decode(errors="replace").split("\r\n")
    headers: dict[str, str] = {}
    if head.startswith(STATUS):
        headers["Status"] = lines[0].split(" ", 2)[1]
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip()] = value.strip()
    return headers


def delivered(reply: str) -> Delivered:
    """Read the subject that acks a message of a consumer.

    Source: ADR-15; servers that name domains put two tokens more before the stream.
    """
    tokens = reply.split(".")
    count, sequence, _, at_ns, left = tokens[4:9] if len(tokens) == 9 else tokens[6:11]  # noqa: PLR2004
    return Delivered(int(count), int(sequence), int(at_ns) / 1e9, int(left))


def pub_ack(answer: bytes) -> dict[str, Any]:
    """Read JetStream's answer to a publish: `stream`, `seq`, perhaps `duplicate` or `count`.

    Raises:
        Refused: It was not stored.
    """
    ack: dict[str, Any] = orjson.loads(answer)
    error = ack.get("error")
    if error is not None:
        raise Refused(error["code"], error.get("err_code", 0), error.get("description", ""))
    return ack


class Express:
    """The short way through one connection; `of` gives it."""

    def __init__(self, nc: Nats) -> None:
        self._nc = nc
        self._loop = asyncio.get_running_loop()
        self.handlers: dict[str, OnFrame] = {}
        """By subscription."""
        self.timeout_s = ASK_TIMEOUT_S
        """How long an answer may take, seconds."""
        self._inbox = nc.new_inbox()
        self._asked = self._sent = 0
        self._unanswered: dict[str, tuple[asyncio.Future[bytes], float]] = {}
        self._sweeping = False
        self._out: list[bytes] = []
        self._failures: set[asyncio.Future[None]] = set()
        """Errors of handlers that are being reported."""
        self._parser = _Watch(nc, self)
        """Takes the place of nats-py's."""
        self._taken: Any = None
        """The connection that the express reads from."""

    @classmethod
    async def of(cls, nc: Nats) -> "Express":
        """Return the express of a connection, over TCP or TLS: one for all who use it."""
        while True:
            parser = nc._ps  # noqa: SLF001
            if isinstance(parser, _Watch):
                return parser.express
            if parser.state == AWAITING_CONTROL_LINE and not parser.buf:
                break
            await asyncio.sleep(BETWEEN_S)  # it is in the middle of a message
        express = cls(nc)
        nc._ps = express._parser  # noqa: SLF001
        if nc.is_connected:  # else the parser sees the next connection first
            express.go_before_parser()
        await express.subscribe(f"{express._inbox}.*", express._on_answer)
        return express

    @property
    def is_before_parser(self) -> bool:
        """Whether the express reads from the connection that there is now.

        nats-py may give one up and make another without a word, while it reconnects.
        """
        return self._taken is not None and self._taken is self._transport

    @property
    def _transport(self) -> Any:
        """The connection there is now, or was last; uvloop's is of no class of asyncio."""
        stream: Any = self._nc._transport  # noqa: SLF001
        writer = None if stream is None else stream._io_writer  # noqa: SLF001
        return None if writer is None else writer.transport

    @property
    def unanswered(self) -> int:
        """Requests under way."""
        return len(self._unanswered)

    async def subscribe(self, subject: str, on_frame: OnFrame) -> Subscription:
        """Hand every message of a subject to a function that does not block."""

        async def never(message: Msg) -> None:
            raise ProtocolError(f"{message.subject} did not take the express")

        self.divert(on_frame)
        return await self._nc.subscribe(subject, cb=never)

    def divert(self, on_frame: OnFrame) -> None:
        """Hand every message of the next subscription of the connection to a function instead."""
        sid = self._nc._sid + 1  # noqa: SLF001 - known before the server can answer
        self.handlers[str(sid)] = on_frame

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription."""
        self.handlers.pop(str(subscription._id), None)  # noqa: SLF001
        await subscription.unsubscribe()

    def publish(self, subject: str, data: Body, head: bytes = b"", reply: str = "") -> None:
        """Publish at the end of this turn of the loop; while disconnected, after the reconnect.

        Raises:
            ConnectionClosedError: For good.
            MaxPayloadError: Larger than the server takes.
            OutboundBufferLimitError: Disconnected, and enough waits already.
        """
        nc, size = self._nc, len(head) + len(data)
        if size > nc.max_payload:
            raise MaxPayloadError
        if not nc.is_connected:
            if nc.is_closed:
                raise ConnectionClosedError
            if size + nc.pending_data_size > nc._max_pending_size:  # noqa: SLF001
                raise OutboundBufferLimitError
        target = f"{subject} {reply}" if reply else subject
        line = f"HPUB {target} {len(head)} {size}\r\n" if head else f"PUB {target} {size}\r\n"
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += (line.encode(), head, *parts_of(data), CRLF)

    def ask(self, subject: str, data: bytes, head: bytes = b"") -> "asyncio.Future[bytes]":
        """Publish and return the answer to come.

        The future raises what `publish` raises, NoRespondersError, ConnectionReconnectingError
        when the connection ends before the answer, or NatsTimeout after `timeout_s`: then nothing
        is known about the message.
        """
        self._asked += 1
        token = str(self._asked)
        future: asyncio.Future[bytes] = self._loop.create_future()
        try:
            self.publish(subject, data, head, f"{self._inbox}.{token}")
        except NatsError as error:
            future.set_exception(error)
            return future
        self._unanswered[token] = (future, self._loop.time() + self.timeout_s)
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP_S, self._sweep)
        return future

    def go_before_parser(self, data: bytes = b"") -> None:
        """Read from the connection from now on; takes what nats-py has read, or is about to."""
        stream: Any = self._nc._transport  # noqa: SLF001
        reader, transport = stream._io_reader, stream._io_writer.transport  # noqa: SLF001
        left = data + bytes(reader._buffer)  # noqa: SLF001
        reader._buffer.clear()  # noqa: SLF001
        reader._maybe_resume_transport()  # noqa: SLF001
        protocol = transport.get_protocol()
        inlet = Inlet(protocol, self.handlers, self._deliver, reader.feed_data, self._heard)
        transport.set_protocol(inlet)
        self._taken = transport
        inlet.take(left)

    def _deliver(self, sid: str, subject: str, reply: str, head: bytes, data: bytes) -> None:
        """Hand a message to who subscribed."""
        try:
            self.handlers[sid](Frame(subject, reply, head, data))
        except Exception as error:  # noqa: BLE001 - the connection must outlive any handler
            failure = asyncio.ensure_future(self._nc._error_cb(error))  # noqa: SLF001
            self._failures.add(failure)
            failure.add_done_callback(self._failures.discard)

    def _on_answer(self, frame: Frame) -> None:
        future, _ = self._unanswered.pop(frame.subject.rpartition(".")[2], (None, 0.0))
        if future is None or future.done():
            return
        if frame.head.startswith(_NO_RESPONDERS):
            future.set_exception(NoRespondersError())
        else:
            future.set_result(frame.data)

    def _heard(self) -> None:
        """Take whatever comes for a sign of life, as pongs are for nats-py."""
        self._nc._pings_outstanding = 0  # noqa: SLF001

    def connection_lost(self) -> None:
        """Give up what was sent: the answers went to the connection that is no more.

        And the connection, at once: nats-py would first send what is left to whoever is silent.
        """
        self._taken, transport = None, self._transport
        if self._nc.is_reconnecting and transport is not None:
            transport.abort()
        for token, (future, _) in list(self._unanswered.items()):
            if int(token) > self._sent:
                break
            del self._unanswered[token]
            if not future.done():
                future.set_exception(ConnectionReconnectingError())

    def _sweep(self) -> None:
        """Give up what was asked too long ago; the oldest come first."""
        now = self._loop.time()
        for token, (future, deadline) in list(self._unanswered.items()):
            if deadline > now:
                break
            del self._unanswered[token]
            if not future.done():
                future.set_exception(NatsTimeout())
        self._sweeping = bool(self._unanswered)
        if self._sweeping:
            self._loop.call_later(SWEEP_S, self._sweep)

    def _flush(self) -> None:
        """Send what was published, after what nats-py has still to send."""
        nc = self._nc
        nc._pending += self._out  # noqa: SLF001
        self._out.clear()
        if nc.is_connected and nc._transport is not None:  # noqa: SLF001
            nc._transport.writelines(list(runs(nc._pending)))  # noqa: SLF001
            nc._pending, nc._pending_data_size = [], 0  # noqa: SLF001
            self._sent = self._asked
        else:
            nc._pending_data_size = sum(map(len, nc._pending))  # noqa: SLF001


class _Watch(Parser):
    """nats-py's parser, which sees what the express leaves it.

    It is also told first of every connection: when one is over, and when another one was begun.
    """

    def __init__(self, nc: Nats, express: Express) -> None:
        self.express = express
        super().__init__(nc)

    @override
    def reset(self) -> None:
        super().reset()
        self.express.connection_lost()

    @override
    async def parse(self, data: bytes = b"") -> None:
        if self.express.is_before_parser:
            await super().parse(data)
        else:
            self.express.go_before_parser(data)

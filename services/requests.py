"""Asks services that answer over core NATS: one message there, one back."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress

import orjson
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError
from pydantic import ValidationError

from events.express import Express, Frame, decode_head, encode_head
from schemas.api import ErrorBody
from schemas.errors import (
    BusUnavailable,
    ClawdbotError,
    DeadlineExceeded,
    EngineFailed,
    ModelUnavailable,
    ResourceExhausted,
    by_code,
)
from schemas.ids import new_id
from schemas.messages import Header
from services.errors import STATUS, BodyTooLarge
from services.runtime import Bus


HEARD_MAX = 1024
"""Answers to one question that wait to be read; with one more it fails."""
_NO_RESPONDERS = b"NATS/1.0 503"
_TOO_LARGE = "413"


class NobodyServes(ModelUnavailable):
    """Nobody serves a subject: the request reached nobody."""

    def __init__(self) -> None:
        super().__init__("no worker is there that serves this; try again later")


class Requests:
    """Requests under way on one connection.

    Args:
        bus: The connection.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._inbox = bus.nc.new_inbox()
        self._own = new_id()
        self._named = 0
        self._express: Express | None = None
        self._opening = asyncio.Lock()
        self._waiting: dict[str, asyncio.Future[Frame]] = {}
        self._hearing: dict[str, _Heard] = {}
        """What many answers are expected to."""
        self._asked = 0
        bus.when_lost(self._lost)

    async def ask(
        self, subject: str, data: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> bytes:
        """Return the answer of whoever serves a subject.

        Raises:
            NobodyServes: Nobody does.
            BusUnavailable: The bus is away, or went away.
            BodyTooLarge: The message is larger than the bus takes.
            DeadlineExceeded: No answer came in time.
            ClawdbotError: The service's own error.
        """
        if not self._bus.connected:
            raise BusUnavailable("the bus is away; try again")
        express = self._express or await self._open()
        self._asked += 1
        token = str(self._asked)
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[token] = answer
        try:
            express.publish(subject, data, encode_head(headers), f"{self._inbox}.{token}")
            async with asyncio.timeout(timeout_s):
                frame = await answer
        except MaxPayloadError as error:
            raise self._too_large(data) from error
        except NatsError as error:
            raise BusUnavailable("the bus is away; try again") from error
        except TimeoutError as error:
            raise DeadlineExceeded(f"no answer came within {timeout_s:g} seconds") from error
        finally:
            self._waiting.pop(token, None)
        if frame.head.startswith(_NO_RESPONDERS):
            raise NobodyServes
        if frame.head:
            _check(decode_head(frame.head), frame.data)
        return frame.data

    async def stream(
        self, subject: str, data: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> AsyncGenerator[tuple[bytes, bool], None]:
        """Yield the parts of an answer, and whether each is the last.

        Raises:
            NobodyServes, BodyTooLarge, DeadlineExceeded: As `ask`.
            ResourceExhausted: The parts come faster than they are taken.
            BusUnavailable: The bus is away, or went away.
            ClawdbotError: The service's own error.
        """
        head = encode_head(headers)
        try:
            async with aclosing(self._frames(subject, data, head, timeout_s)) as frames:
                async for frame in frames:
                    if frame.head.startswith(_NO_RESPONDERS):
                        raise NobodyServes
                    said = decode_head(frame.head) if frame.head else {}
                    _check(said, frame.data)
                    is_last = Header.PART not in said
                    yield frame.data, is_last
                    if is_last:
                        return
        except MaxPayloadError as error:
            raise self._too_large(data) from error
        except NatsError as error:
            raise BusUnavailable("the bus is away; try again") from error
        raise DeadlineExceeded(f"no answer came within {timeout_s:g} seconds")

    def new_name(self) -> str:
        """Return a name for a request, one subject token, that no other has."""
        self._named += 1
        return f"{self._own}-{self._named}"

    def tell(self, subject: str) -> None:
        """Say something to whoever listens, once anything was asked and while the bus is there."""
        if self._bus.connected and self._express is not None:
            with suppress(NatsError):
                self._express.publish(subject, b"")

    async def gather(
        self, subject: str, silence_s: float, data: bytes = b"", head: bytes = b""
    ) -> AsyncGenerator[bytes, None]:
        """Yield the answers of all who serve a subject, until none came for so long.

        Raises:
            BusUnavailable: The bus is away, or went away.
        """
        async with aclosing(self._frames(subject, data, head, silence_s)) as frames:
            async for frame in frames:
                if frame.head.startswith(_NO_RESPONDERS):
                    return
                yield frame.data

    async def _frames(
        self, subject: str, data: bytes, head: bytes, silence_s: float
    ) -> AsyncGenerator[Frame, None]:
        """Publish, and yield whatever comes back."""
        if not self._bus.connected:
            raise BusUnavailable("the bus is away; try again")
        express = self._express or await self._open()
        self._asked += 1
        token = str(self._asked)
        heard = self._hearing[token] = _Heard()
        try:
            express.publish(subject, data, head, f"{self._inbox}.{token}")
            while True:
                try:
                    async with asyncio.timeout(silence_s):
                        frame = await heard.next()
                except TimeoutError:
                    return
                yield frame
        finally:
            self._hearing.pop(token, None)

    async def _open(self) -> Express:
        async with self._opening:
            if self._express is None:
                express = await Express.of(self._bus.nc)
                await express.subscribe(f"{self._inbox}.*", self._on_answer)
                self._express = express
            return self._express

    def _too_large(self, data: bytes) -> BodyTooLarge:
        most = self._bus.nc.max_payload
        return BodyTooLarge(f"the inputs take {len(data)} bytes, a message holds {most}")

    def _on_answer(self, frame: Frame) -> None:
        token = frame.subject.rpartition(".")[2]
        answer = self._waiting.get(token)
        if answer is not None:
            if not answer.done():
                answer.set_result(frame)
            return
        heard = self._hearing.get(token)
        if heard is not None:
            heard.put(frame)

    def _lost(self) -> None:
        """Give up what was asked: the answers go to a connection that is no more."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(BusUnavailable("the bus went away meanwhile; try again"))
        for heard in self._hearing.values():
            heard.end(BusUnavailable("the bus went away meanwhile; try again"))


class _Heard:
    """Answers to one question, in the order they came."""

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()
        self._more = asyncio.Event()
        self._error: ClawdbotError | None = None

    def put(self, frame: Frame) -> None:
        """Take an answer; where too many wait, this is the end."""
        if len(self._frames) >= HEARD_MAX:
            self.end(ResourceExhausted("the answer comes in parts faster than it is taken"))
        elif self._error is None:
            self._frames.append(frame)
            self._more.set()

    def end(self, error: ClawdbotError) -> None:
        """Take no more."""
        self._error = self._error or error
        self._more.set()

    async def next(self) -> Frame:
        """Return the next answer.

        Raises:
            ClawdbotError: There will be none.
        """
        while not self._frames:
            if self._error is not None:
                raise self._error
            self._more.clear()
            await self._more.wait()
        return self._frames.popleft()


def _check(headers: Mapping[str, str], data: bytes) -> None:
    """Raise the error that an answer is, if it is one.

    Source: ADR-32 of NATS, `Nats-Service-Error-Code`.
    """
    status = headers.get("Nats-Service-Error-Code")
    if status is None:
        return
    try:
        fault = ErrorBody.model_validate(orjson.loads(data)).error
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise EngineFailed(headers.get("Nats-Service-Error", "the service failed")) from error
    kind: type[ClawdbotError] = by_code().get(fault.code, EngineFailed)
    if status == _TOO_LARGE and STATUS.get(fault.code) != int(_TOO_LARGE):
        kind = BodyTooLarge
    raise kind(fault.message, field=fault.field)

"""Asks services that answer over core NATS; many at once go in few messages."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
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
    by_code,
)
from schemas.ids import new_id
from schemas.messages import Header
from schemas.pieces import Body
from services.bundles import HEAD, HEADERS_BYTES, Item, pack, unpack
from services.deadlines import Deadlines
from services.errors import STATUS, BodyTooLarge
from services.hearing import Heard
from services.lanes import Asked, Lane, Pace, Sent
from services.runtime import Bus


SWEEP_S = 0.1
"""How often requests are looked at that may be past their deadline."""
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
        pace: How far what may share a message goes ahead of answers.
    """

    def __init__(self, bus: Bus, pace: Pace | None = None) -> None:
        self._bus = bus
        self._pace = pace or Pace()
        self._inbox = bus.nc.new_inbox()
        self._express: Express | None = None
        self._opening = asyncio.Lock()
        self._own = new_id()
        self._named = 0
        self._under_way: dict[str, Asked] = {}
        self._hearing: dict[str, Heard] = {}
        """What many answers are expected to."""
        self._lanes: dict[str, Lane] = {}
        self._asked = 0
        self._deadlines = Deadlines(SWEEP_S, self._under_way.values())
        bus.when_lost(self._lost)

    async def ask(
        self,
        subject: str,
        data: Body,
        headers: Mapping[str, str],
        timeout_s: float,
        *,
        together: bool = False,
    ) -> bytes:
        """Return the answer of whoever serves a subject.

        Args:
            subject: Where to.
            data: The body.
            headers: The headers.
            timeout_s: Longest wait.
            together: Whether it may share a message with others to the same subject.

        Raises:
            NobodyServes: Nobody does.
            BusUnavailable: The bus is away, or went away.
            BodyTooLarge: The message is larger than the bus takes.
            DeadlineExceeded: No answer came in time.
            ClawdbotError: The service's own error.
        """
        if not self._bus.connected:
            raise BusUnavailable("the bus is away; try again")
        if self._express is None:
            await self._open()
        if len(data) + HEADERS_BYTES > self._bus.nc.max_payload:
            raise self._too_large(data)
        loop = asyncio.get_running_loop()
        self._asked += 1
        token = str(self._asked)
        future: asyncio.Future[Item[bytes]] = loop.create_future()
        item = Item(token, dict(headers), data)
        asked = Asked(item, future, timeout_s, loop.time() + timeout_s)
        self._under_way[token] = asked
        self._deadlines.watch()
        self._put(subject, asked, together=together)
        try:
            answer = await future
        finally:
            del self._under_way[token]
            self._over(asked)
        _check(answer.headers, answer.body)
        return answer.body

    async def stream(
        self, subject: str, data: Body, headers: Mapping[str, str], timeout_s: float
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
        self, subject: str, data: Body, head: bytes, silence_s: float
    ) -> AsyncGenerator[Frame, None]:
        """Publish, and yield whatever comes back."""
        if not self._bus.connected:
            raise BusUnavailable("the bus is away; try again")
        express = self._express or await self._open()
        self._asked += 1
        token = str(self._asked)
        heard = self._hearing[token] = Heard()
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

    def _too_large(self, data: Body) -> BodyTooLarge:
        most = self._bus.nc.max_payload
        return BodyTooLarge(f"the inputs take {len(data)} bytes, a message holds {most}")

    def _put(self, subject: str, asked: Asked, *, together: bool) -> None:
        """Send a request: alone, at the end of this turn, or behind those before it."""
        if not together:
            self._send(subject, [asked])
            return
        lane = self._lanes.get(subject)
        if lane is None:
            lane = self._lanes[subject] = Lane(subject, self._pace)
        lane.waiting.append(asked)
        if lane.timer is None:
            loop = asyncio.get_running_loop()
            if lane.busy:
                lane.timer = loop.call_later(lane.hold_s, self._flush_late, lane)
            else:
                lane.timer = loop.call_soon(self._flush, lane)

    def _flush_late(self, lane: Lane) -> None:
        """Send all that waits."""
        self._flush(lane, late=True)

    def _flush(self, lane: Lane, *, late: bool = False) -> None:
        """Send what waits and there is room for."""
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        loop = asyncio.get_running_loop()
        for together in lane.leave(late=late):
            sent = Sent(lane, len(together), loop.time())
            lane.unanswered += 1
            lane.under_way += len(together)
            for asked in together:
                asked.sent = sent
            self._send(lane.subject, together)
        if lane.waiting:
            lane.timer = loop.call_later(lane.hold_s, self._flush_late, lane)
        elif not lane.unanswered:
            self._lanes.pop(lane.subject, None)

    def _send(self, subject: str, together: Sequence[Asked]) -> None:
        assert self._express is not None, "who asks has opened it"
        items = [asked.item for asked in together]
        if len(items) == 1:
            data, head = items[0].body, encode_head(items[0].headers)
        else:
            data, head = pack(items), HEAD
        try:
            self._express.publish(subject, data, head, f"{self._inbox}.{items[0].token}")
        except NatsError:
            _fail(together, BusUnavailable("the bus is away; try again"))

    def _on_answer(self, frame: Frame) -> None:
        token = frame.subject.rpartition(".")[2]
        heard = self._hearing.get(token)
        if heard is not None:
            heard.put(frame)
        elif frame.head == HEAD:
            for item in unpack(frame.data):
                self._settle(item)
        elif frame.head.startswith(_NO_RESPONDERS):
            self._nobody(token)
        else:
            self._settle(Item(token, decode_head(frame.head) if frame.head else {}, frame.data))

    def _settle(self, answer: Item[bytes]) -> None:
        asked = self._under_way.get(answer.token)
        if asked is not None and not asked.answer.done():
            asked.answer.set_result(answer)
            self._over(asked)

    def _over(self, asked: Asked) -> None:
        """Count a request that is over, and send what waited for the end of its message."""
        sent, asked.sent = asked.sent, None
        if sent is None:
            return
        lane = sent.lane
        sent.left -= 1
        lane.under_way -= 1
        if sent.left:
            return
        lane.over(sent, asyncio.get_running_loop().time())
        if lane.waiting:
            if not lane.busy:
                self._flush(lane)
        elif not lane.unanswered:
            self._lanes.pop(lane.subject, None)

    def _nobody(self, token: str) -> None:
        """Give up what went in a message that nobody took."""
        first = self._under_way.get(token)
        gone = [] if first is None else [first]
        if first is not None and first.sent is not None:
            gone = [asked for asked in self._under_way.values() if asked.sent is first.sent]
        _fail(gone, NobodyServes())

    def _lost(self) -> None:
        """Give up what was asked: the answers go to a connection that is no more."""
        gone = BusUnavailable("the bus went away meanwhile; try again")
        _fail(self._under_way.values(), gone)
        for heard in self._hearing.values():
            heard.end(gone)


def _fail(asked: Iterable[Asked], error: ClawdbotError) -> None:
    for item in asked:
        item.fail(error)


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

"""Requests and answers that share messages, over a real server."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable

import nats
import pytest
from nats.aio.client import Client as Nats

from events.express import Express, Frame, decode_head
from events.streams import StreamLimits
from schemas.errors import ClawdbotError, DeadlineExceeded, InvalidArgument, Unavailable
from services import micro
from services.bundles import HEAD, ITEMS_MAX, Item, pack, unpack
from services.lanes import AHEAD, FEW
from services.requests import Requests
from services.runtime import Bus
from tests.support.nats import NatsServer
from tests.support.wait import until


pytestmark = [pytest.mark.nats, pytest.mark.timeout(30)]
SUBJECT = "desk.a"
AT_ONCE = 40


async def answer(asked: micro.Asked) -> micro.Reply:
    """Give back what came, or what it asks for."""
    match asked.body:
        case b"wrong":
            raise InvalidArgument("not like this", field="body")
        case b"never":
            await asyncio.Event().wait()
        case b"slow":
            await asyncio.sleep(0.2)
        case _:
            pass
    return micro.Reply(asked.body + asked.headers["n"].encode(), {"n": asked.headers["n"]})


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    """The connection of who asks."""
    bus = await Bus.connect(nats_server.url, "asking", StreamLimits())
    yield bus
    await bus.close()


@pytest.fixture
async def messages(nc: Nats) -> AsyncIterator[list[Frame]]:
    """A desk that answers, and the messages that it gets."""
    seen: list[Frame] = []
    await (await Express.of(nc)).subscribe(SUBJECT, seen.append)
    desk = micro.Endpoint("desk", "a", SUBJECT, "gives back", answer, in_flight_max=AT_ONCE)
    async with serving(nc, desk):
        yield seen


@contextlib.asynccontextmanager
async def serving(nc: Nats, desk: micro.Endpoint) -> AsyncIterator[None]:
    """Answer at a desk, and leave it as a service does that is told to stop."""

    async def serve(ready: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            await micro.serve(nc, group, desk, "one")
            for _ in range(2):  # nats-py's first PING may overtake what it has still to send
                await nc.flush()
            ready.set()

    ready = asyncio.Event()
    task = asyncio.ensure_future(serve(ready))
    await ready.wait()
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def ask(requests: Requests, body: bytes, number: int = 0, timeout_s: float = 5) -> bytes:
    """Ask the desk, together with who else asks."""
    headers = {"n": str(number)}
    return await requests.ask(SUBJECT, body, headers, timeout_s, together=True)


Answer = bytes | ClawdbotError


async def all_of(asked: Iterable[Awaitable[bytes]]) -> list[Answer]:
    """Return the answer to each, or its error."""

    async def one(awaitable: Awaitable[bytes]) -> Answer:
        try:
            return await awaitable
        except ClawdbotError as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(awaitable)) for awaitable in asked]
    return [task.result() for task in tasks]


def kinds(answers: Iterable[Answer]) -> Counter[str]:
    """Count answers and errors by their class."""
    return Counter(type(answer).__name__ for answer in answers)


async def test_what_is_asked_at_once_travels_together(bus: Bus, messages: list[Frame]) -> None:
    """Each gets its own answer, or its own error."""
    requests = Requests(bus)
    bodies = [b"wrong" if number == 3 else b"x" for number in range(AT_ONCE)]
    asked = [ask(requests, body, number) for number, body in enumerate(bodies)]
    answers = await all_of(asked)
    wrong = answers.pop(3)
    assert isinstance(wrong, InvalidArgument)
    assert ("not like this", "body") == (wrong.message, wrong.field)
    assert answers == [b"x%d" % number for number in range(AT_ONCE) if number != 3]
    assert [AT_ONCE // AHEAD] * AHEAD == [len(unpack(frame.data)) for frame in messages]


async def test_a_few_share_one_message(bus: Bus, messages: list[Frame]) -> None:
    """More would cost more than it gains."""
    requests = Requests(bus)
    await all_of(ask(requests, b"x", number) for number in range(FEW))
    assert [FEW] == [len(unpack(frame.data)) for frame in messages]


async def test_those_under_way_are_spread_evenly(bus: Bus, messages: list[Frame]) -> None:
    """Behind one alone, all others do not become one crowd: that would stay together for ever."""
    requests = Requests(bus)
    slow = asyncio.ensure_future(ask(requests, b"slow", 0))
    await asyncio.sleep(0.02)
    await all_of(ask(requests, b"x", number) for number in range(31))
    sizes = [len(unpack(frame.data)) for frame in messages[1:]]
    assert [8, 8, 8, 7] == sizes  # the last ones behind three messages and the slow one
    await slow


async def test_one_alone_is_a_message_as_ever(bus: Bus, messages: list[Frame]) -> None:
    """Nobody has to know of bundles to see it, or to answer it."""
    assert b"x7" == await ask(Requests(bus), b"x", 7)
    [frame] = messages
    assert (b"x", "7") == (frame.data, frame.headers()["n"])


async def test_who_does_not_want_to_shares_no_message(bus: Bus, messages: list[Frame]) -> None:
    """As several processes may answer, each one request."""
    requests = Requests(bus)
    await all_of(requests.ask(SUBJECT, b"x", {"n": "1"}, 5) for _ in range(10))
    assert 10 == len(messages)


async def test_behind_some_messages_one_waits_a_moment(bus: Bus, messages: list[Frame]) -> None:
    """Not for their answers: only so long that others may join it."""
    requests = Requests(bus)
    never = []
    for number in range(AHEAD):
        never.append(asyncio.ensure_future(ask(requests, b"never", number, timeout_s=20)))
        await asyncio.sleep(0.02)
    late = await all_of(ask(requests, b"x", number) for number in range(5))
    assert late == [b"x%d" % number for number in range(5)]
    assert AHEAD + 1 == len(messages)
    for task in never:
        task.cancel()


async def test_too_many_are_refused_one_by_one(bus: Bus, nc: Nats) -> None:
    """Those there is room for are answered."""
    requests, may_answer, seen = Requests(bus), asyncio.Event(), list[Frame]()

    async def answer_later(asked: micro.Asked) -> micro.Reply:
        await may_answer.wait()
        return micro.Reply(asked.body)

    async def are_refused() -> bool:
        return sum(task.done() for task in asked) == 5

    await (await Express.of(nc)).subscribe("desk.c", seen.append)
    async with serving(nc, micro.Endpoint("desk", "c", "desk.c", "", answer_later, AT_ONCE)):
        asked = [
            asyncio.ensure_future(requests.ask("desk.c", b"x", {}, 25, together=True))
            for _ in range(AT_ONCE + 5)
        ]
        await until(are_refused, what="the refusals", timeout_s=20)
        may_answer.set()
        answers = await all_of(asked)
    assert {"Unavailable": 5, "bytes": AT_ONCE} == kinds(answers)
    assert AHEAD == len(seen)


async def test_one_without_an_answer_holds_up_nobody(bus: Bus, messages: list[Frame]) -> None:
    """It is over at its own time."""
    requests = Requests(bus)
    never = asyncio.ensure_future(ask(requests, b"never", timeout_s=0.3))
    assert [b"x1", b"x2"] == await all_of(ask(requests, b"x", n) for n in (1, 2))
    with pytest.raises(DeadlineExceeded):
        await never
    assert b"x3" == await ask(requests, b"x", 3)
    assert messages


async def test_nobody_there_is_told_to_all_at_once(bus: Bus) -> None:
    """Not after a timeout."""
    asked = (ask(Requests(bus), b"x", number) for number in range(3))
    answers = await all_of(asked)
    assert {"NobodyServes": 3} == kinds(answers)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x01",
        pack([Item("1", {}, b"")])[:-1],
        pack([Item("1", {"a": 1}, b"")]),  # type: ignore[dict-item]
        pack([Item(1, {}, b"")]),  # type: ignore[arg-type]
        pack([Item("1", {}, "text")]),  # type: ignore[arg-type]
        pack([Item(str(number), {}, b"") for number in range(ITEMS_MAX + 1)]),
    ],
)
async def test_a_damaged_bundle_is_refused(nc: Nats, messages: list[Frame], body: bytes) -> None:
    """With a word, and the desk goes on."""
    answers: asyncio.Queue[Frame] = asyncio.Queue()
    express = await Express.of(nc)
    await express.subscribe("answers.*", answers.put_nowait)
    express.publish(SUBJECT, body, HEAD, "answers.1")
    refused = decode_head((await answers.get()).head)
    assert "400" == refused["Nats-Service-Error-Code"]
    express.publish(SUBJECT, pack([Item("7", {"n": "1"}, b"x")]), HEAD, "answers.2")
    assert [Item("7", {"n": "1"}, b"x1")] == unpack((await answers.get()).data)
    assert 2 == len(messages)


async def test_who_leaves_loses_nothing(nats_server: NatsServer, bus: Bus, nc: Nats) -> None:
    """Of two that answer one stops while requests come: each is answered, or refused at once."""
    requests, desk = Requests(bus), micro.Endpoint("desk", "b", "desk.b", "", answer, AT_ONCE)

    async def ask_on(over: asyncio.Event) -> Counter[str]:
        seen: Counter[str] = Counter()
        while not over.is_set():
            try:
                await requests.ask("desk.b", b"x", {"n": "1"}, 5)
                seen["answered"] += 1
            except DeadlineExceeded:
                seen["lost"] += 1
            except Unavailable:
                seen["refused"] += 1
        return seen

    async with serving(nc, desk):
        for _ in range(5):
            other, over = await nats.connect(nats_server.url), asyncio.Event()
            async with serving(other, desk):
                asking = [asyncio.ensure_future(ask_on(over)) for _ in range(20)]
                await asyncio.sleep(0.05)
            await other.close()
            over.set()
            seen = sum([await task for task in asking], Counter())
            assert 0 == seen["lost"], seen
            assert seen["answered"] > 0

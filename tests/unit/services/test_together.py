"""What queues for a stream leaves as one message, and comes apart again on the other side."""

import asyncio

import pytest
from nats.errors import TimeoutError as NatsTimeout
from typing_extensions import override

from events.express import Express
from services.bundles import BYTES_MAX, HEAD, unpack
from services.runtime import Outgoing
from services.together import Together, TogetherBySubject


class Stream(Express):
    """Keeps what is published; a test gives the answers."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, bytes]] = []
        self.answers: list[asyncio.Future[bytes]] = []
        self.twice = asyncio.Event()

    @override
    def ask(self, subject: str, data: bytes, head: bytes = b"") -> "asyncio.Future[bytes]":
        """Take note of a message."""
        self.sent.append((subject, data, head))
        self.answers.append(asyncio.get_running_loop().create_future())
        if len(self.sent) > 1:
            self.twice.set()
        return self.answers[-1]


def message(name: str, size: int = 1) -> Outgoing:
    """Return a message of its own subject."""
    return Outgoing(f"submit.{name}", b"x" * size, {"Clawdbot-Run-Id": name})


async def turn() -> None:
    """Let what was called soon happen."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_who_comes_while_one_is_under_way_leaves_with_the_next() -> None:
    """Alone a message is as ever; a bundle keeps each one's subject, headers and body."""
    stream = Stream()
    together = Together(stream, items_max=32)
    first = together.ask(message("a"))
    await turn()
    others = [together.ask(message(name)) for name in "bc"]
    await turn()
    assert [("submit.a", b"x")] == [(subject, data) for subject, data, _ in stream.sent]
    assert b"Clawdbot-Run-Id: a" in stream.sent[0][2]
    stream.answers[0].set_result(b"1")
    assert b"1" == await first
    subject, data, head = stream.sent[1]
    assert ("submit.b", HEAD) == (subject, head)
    assert [
        ("submit.b", {"Clawdbot-Run-Id": "b"}, b"x"),
        ("submit.c", {"Clawdbot-Run-Id": "c"}, b"x"),
    ] == [tuple(item) for item in unpack(data)]
    stream.answers[1].set_result(b"2")
    assert [b"2", b"2"] == [await other for other in others]


async def test_all_learn_that_nothing_is_known() -> None:
    """The bundle's error is that of everybody in it; the next one leaves all the same."""
    stream = Stream()
    together = Together(stream, items_max=32)
    asked = [together.ask(message(name)) for name in "ab"]
    await turn()
    later = together.ask(message("c"))
    stream.answers[0].set_exception(NatsTimeout())
    for one in asked:
        with pytest.raises(NatsTimeout):
            await one
    await turn()
    stream.answers[1].set_result(b"2")
    assert b"2" == await later


async def test_a_lost_ack_holds_nobody_up() -> None:
    """What waits leaves after a moment, whatever became of the message before."""
    stream = Stream()
    together = Together(stream, items_max=32)
    _ = together.ask(message("a"))
    await turn()
    _ = together.ask(message("b"))
    async with asyncio.timeout(30):
        await stream.twice.wait()
    assert "submit.b" == stream.sent[1][0]


async def test_who_gave_up_before_is_not_sent() -> None:
    """A request whose time is over was told that nothing was stored."""
    stream = Stream()
    together = Together(stream, items_max=32)
    _ = together.ask(message("a"))
    await turn()
    gone, there = together.ask(message("b")), together.ask(message("c"))
    gone.cancel()
    stream.answers[0].set_result(b"1")
    await turn()
    stream.answers[1].set_result(b"2")
    assert b"2" == await there
    assert ["submit.a", "submit.c"] == [subject for subject, _, _ in stream.sent]


async def test_bundles_have_limits() -> None:
    """Of items, and of bytes: a large message is alone."""
    stream = Stream()
    together = Together(stream, items_max=2)
    for name, size in (("a", 1), ("b", 1), ("c", 1), ("d", BYTES_MAX), ("e", 1)):
        _ = together.ask(message(name, size))
    for number in range(3):
        await turn()
        stream.answers[number].set_result(b"1")
    await turn()
    sent = [(subject, head == HEAD) for subject, _, head in stream.sent]
    assert [
        ("submit.a", True),
        ("submit.c", False),
        ("submit.d", False),
        ("submit.e", False),
    ] == sent


async def test_one_is_no_bundle() -> None:
    """With `items_max` 1 every message leaves at once, by itself."""
    stream = Stream()
    together = Together(stream, items_max=1)
    for name in "abc":
        _ = together.ask(message(name))
    assert 3 == len(stream.sent)


async def test_subjects_may_be_kept_apart() -> None:
    """Nobody waits for, or travels with, a message of another subject."""
    stream = Stream()
    together = TogetherBySubject(stream, items_max=32)
    answers = [together.ask(message(name)) for name in "abba"]
    await turn()
    assert ["submit.a", "submit.b"] == [subject for subject, _, _ in stream.sent]
    assert [2, 2] == [len(unpack(data)) for _, data, _ in stream.sent]
    assert not any(answer.done() for answer in answers)

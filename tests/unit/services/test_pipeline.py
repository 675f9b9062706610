"""Requests of a stream: answered in their order, computed side by side, never too many."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from services.gateway.inference import pipeline
from services.gateway.inference.pipeline import in_order


class Play:
    """Answers numbers when it is told to; negative ones in two parts."""

    def __init__(self) -> None:
        self.let_go: dict[int, asyncio.Event] = {}
        self.begun: list[int] = []
        self.cancelled: list[int] = []

    async def answer(self, number: int) -> AsyncGenerator[str, None]:
        """Answer one."""
        self.begun.append(number)
        try:
            await self.let_go.setdefault(number, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        yield f"{number}"
        if number < 0:
            yield f"{number} again"

    async def may_grow(self, number: int) -> bool:
        """Tell whether it is negative."""
        return number < 0

    def free(self, *numbers: int) -> None:
        """Let answers go."""
        for number in numbers:
            self.let_go.setdefault(number, asyncio.Event()).set()


async def asked(*numbers: int) -> AsyncIterator[int]:
    """Yield requests."""
    for number in numbers:
        yield number


async def settled() -> None:
    """Let everything go on that can."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_answers_keep_their_order() -> None:
    """The last is ready first; one in parts begins when it is next."""
    play = Play()
    heard: list[str] = []

    async def hear() -> None:
        async for piece in in_order(asked(1, 2, -3, 4), play.answer, play.may_grow):
            heard.append(piece)  # noqa: PERF401 - one by one, as they come

    task = asyncio.ensure_future(hear())
    await settled()
    assert [1, 2, 4] == play.begun
    play.free(4, 2)
    await settled()
    assert [] == heard
    play.free(1)
    await settled()
    assert (["1", "2"], -3) == (heard, play.begun[-1])
    play.free(-3)
    await task
    assert ["1", "2", "-3", "-3 again", "4"] == heard


async def test_only_so_many_are_under_way() -> None:
    """The next one is read when the first is answered."""
    play = Play()
    pieces = in_order(asked(*range(200)), play.answer, play.may_grow)
    async with aclosing(pieces):
        play.free(0)
        assert "0" == await anext(pieces)
        await settled()
        assert pipeline.AHEAD_MAX <= len(play.begun) <= pipeline.AHEAD_MAX + 3


async def test_closed_it_cancels_what_is_under_way() -> None:
    """Also the reader, which waits for more."""
    play = Play()
    reading = asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        yield 1
        yield 2
        try:
            await asyncio.Event().wait()
        finally:
            reading.set()

    pieces = in_order(endless(), play.answer, play.may_grow)
    play.free(1)
    assert "1" == await anext(pieces)
    await settled()
    await pieces.aclose()
    assert ([2], True) == (play.cancelled, reading.is_set())

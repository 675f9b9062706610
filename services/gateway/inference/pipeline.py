"""Requests of one stream, answered in their order, and computed together where that can be.

Whoever sends the next request before the last one is answered wants them computed side by side.
A request whose answer is one piece begins at once; one that may be answered in parts begins when it
is next, because its parts would have to wait somewhere.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Generic, TypeVar


T = TypeVar("T")

AHEAD_MAX = 64
"""Requests of one stream that are under way; the next one is read when the first is answered."""

Answer = Callable[[T], AsyncGenerator[Any, None]]
"""Yields the pieces of the answer to one request; it raises nothing."""
MayGrow = Callable[[T], Awaitable[bool]]
"""Tells whether the answer to a request may come in parts."""


async def in_order(
    requests: AsyncIterator[T], answer: Answer[T], may_grow: MayGrow[T]
) -> AsyncGenerator[Any, None]:
    """Yield the answers to requests in their order; closed, all that is under way is cancelled."""
    line = _Line(answer, may_grow)
    reader = asyncio.ensure_future(line.read(requests))
    try:
        while (item := await line.waiting.get()) is not None:
            async with aclosing(line.pieces(item)) as pieces:
                async for piece in pieces:
                    yield piece
        await reader
    finally:
        await line.close(reader)


class _Line(Generic[T]):
    """The requests under way."""

    def __init__(self, answer: Answer[T], may_grow: MayGrow[T]) -> None:
        self._answer = answer
        self._may_grow = may_grow
        self._begun: set[asyncio.Task[list[Any]]] = set()
        self.waiting: asyncio.Queue[T | asyncio.Task[list[Any]] | None]
        self.waiting = asyncio.Queue(AHEAD_MAX)
        """Requests that have not begun, and tasks of those that have; None at the end."""

    async def read(self, requests: AsyncIterator[T]) -> None:
        """Begin what can begin, as it comes."""
        try:
            async for request in requests:
                if await self._may_grow(request):
                    await self.waiting.put(request)
                    continue
                task = asyncio.ensure_future(_whole(self._answer(request)))
                self._begun.add(task)
                await self.waiting.put(task)
        finally:
            await self.waiting.put(None)

    async def pieces(self, item: T | asyncio.Task[list[Any]]) -> AsyncGenerator[Any, None]:
        """Yield the pieces of an answer."""
        if isinstance(item, asyncio.Task):
            for piece in await item:
                yield piece
            self._begun.discard(item)
            return
        async with aclosing(self._answer(item)) as pieces:
            async for piece in pieces:
                yield piece

    async def close(self, reader: "asyncio.Task[None]") -> None:
        """Cancel what is left."""
        left = [task for task in (reader, *self._begun) if not task.done()]
        for task in left:
            task.cancel()
        while not self.waiting.empty():
            self.waiting.get_nowait()
        if left:
            await asyncio.wait(left)


async def _whole(pieces: AsyncGenerator[Any, None]) -> list[Any]:
    async with aclosing(pieces):
        return [piece async for piece in pieces]

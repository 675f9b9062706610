"""Streams that say now and then that they are alive."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar


T = TypeVar("T")

ALIVE = b": keep-alive\n\n"
"""A comment among server-sent events. Source: HTML Standard, section 9.2."""


async def with_silence(
    source: AsyncIterator[T], patience_s: float
) -> AsyncGenerator[T | None, None]:
    """Yield what an iterator yields, and None whenever it is silent for too long."""
    pending: asyncio.Task[T] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(next_of(source))
            done, _ = await asyncio.wait([pending], timeout=patience_s)
            if not done:
                yield None
                continue
            task, pending = pending, None
            try:
                item = task.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.wait([pending])


async def next_of(source: AsyncIterator[T]) -> T:
    """Return the next item, as a coroutine that can be a task."""
    return await anext(source)

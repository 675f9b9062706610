"""Blocks that others call off: the first reason counts, and a cancellation is never swallowed."""

import asyncio

import pytest

from schemas.errors import Cancelled, DeadlineExceeded
from services.calling_off import Revocable


async def test_the_block_raises_why_it_was_called_off() -> None:
    """The first reason; whoever works for it sees that it is over, and the task goes on."""
    block = Revocable()
    loop = asyncio.get_running_loop()
    loop.call_soon(block.call_off, Cancelled("gone"))
    loop.call_soon(block.call_off, DeadlineExceeded("late"))
    with pytest.raises(Cancelled, match="gone"), block:
        await asyncio.Event().wait()
    assert block.is_over
    await asyncio.sleep(0)


async def test_a_block_that_ends_by_itself() -> None:
    """Its own error is its error."""
    with pytest.raises(ValueError, match="own"), Revocable():
        raise ValueError("own")
    with Revocable() as block:
        pass
    assert block.is_over


async def test_a_task_that_is_cancelled_besides_is_cancelled() -> None:
    """As with asyncio.timeout."""
    block, begun = Revocable(), asyncio.Event()

    async def work() -> None:
        with block:
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await begun.wait()
    task.cancel()
    block.call_off(Cancelled("gone"))
    with pytest.raises(asyncio.CancelledError):
        await task

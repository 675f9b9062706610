"""What steps of a run say while they compute, for those who follow it."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from pydantic import ValidationError

from events.express import Express, Frame
from events.subjects import RunKey, chunks
from schemas.api import NodePart
from services.gateway.silence import next_of
from services.runtime import Bus
from services.telemetry import get_logger


log = get_logger()
T = TypeVar("T")
HEARD_MAX = 1024
"""Parts that wait for a client that reads slowly; more are left out, and their numbers show it."""


class Listener:
    """Keeps what was heard until somebody takes it."""

    def __init__(self) -> None:
        self._parts: deque[NodePart] = deque()
        self.more = asyncio.Event()

    def hear(self, frame: Frame) -> None:
        """Take a part as it came."""
        if len(self._parts) >= HEARD_MAX:
            return
        try:
            self._parts.append(NodePart.model_validate_json(frame.data))
        except ValidationError:
            log.warning("part_unreadable", subject=frame.subject)
            return
        self.more.set()

    def take(self) -> list[NodePart]:
        """Return all that was heard since the last time."""
        taken = list(self._parts)
        self._parts.clear()
        self.more.clear()
        return taken


@asynccontextmanager
async def listening(bus: Bus, key: RunKey) -> AsyncIterator[Listener]:
    """Listen to the steps of a run."""
    listener, express = Listener(), await Express.of(bus.nc)
    subscription = await express.subscribe(chunks(key), listener.hear)
    try:
        yield listener
    finally:
        await express.unsubscribe(subscription)


async def between(
    source: AsyncIterator[T], listener: Listener
) -> AsyncGenerator[T | list[NodePart], None]:
    """Yield what a source yields, and before it what was heard until then; the source begins."""
    pending: asyncio.Task[T] | None = None
    hearing: asyncio.Task[bool] | None = None
    try:
        yield await anext(source)
        while True:
            pending = pending or asyncio.ensure_future(next_of(source))
            hearing = hearing or asyncio.ensure_future(listener.more.wait())
            await asyncio.wait({pending, hearing}, return_when=asyncio.FIRST_COMPLETED)
            hearing = None if hearing.done() else hearing
            heard = listener.take()
            if heard:
                yield heard
            if pending.done():
                task, pending = pending, None
                yield task.result()
    except StopAsyncIteration:
        return
    finally:
        for left in (pending, hearing):
            if left is not None:
                left.cancel()
                await asyncio.wait({left})

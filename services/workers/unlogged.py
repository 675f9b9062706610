"""Unlogged inferences under way: called off when nobody waits, and answered in parts on request."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from schemas.errors import Cancelled, DeadlineExceeded, ResourceExhausted
from schemas.messages import Header
from schemas.values import Value


WITHDRAWN_MAX = 10_000
"""Withdrawn inferences that a worker remembers: the message may come before the request."""
PARTS_MAX = 1024
"""Parts of an answer that wait to be sent; with one more the inference fails."""

Send = Callable[[Mapping[str, Value], dict[str, str]], Awaitable[None]]
"""Sends a part of an answer, with its headers."""


class Unlogged:
    """Knows which inferences run here, and stops those that nobody waits for."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Timeout] = {}
        self._withdrawn: OrderedDict[str, None] = OrderedDict()

    def withdraw(self, request_id: str) -> None:
        """Stop an inference that is under way; one that is still to come will not begin."""
        self._withdrawn[request_id] = None
        scope = self._running.get(request_id)
        if scope is not None and not scope.expired():
            scope.reschedule(asyncio.get_running_loop().time())
        while len(self._withdrawn) > WITHDRAWN_MAX:
            self._withdrawn.popitem(last=False)

    @asynccontextmanager
    async def under_way(
        self, request_id: str, timeout_s: float | None, model: str
    ) -> AsyncIterator[threading.Event]:
        """Work on an inference within its time, unless it is withdrawn; yields the sign to stop.

        Args:
            request_id: By what it may be withdrawn; empty: never.
            timeout_s: How long the caller waits; None: for as long as it takes.
            model: For the message.

        Raises:
            DeadlineExceeded: It takes longer.
            Cancelled: Nobody waits for it any more.
        """
        sign, scope = threading.Event(), asyncio.timeout(timeout_s)
        withdrawn = Cancelled("the caller withdrew this inference")
        if request_id in self._withdrawn:
            raise withdrawn
        try:
            async with scope:
                if request_id:
                    self._running[request_id] = scope
                yield sign
        except TimeoutError as error:
            if not scope.expired():
                raise
            if request_id in self._withdrawn:
                raise withdrawn from error
            text = f"'{model}' did not answer within {timeout_s:g} seconds"
            raise DeadlineExceeded(text) from error
        finally:
            sign.set()
            self._running.pop(request_id, None)


class Parts:
    """Sends the parts of an answer, in order, as the engine gives them.

    Args:
        send: Sends one.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Queue[Mapping[str, Value] | None] = asyncio.Queue()
        self.sent = 0
        self.names: set[str] = set()
        """Outputs of which something was sent."""

    def emit(self, outputs: Mapping[str, Value]) -> None:
        """Take a part, from any thread.

        Raises:
            ResourceExhausted: Too many wait already.
        """
        if self._waiting.qsize() >= PARTS_MAX:
            raise ResourceExhausted(f"{PARTS_MAX} parts of the answer wait to be sent")
        self._loop.call_soon_threadsafe(self._waiting.put_nowait, outputs)

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Send while the engine works; all that it gave is sent at the end."""
        sender = asyncio.ensure_future(self._forward())
        try:
            yield
            self._loop.call_soon(self._waiting.put_nowait, None)  # behind what threads gave
            await sender
        finally:
            if not sender.done():
                sender.cancel()
                await asyncio.wait([sender])

    async def _forward(self) -> None:
        while (outputs := await self._waiting.get()) is not None:
            self.sent += 1
            self.names |= outputs.keys()
            await self._send(outputs, {Header.PART: str(self.sent)})

"""Unlogged inferences under way: called off when nobody waits, and answered in parts on request."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Self

from typing_extensions import override

from schemas.errors import Cancelled, DeadlineExceeded, ResourceExhausted
from schemas.messages import Header
from schemas.values import Value
from services.calling_off import Revocable
from services.deadlines import Deadlines


WITHDRAWN_MAX = 10_000
"""Withdrawn inferences that a worker remembers: the message may come before the request."""
SWEEP_S = 0.02
"""How often inferences are looked at that may be past their deadline."""
PARTS_MAX = 1024
"""Parts of an answer that wait to be sent; with one more the inference fails."""

Send = Callable[[Mapping[str, Value], dict[str, str]], Awaitable[None]]
"""Sends a part of an answer, with its headers."""


class UnderWay(Revocable):
    """An inference under way; a context that ends with its time, or when it is withdrawn."""

    __slots__ = ("_all", "_model", "_timeout_s", "deadline", "request_id")

    def __init__(
        self, all_: "Unlogged", request_id: str, timeout_s: float | None, model: str
    ) -> None:
        super().__init__()
        self._all = all_
        self._model = model
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self.request_id = request_id
        self.deadline = asyncio.get_running_loop().time() + self._timeout_s
        """By the loop's clock."""

    @override
    def __enter__(self) -> Self:
        self._all.begin(self)
        return super().__enter__()

    @override
    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._all.end(self)
        super().__exit__(kind, error, trace)

    def late(self) -> None:
        """Stop it: it takes longer than its caller waits."""
        text = f"'{self._model}' did not answer within {self._timeout_s:g} seconds"
        self.call_off(DeadlineExceeded(text))

    def is_stopped(self) -> bool:
        """Tell an engine, in whatever thread, whether nobody waits any more."""
        return self.is_over


class Unlogged:
    """Knows which inferences run here, and stops those that nobody waits for."""

    def __init__(self) -> None:
        self._running: dict[UnderWay, None] = {}
        self._named: dict[str, UnderWay] = {}
        self._withdrawn: OrderedDict[str, None] = OrderedDict()
        self._deadlines = Deadlines(SWEEP_S, self._running.keys())

    def withdraw(self, request_id: str) -> None:
        """Stop an inference that is under way; one that is still to come will not begin."""
        self._withdrawn[request_id] = None
        known = self._named.get(request_id)
        if known is not None:
            known.call_off(_withdrawn())
        while len(self._withdrawn) > WITHDRAWN_MAX:
            self._withdrawn.popitem(last=False)

    def under_way(self, request_id: str, timeout_s: float | None, model: str) -> UnderWay:
        """Return a context to work on an inference in, within its time, unless it is withdrawn.

        Args:
            request_id: By what it may be withdrawn; empty: never.
            timeout_s: How long the caller waits; None: for as long as it takes.
            model: For the message.

        Raises:
            DeadlineExceeded: In the context: it takes longer, by up to `SWEEP_S`.
            Cancelled: In the context: nobody waits for it any more.
        """
        return UnderWay(self, request_id, timeout_s, model)

    def begin(self, item: UnderWay) -> None:
        """Take note of one that begins.

        Raises:
            Cancelled: It was withdrawn before it came.
        """
        if item.request_id:
            if item.request_id in self._withdrawn:
                raise _withdrawn()
            self._named[item.request_id] = item
        self._running[item] = None
        self._deadlines.watch()

    def end(self, item: UnderWay) -> None:
        """Forget one that is over."""
        del self._running[item]
        self._named.pop(item.request_id, None)


def _withdrawn() -> Cancelled:
    return Cancelled("the caller withdrew this inference")


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

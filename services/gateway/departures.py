"""What the connection says of a request besides ASGI: that it is all here, that its client went.

What somebody waited for who went away is called off.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from schemas.errors import Cancelled


DEPARTURES = "clawdbot.departures"
"""Of an ASGI scope: what to call when the connection is lost."""
ARRIVED = "clawdbot.arrived"
"""Of an ASGI scope: whether the whole request is here, and its body needs no waiting for."""


class called_off_when_gone:  # noqa: N801 - reads as a word of the sentence
    """Cancels a block when the client's connection is lost, which then raises `Cancelled`.

    A task that waits for the end of the connection would cost more than an inference does; here
    the connection itself calls.

    Args:
        scope: Of the request.
    """

    __slots__ = ("_departures", "_gone", "_task")

    def __init__(self, scope: Any) -> None:
        self._departures: set[Callable[[], None]] = scope.get(DEPARTURES, set())
        self._gone = False

    def __enter__(self) -> None:
        """Begin to listen."""
        task = asyncio.current_task()
        assert task is not None, "a request is served by a task"
        self._task = task
        self._departures.add(self._leave)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Hear no more; raise `Cancelled` where the client is why the block was cancelled."""
        self._departures.discard(self._leave)
        if self._gone and isinstance(error, asyncio.CancelledError):
            self._task.uncancel()
            raise Cancelled("the client went away") from error

    def _leave(self) -> None:
        self._gone = True
        self._task.cancel()

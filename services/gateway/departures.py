"""Clients that go away: what they waited for is called off."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from schemas.errors import Cancelled


DEPARTURES = "clawdbot.departures"
"""Of an ASGI scope: what to call when the connection is lost."""


@contextmanager
def called_off_when_gone(scope: Any) -> Iterator[None]:
    """Cancel the block when the client's connection is lost.

    A task that waits for the end of the connection would cost more than an inference does; here
    the connection itself calls.

    Raises:
        Cancelled: It was lost.
    """
    departures: set[Callable[[], None]] = scope.get(DEPARTURES, set())
    task, gone = asyncio.current_task(), False
    assert task is not None, "a request is served by a task"

    def leave() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    departures.add(leave)
    try:
        yield
    except asyncio.CancelledError as error:
        if not gone:
            raise
        task.uncancel()
        raise Cancelled("the client went away") from error
    finally:
        departures.discard(leave)

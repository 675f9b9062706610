"""Waiting for a condition instead of for time."""

import asyncio
import time
from collections.abc import Awaitable, Callable


async def until(
    condition: Callable[[], Awaitable[bool]], *, what: str, timeout_s: float = 30.0
) -> None:
    """Return as soon as `condition` holds.

    Raises:
        TimeoutError: It did not hold in time; names `what`.
    """
    deadline = time.monotonic() + timeout_s
    while not await condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come about within {timeout_s} s")
        await asyncio.sleep(0.01)


def until_sync(condition: Callable[[], object], *, timeout_s: float = 30.0) -> None:
    """Return as soon as `condition` is true, for tests without an event loop.

    Raises:
        TimeoutError: It was not true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {timeout_s} s")
        time.sleep(0.01)

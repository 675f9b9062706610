"""A process that is told to stop does, whatever became of the first word."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine

import pytest

from services import process


Serve = Callable[[list[str]], Coroutine[None, None, None]]


def told_to_stop() -> None:
    """Send SIGTERM, once the service waits."""
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)


async def clean(seen: list[str]) -> None:
    """Does at its end what it has to."""
    told_to_stop()
    try:
        await asyncio.Event().wait()
    finally:
        seen.append("cleaned up")


async def deaf(seen: list[str]) -> None:
    """Goes on after it was cancelled, as `asyncio.wait_for` may before Python 3.12."""
    told_to_stop()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    seen.append("lost")
    await asyncio.Event().wait()


async def with_a_deaf_task(seen: list[str]) -> None:
    """Waits for a task that goes on."""
    async with asyncio.TaskGroup() as group:
        group.create_task(deaf(seen))


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("serve", "seen"),
    [(clean, ["cleaned up"]), (deaf, ["lost"]), (with_a_deaf_task, ["lost"])],
)
def test_sigterm_ends_it(monkeypatch: pytest.MonkeyPatch, serve: Serve, seen: list[str]) -> None:
    """Told once; whoever lost that word is told again."""
    monkeypatch.setattr(process, "STOP_PATIENCE_S", 0.05)
    found: list[str] = []
    process.run(lambda: serve(found))
    assert found == seen

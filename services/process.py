"""The process of a service: read its settings, serve until told to stop."""

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import uvloop

from schemas.errors import ClawdbotError
from services.allocator import keep_freed
from services.settings import S, read
from services.telemetry import configure, get_logger


STOP_PATIENCE_S = 3.0
log = get_logger()


class Service(Protocol):
    """What a composition root builds."""

    async def run(self) -> None:
        """Serve until cancelled."""
        ...


def main(kind: type[S], build: Callable[[S], Service]) -> None:
    """Run a service: read its settings, build it, serve until SIGTERM or SIGINT.

    What makes a start impossible is one line in the log and exit status 1.
    """
    configure(kind.__module__.split(".")[1])
    try:
        settings = read(kind)
        keep_freed(settings.freed_bytes_kept)
        run(build(settings).run)
    except ClawdbotError as error:
        log.critical("cannot_start", error=error.message, field=error.field, **error.context)
        sys.exit(1)


def run(serve: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Serve until told to stop, then cancel it and let it finish what it holds.

    `asyncio.wait_for`, which the client of the bus uses, may lose a cancellation before Python
    3.12, also that of `serve` itself while it starts; so whatever still runs after a while is
    cancelled again.
    """

    async def supervised() -> None:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()

        def stop() -> None:
            task.cancel()
            loop.call_later(STOP_PATIENCE_S, insist)

        def insist() -> None:
            for running in asyncio.all_tasks(loop):
                running.cancel()
            loop.call_later(STOP_PATIENCE_S, insist)

        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stop)
        with contextlib.suppress(asyncio.CancelledError):
            await serve()
        log.info("stopped")

    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    uvloop.run(supervised())

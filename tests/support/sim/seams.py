"""The one place where production code is cut from the machine: time, randomness, the disk's flush.

Everything else it asks of the machine it asks of the event loop.
"""

import asyncio
import gc
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import structlog

import events.keys
import services.orchestrator.app
import services.workers.app
from services.workers import engines
from tests.support.sim.loop import RUNNING


CATALOGUE = Path(__file__).with_name("engine.yaml")


@contextmanager
def simulated(
    now: Callable[[], float], epoch: float, chance: random.Random, *, said: bool = False
) -> Iterator[None]:
    """Let production code see virtual time and seeded randomness.

    Args:
        now: Virtual seconds since the start.
        epoch: Seconds since the epoch at the start.
        chance: Where all randomness comes from.
        said: Whether log lines are printed.
    """

    class Keys:
        """Makes data keys from the seed; `cryptography` asks the machine."""

        @staticmethod
        def generate_key(bits: int) -> bytes:
            return chance.randbytes(bits // 8)

    replacements: list[tuple[Any, str, Any]] = [
        (time, "time", lambda: epoch + now()),
        (time, "time_ns", lambda: int((epoch + now()) * 1e9)),
        (time, "monotonic", now),
        (time, "perf_counter", now),
        (time, "perf_counter_ns", lambda: int(now() * 1e9)),
        (os, "urandom", chance.randbytes),
        (random, "_urandom", chance.randbytes),
        (os, "fsync", lambda _: None),
        (events.keys, "AESGCM", Keys),
        (anyio.to_thread, "run_sync", _off_loop),
        (services.orchestrator.app, "configure", lambda *_: None),
        (services.workers.app, "configure", lambda *_: None),
    ]
    engines._CLASSES["moody"] = ("tests.support.sim.moody", "MoodyEngine")
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    state = random.getstate()
    _log(now, said=said)
    gc.collect()
    gc.disable()  # finalizers must not run at moments that no seed decides
    try:
        for owner, name, value in replacements:
            setattr(owner, name, value)
        random.seed(chance.random())
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        random.setstate(state)
        del engines._CLASSES["moody"]
        gc.enable()


async def _off_loop(func: Callable[..., Any], *args: Any, **_: Any) -> Any:
    """Do what FastStream does in a thread of anyio's."""
    return await asyncio.get_running_loop().run_in_executor(None, func, *args)


def _log(now: Callable[[], float], *, said: bool) -> None:
    """Print log lines with virtual time and process, or drop them."""

    def say(_: Any, level: str, line: Any) -> str:
        process = RUNNING.get()
        who = process.name if process else "-"
        event = line.pop("event")
        error = line.pop("exc_info", None)
        facts = " ".join(f"{key}={value}" for key, value in line.items())
        if error:
            facts += " " + repr(sys.exc_info()[1])
        return f"{now():9.4f} {who:14} {level:8} {event} {facts}"

    if said:
        structlog.configure(
            processors=[say],
            wrapper_class=structlog.make_filtering_bound_logger(0),
            logger_factory=structlog.PrintLoggerFactory(),
            cache_logger_on_first_use=False,
        )
    else:
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(50),
            logger_factory=structlog.ReturnLoggerFactory(),
            cache_logger_on_first_use=False,
        )

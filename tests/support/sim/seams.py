"""The one place where production code is cut from the machine: time, randomness, the disk's flush.

Everything else it asks of the machine it asks of the event loop.
"""

import asyncio
import concurrent.futures
import gc
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import structlog
from typing_extensions import override

import events.jetstream
import events.keys
import services.orchestrator.app
import services.workers.app
import services.workers.devices
import services.workers.loading
import services.workers.models
from events.group_commit import GroupCommit
from events.models import Machine
from services.workers import engines
from tests.support.sim.loop import RUNNING, VirtualLoop


BATCH_MIN = 2
"""Commits that make an atomic batch; a few runs would never reach the usual number."""
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
        (events.jetstream, "GroupCommit", partial(GroupCommit, batch_min=BATCH_MIN)),
        (anyio.to_thread, "run_sync", _off_loop),
        (services.workers.models, "ThreadPoolExecutor", _Pool),
        (services.orchestrator.app, "configure", lambda *_: None),
        (services.workers.app, "configure", lambda *_: None),
        (services.workers.app, "held_bytes", lambda: 0),  # what is measured goes into cards
        (services.workers.loading, "held_bytes", lambda: 0),
        (services.workers.devices, "machine", lambda: Machine(cores=1, memory_bytes=0)),
    ]
    engines._CLASSES["moody"] = ("tests.support.sim.moody", "MoodyEngine")
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    state, logging = random.getstate(), structlog.get_config()
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
        structlog.configure(**logging)
        del engines._CLASSES["moody"]
        gc.enable()


class _Pool(concurrent.futures.Executor):
    """A pool without threads: the loop does its work."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take what a pool of threads takes."""

    @override
    def submit(self, fn: Any, /, *args: Any, **_: Any) -> Any:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return loop.submit(fn, *args)


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

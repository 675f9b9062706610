"""An event loop on virtual time: one thread, no sockets, no threads, the same run for every seed.

Time stands still while anything can run and jumps to the next timer when nothing can. Everything a
simulated process starts carries the process in its context, so a process can be paused, or killed
as by SIGKILL: nothing of it ever runs again, no `finally`, no `except`.
"""

import asyncio
import concurrent.futures
import contextlib
import gc
import heapq
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from typing import Any

from typing_extensions import override


@dataclass(eq=False)
class Process:
    """A simulated operating system process."""

    name: str
    mortal: bool = False
    """Whether faults may kill or pause it."""
    alive: bool = True
    held: "deque[asyncio.Handle] | None" = None
    """What waits while the process is paused; None while it runs."""


RUNNING: ContextVar[Process | None] = ContextVar("process", default=None)
"""The process whose code runs; None for the world around: network, server, clients' checks."""

Connect = Callable[[asyncio.Protocol, str, int], asyncio.Transport]
"""Opens a connection for a protocol; raises OSError when nobody listens."""


FINALLY_MAX = 16
"""Awaits in the `finally` blocks of one coroutine."""


STEPS_MAX = 400_000
"""Callbacks of one seed; many times what any needs."""


class Deadlock(AssertionError):
    """Nothing can run and no timer is left."""


class Livelock(AssertionError):
    """Something runs for ever and gets nowhere."""


class _Future(asyncio.Future[Any]):
    """A future whose place in a set does not depend on its address."""

    _number = 0

    @override
    def __hash__(self) -> int:
        return self._number


class _Task(asyncio.Task[Any]):
    """As `_Future`; asyncio's own task groups keep tasks in sets."""

    _number = 0

    @override
    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop.

    Args:
        connect: What opens connections.
        executor_delay_s: Draws how long work in a thread takes.
    """

    def __init__(self, connect: Connect, executor_delay_s: Callable[[], float]) -> None:
        super().__init__()
        self._connect = connect
        self._executor_delay_s = executor_delay_s
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._serial = 0
        self._todo: deque[asyncio.Handle] = deque()
        self.steps = 0
        """Callbacks run so far."""
        self.kept: list[asyncio.Task[Any]] = []
        """Every task: those of a killed process must never be finalized while others run."""

    @override
    def time(self) -> float:
        return self._now

    # ------------------------------------------------------------ processes

    def start(self, process: Process, main: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run a process's main coroutine."""
        context = copy_context()
        context.run(RUNNING.set, process)
        return self.create_task(main, context=context)

    def kill(self, process: Process) -> None:
        """End a process as by SIGKILL."""
        process.alive = False
        process.held = None

    def pause(self, process: Process) -> None:
        """Stop a process as by SIGSTOP."""
        if process.held is None:
            process.held = deque()

    def resume(self, process: Process) -> None:
        """Let a paused process go on with all that happened meanwhile."""
        held, process.held = process.held, None
        if process.alive and held:
            self._todo.extend(held)

    # ------------------------------------------------------------ what asyncio asks of a loop

    @override
    def call_soon(  # type: ignore[override] # without asyncio's variadic generics
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._todo.append(handle)
        return handle

    @override
    def call_soon_threadsafe(  # type: ignore[override] # as above
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    @override
    def call_at(  # type: ignore[override] # as above
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._serial += 1
        heapq.heappush(self._timers, (when, self._serial, timer))
        return timer

    @override
    def call_later(  # type: ignore[override] # as above
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    @override
    def create_future(self) -> "asyncio.Future[Any]":
        self._serial += 1
        future = _Future(loop=self)
        future._number = self._serial
        return future

    @override
    def create_task(  # type: ignore[override] # as above
        self, coro: Any, *, name: str | None = None, context: Context | None = None
    ) -> "asyncio.Task[Any]":
        self._serial += 1
        task = _Task(coro, loop=self, name=name or f"task-{self._serial}", context=context)
        task._number = self._serial
        task._log_destroy_pending = False  # type: ignore[attr-defined] # killed ones are pending
        self.kept.append(task)
        return task

    @override
    def run_in_executor(  # type: ignore[override] # as above
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        """Compute at once and hand over the outcome after a virtual while."""
        future = self.create_future()
        try:
            outcome, error = func(*args), None
        except Exception as raised:  # noqa: BLE001 - handed on, as a thread pool does
            outcome, error = None, raised

        def done() -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(outcome)

        self.call_later(self._executor_delay_s(), done)
        return future

    def submit(self, func: Callable[..., Any], *args: Any) -> "concurrent.futures.Future[Any]":
        """As `run_in_executor`, for who asks a pool of threads himself."""
        job: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def done(outcome: "asyncio.Future[Any]") -> None:
            if not job.set_running_or_notify_cancel():
                return
            error = outcome.exception()
            if error is not None:
                job.set_exception(error)
            else:
                job.set_result(outcome.result())

        self.run_in_executor(None, func, *args).add_done_callback(done)
        return job

    @override
    async def create_connection(  # type: ignore[override] # the one form that nats-py uses
        self, protocol_factory: Callable[[], asyncio.Protocol], host: str, port: int, **_: Any
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        protocol = protocol_factory()
        await asyncio.sleep(0.0005)
        return self._connect(protocol, host, port), protocol

    @override
    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """End the simulation when the world around the processes breaks.

        What a process's own callbacks raise is the process's affair, as in production.
        """
        handle, error = context.get("handle"), context.get("exception")
        outside = handle is not None and handle._context.get(RUNNING) is None
        if outside and error is not None:
            raise error

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""

    def _run_once(self) -> None:
        """Run what is ready; when nothing is, go to the next timer."""
        timers, todo = self._timers, self._todo
        if not todo:
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
            if not timers:
                raise Deadlock("nothing can run and no timer is left")
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            todo.append(heapq.heappop(timers)[2])
        for _ in range(len(todo)):
            self._run(todo.popleft())

    def _run(self, handle: asyncio.Handle) -> None:
        """Run one callback, unless its process is dead or paused."""
        if handle._cancelled:
            return
        process = handle._context.get(RUNNING)  # type: ignore[attr-defined]
        if process is not None and not process.alive:
            return
        if process is not None and process.held is not None:
            process.held.append(handle)
            return
        self.steps += 1
        if self.steps > STEPS_MAX:
            raise Livelock(f"{handle!r} at {self._now}")
        handle._run()

    def bury(self) -> None:
        """Close what processes left behind; nothing of it has any effect any more."""
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            for task in self.kept:
                coroutine = None if task.done() else task.get_coro()
                for _ in range(FINALLY_MAX):
                    if coroutine is None or getattr(coroutine, "cr_frame", None) is None:
                        break
                    with contextlib.suppress(BaseException):
                        coroutine.close()  # a `finally` that awaits needs another push
            self.kept.clear()
            self._todo.clear()
            self._timers.clear()
            gc.collect()
            self.close()
        finally:
            sys.unraisablehook = hook

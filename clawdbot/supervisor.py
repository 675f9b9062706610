"""Keeps processes running: starts them, restarts them with patience, stops them in order."""

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from schemas.errors import FailedPrecondition


BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
STEADY_S = 30.0
"""A process that ran this long begins again with the shortest wait."""
STOP_S = 10.0
READY_S = 60.0
POLL_S = 0.02
LOG_BYTES_MAX = 64 * 1024 * 1024
"""A log that is larger is kept as NAME.log.1, in place of the one before, and begins anew."""
CHECK_S = 2.0
"""Between two looks at a running process: at the size of its log, and whether it is well."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Program:
    """What to run.

    Args:
        name: Of the process, of its log file too.
        command: With arguments.
        ready: Tells from what the process has logged since its start whether it serves.
        environment: Added to ours.
        why: Finds in what the process has logged why it did not start.
        unwell: Tells of a running process why it must be restarted; empty when it need not.
    """

    name: str
    command: Sequence[str]
    ready: Callable[[int, str], bool]
    environment: dict[str, str] = field(default_factory=dict)
    why: Callable[[str], str] = str.strip
    unwell: Callable[[int], Awaitable[str]] | None = None


Report = Callable[[str, str], None]
"""Takes a program's name and one line about it."""


class Supervised:
    """One program, kept running.

    Args:
        program: What to run.
        log: Where its output goes.
        report: Told of every start and end.
    """

    def __init__(self, program: Program, log: Path, report: Report) -> None:
        self.program = program
        self.log = log
        self.restarts = -1
        self._report = report
        self._process: asyncio.subprocess.Process | None = None
        self._offset = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def since_start(self) -> str:
        """Return what the process has logged since it was started last."""
        with self.log.open("rb") as log:
            log.seek(self._offset)
            return log.read().decode(errors="replace")

    async def start(self, group: asyncio.TaskGroup) -> None:
        """Start it, wait until it serves, and have the group keep it running.

        Raises:
            FailedPrecondition: It ended, or did not get ready in time; says what it logged.
        """
        await self._spawn()
        deadline = time.monotonic() + READY_S
        while not self._ready():
            if self.pid is None or time.monotonic() > deadline:
                ended = self.pid is None
                reason = self.program.why(self.since_start())
                await self.stop()
                what = "did not start" if ended else f"was not ready within {READY_S:g} s"
                raise FailedPrecondition(
                    f"{self.program.name} {what}: {reason}\nits log is {self.log}"
                )
            await asyncio.sleep(POLL_S)
        self._task = group.create_task(self._keep(), name=self.program.name)

    async def stop(self) -> None:
        """Stop it and stop watching it; kill it when it does not obey in time."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        process = self._process
        if process is None or process.returncode is not None:
            return
        await self._terminate(process)

    async def _terminate(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)  # a paused process must wake up to obey
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
            self._report(self.program.name, "stopped")
        except TimeoutError:
            self._report(self.program.name, f"did not stop within {STOP_S:g} s; killed")
            process.kill()
            await process.wait()

    async def _keep(self) -> None:
        """Restart it whenever it ends, for ever."""
        failures = 0
        while True:
            process, begun = self._process, time.monotonic()
            assert process is not None
            code = await self._ended(process)
            failures = failures_after(failures, time.monotonic() - begun)
            delay_s = backoff_s(failures)
            self._report(self.program.name, f"ended with {_word(code)}; again in {delay_s:g} s")
            await asyncio.sleep(delay_s)
            try:
                await self._spawn()
            except OSError as error:  # no memory, no room for the log: it will be tried again
                self._report(self.program.name, f"cannot be started: {error.strerror}")

    async def _ended(self, process: asyncio.subprocess.Process) -> int:
        """Wait for a process's end, or end it when it is unwell; keep its log within bounds."""
        unwell = self.program.unwell
        while True:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(process.wait(), CHECK_S)
            reason = "" if unwell is None else await unwell(process.pid)
            if reason:
                self._report(self.program.name, f"must be restarted: {reason}")
                await self._terminate(process)
            try:
                await asyncio.to_thread(turn_over, self.log, LOG_BYTES_MAX)
            except OSError as error:
                self._report(self.program.name, f"cannot turn its log over: {error.strerror}")

    async def _spawn(self) -> None:
        with self.log.open("ab") as log:
            self._offset = log.seek(0, os.SEEK_END)
            self._process = await asyncio.create_subprocess_exec(
                *self.program.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.program.environment},  # noqa: TID251 - handed to a child
                start_new_session=True,  # Ctrl-C reaches us alone; we stop the others in order
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        self.restarts += 1
        self._report(self.program.name, f"started, pid {self._process.pid}")

    def _ready(self) -> bool:
        return self.pid is not None and self.program.ready(self.pid, self.since_start())


def failures_after(failures: int, ran_s: float) -> int:
    """Return how many failures in a row there are after one more, of a run of `ran_s` seconds."""
    return 1 if ran_s > STEADY_S else failures + 1


def backoff_s(failures: int) -> float:
    """Return how long to wait before a start, seconds, after so many failures in a row, >= 1."""
    return BACKOFF_S[min(failures, len(BACKOFF_S)) - 1]


def turn_over(log: Path, bytes_max: int) -> None:
    """Put a log that has grown too large aside and empty it.

    The process that writes it keeps it open, so it is copied; lines written meanwhile are lost.
    """
    if log.stat().st_size > bytes_max:
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent is gone. Source: prctl(2)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _word(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"

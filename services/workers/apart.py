"""The process of an isolated model, seen from its worker."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ormsgpack

from schemas.catalogue import ModelSpec
from schemas.errors import (
    Cancelled,
    ClawdbotError,
    DeadlineExceeded,
    EngineFailed,
    ModelUnavailable,
)
from schemas.values import Value
from services.workers import frames
from services.workers.engine import Engine, Request
from services.workers.frames import Region
from services.workers.memory import MIB, held_bytes


WATCH_MS = 20
"""Between two looks at a process that computes: its memory, its time, whether anybody waits."""
LOOK_S = 1.0
"""Between two looks at the memory of a process whose calls are short."""
ABANDONED_S = 1.0
"""A process that computes what nobody waits for any more is replaced after this long."""
LOAD_S_MAX = 600.0
OURS = "CLAWDBOT_"
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)


class Lost(Exception):
    """A process is no more.

    Args:
        reason: `crash`, `hang`, `memory`, `abandoned`, or `idle`: while nobody used it.
        error: For those who asked.
    """

    def __init__(self, reason: str, error: ClawdbotError) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error


def environment(spec: ModelSpec) -> dict[str, str]:
    """Return the environment of a model's process: no setting of ours, so no key either."""
    found = {key: value for key, value in os.environ.items() if not key.startswith(OURS)}
    threads = None if spec.limits is None else spec.limits.threads
    return found if threads is None else found | dict.fromkeys(_THREAD_VARIABLES, str(threads))


class Process:
    """The process of one model, and the way there; used by one thread at a time.

    Args:
        engine: What it is to load.
    """

    def __init__(self, engine: Engine) -> None:
        spec, kind = engine.spec, type(engine)
        self._memory_max = None if spec.limits is None else spec.limits.memory_bytes
        self._looked_at = time.perf_counter()
        self.is_loaded = False
        self.memory: int | None = None
        """What the engine says that it takes."""
        self.device_bytes = 0
        """What loading took of the memory of GPUs."""
        self.is_on_gpu = False
        self.devices: tuple[str, ...] = ()
        self._requests, self._answers = Region.make(), Region.make()
        self._link, far = socket.socketpair()
        fds = (far.fileno(), self._requests.fd, self._answers.fd)
        command = [sys.executable, "-m", "services.workers.child", *map(str, fds)]
        with far:
            self._popen = subprocess.Popen(  # noqa: S603 - ourselves
                command, stdin=subprocess.DEVNULL, stdout=2, pass_fds=fds, env=environment(spec)
            )
        self.pid = self._popen.pid
        self._poll = select.poll()
        self._poll.register(self._link, select.POLLIN)
        wanted = {
            "spec": spec.model_dump_json(),
            "module": kind.__module__,
            "class": kind.__qualname__,
            "models_dir": str(engine.models_dir),
        }
        self._link.sendall(frames.pack({"load": wanted}))

    @property
    def has_ended(self) -> bool:
        """Whether the process is no more."""
        return self._popen.poll() is not None

    def loaded(self) -> None:
        """Wait until the model is in memory.

        Raises:
            ModelUnavailable: It cannot run here.
            Lost: The process ended.
        """
        answer = self._wait((), LOAD_S_MAX)
        if "error" in answer:
            raise ModelUnavailable(frames.unpack_error(answer["error"]).message)
        self.memory, self.devices = answer["memory"], tuple(answer["devices"])
        self.device_bytes, self.is_on_gpu = answer["device_bytes"], answer["on_gpu"]
        self.is_loaded = True

    def infer(self, batch: Sequence[Request], timeout_s: float) -> list[Mapping[str, Value]]:
        """Return what the engine gives.

        Raises:
            ClawdbotError: The engine's word.
            Lost: The process ended, or had to be ended.
        """
        self._requests.flag = False
        self._requests.rewind()
        asked = [
            {
                "inputs": frames.pack_values(request.inputs, self._requests),
                "params": dict(request.params),
                "key": request.key,
                "emit": request.emit is not None,
            }
            for request in batch
        ]
        try:
            self._link.sendall(frames.pack({"infer": asked}))
        except OSError as error:
            raise self._crashed() from error
        answer = self._wait(batch, timeout_s)
        if "error" in answer:
            raise frames.unpack_error(answer["error"])
        return [frames.unpack_values(found, self._answers) for found in answer["outputs"]]

    def swollen(self) -> Lost | None:
        """Return how much too much memory the process holds, looking every now and then."""
        now = time.perf_counter()
        if self._memory_max is None or now - self._looked_at < LOOK_S:
            return None
        self._looked_at = now
        return self._over(self._memory_max)

    def kill(self) -> None:
        """Kill the process; who waits for its answer learns that it crashed."""
        self._popen.kill()

    def end(self) -> None:
        """Kill the process, and give back all that was shared with it."""
        self._popen.kill()
        self._popen.wait()
        self._link.close()
        self._requests.close()
        self._answers.close()

    def _wait(self, batch: Sequence[Request], timeout_s: float) -> dict[str, Any]:
        """Read the answer, watching the process meanwhile; parts of it are handed on at once."""
        until = time.perf_counter() + timeout_s
        while True:
            self._watch(batch, until, timeout_s)
            document = self._read()
            if "part" not in document:
                return document
            index, values = document["part"]
            emit = batch[index].emit
            if emit is not None:
                emit(frames.unpack_values(values, None))

    def _watch(self, batch: Sequence[Request], until: float, timeout_s: float) -> None:
        """Wait until there is something to read.

        Raises:
            Lost: It takes too much, or too long.
        """
        abandoned: float | None = None
        while not self._poll.poll(WATCH_MS):
            now = time.perf_counter()
            over = None if self._memory_max is None else self._over(self._memory_max)
            if over is not None:
                raise over
            if now > until:
                text = f"the model did not answer within {timeout_s:g} s; its process is replaced"
                raise Lost("hang", DeadlineExceeded(text))
            if batch and all(request.is_stopped() for request in batch):
                self._requests.flag = True
                abandoned = abandoned or now
                if now - abandoned > ABANDONED_S:
                    raise Lost("abandoned", Cancelled("nobody waits for the answer any more"))

    def _over(self, bytes_max: int) -> Lost | None:
        if held_bytes(self.pid) <= bytes_max:
            return None
        text = f"the model took more than its limit of {bytes_max / MIB:g} MiB of memory"
        return Lost("memory", EngineFailed(text))

    def _read(self) -> dict[str, Any]:
        size = frames.length(self._exactly(4))
        try:
            document = ormsgpack.unpackb(self._exactly(size))
        except ormsgpack.MsgpackDecodeError as error:
            text = EngineFailed("the model's process sent what cannot be read")
            raise Lost("crash", text) from error
        assert isinstance(document, dict), "the process answers with a map"
        return document

    def _exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            try:
                part = self._link.recv(size)
            except OSError as error:
                raise self._crashed() from error
            if not part:
                raise self._crashed()
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _crashed(self) -> Lost:
        """Return how the process ended."""
        try:
            status = self._popen.wait(1.0)
        except subprocess.TimeoutExpired:
            status = 0
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        text = f"the model's process crashed while it computed this input ({how}); it is replaced"
        return Lost("crash", EngineFailed(text))

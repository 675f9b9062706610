"""A model in a process of its own: what it does to itself, it does to nobody else.

A crash, a hang or too much memory ends that process and not the worker; the request that did it is
answered, and the process replaced. Whoever is computed in the same call is computed again without
it (`batches.compute`).
"""

import time
from collections.abc import Hashable, Mapping, Sequence
from threading import Lock

from typing_extensions import override

from schemas.errors import (
    EngineFailed,
    ModelUnavailable,
)
from schemas.values import Value
from services.telemetry import REPLACED, get_logger
from services.workers import devices
from services.workers.apart import Lost, Process
from services.workers.engine import AnyEngine, BatchEngine, Engine, Request
from services.workers.memory import held_bytes


CRASHES_FREE = 8
"""Losses in a row after which a process is replaced at once: more than it takes to find the one
request in a batch that does it."""
BACKOFF_S_MAX = 60.0
log = get_logger()


class Isolated(BatchEngine):
    """Runs another engine in a process.

    Args:
        inner: The engine, not loaded: it says what may be batched, the process computes.
    """

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner.spec, inner.models_dir)
        self._inner = inner
        self._process: Process | None = None
        self._is_closed = False
        self._guard = Lock()
        self._in_use = Lock()
        """Held while a thread asks the process: its files stay open until then."""
        self._losses = 0
        """In a row."""
        self._not_before = 0.0

    @override
    def missing(self) -> str | None:
        return self._inner.missing()

    @override
    def is_uncertain(self) -> bool:
        return self._inner.is_uncertain()

    @override
    def load(self) -> None:
        """Start the process and load the model in it.

        Raises:
            ModelUnavailable: It cannot be loaded, or ends, or takes too much memory.
        """
        try:
            with self._in_use:
                self._ready()
        except ModelUnavailable:
            self.close()
            raise

    @override
    def batch_key(self, request: Request) -> Hashable | None:
        inner = self._inner
        return inner.batch_key(request) if isinstance(inner, BatchEngine) else None

    @override
    def rows(self, request: Request) -> int:
        return self._inner.rows(request) if isinstance(self._inner, BatchEngine) else 1

    @override
    def rows_max(self) -> int:
        return self._inner.rows_max() if isinstance(self._inner, BatchEngine) else 1

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        """Have the process compute; where it is lost, start the next one at once.

        Raises:
            EngineFailed: It crashed, or took more memory than it may.
            DeadlineExceeded: It hung for longer than the model's `timeout_s`.
            ModelUnavailable: It was lost too often in a row.
        """
        with self._in_use:
            process = self._ready()
            try:
                outputs = process.infer(batch, self.spec.timeout_s)
            except Lost as lost:
                self._replace(lost)
                raise lost.error from lost
            self._losses = 0
            swollen = process.swollen()
            if swollen is not None:  # little by little: nobody's fault, and it goes on
                self._replace(swollen)
            return outputs

    @override
    def close(self) -> None:
        with self._guard:
            self._is_closed = True
            if self._process is not None:
                self._process.kill()  # whoever waits for it hears of it
        with self._in_use:
            self._drop()

    @override
    def memory(self) -> int | None:
        process = self._process
        return None if process is None else max(held_bytes(process.pid), process.memory or 0)

    @override
    def is_for_gpu(self) -> bool:
        return self._inner.is_for_gpu()

    @override
    def device_memory(self) -> int | None:
        """Return what the process holds, its open GPU included; or what loading took."""
        process = self._process
        if process is None or not process.is_on_gpu:
            return 0
        return devices.held_bytes(process.pid) or process.device_bytes

    @override
    def devices(self) -> tuple[str, ...]:
        return () if self._process is None else self._process.devices

    def _ready(self) -> "Process":
        """Return the process, started and loaded."""
        left_s = self._not_before - time.perf_counter()
        if left_s > 0:
            raise ModelUnavailable(
                f"the model ended its process {self._losses} times in a row; it is tried again "
                f"in {left_s:.1f} s",
                retry_after_s=left_s,
            )
        if self._process is not None and self._process.is_loaded and self._process.has_ended:
            idle = EngineFailed("the model's process ended while nobody used it")
            self._replace(Lost("idle", idle))
        process = self._process or self._start()
        if not process.is_loaded:
            try:
                process.loaded()
            except Lost as lost:
                self._replace(lost)
                raise ModelUnavailable(
                    f"the model cannot be loaded: {lost.error.message}"
                ) from lost
            except ModelUnavailable:
                self._drop()
                raise
        return process

    def _start(self) -> "Process":
        with self._guard:
            if self._is_closed:
                raise ModelUnavailable("the model is being unloaded; try again")
            self._process = Process(self._inner)
            return self._process

    def _replace(self, lost: "Lost") -> None:
        """Have another process load while nobody waits for it, unless this goes on and on."""
        self._drop()
        self._losses += 1
        extra = self._losses - CRASHES_FREE
        wait_s = 0.0 if extra <= 0 else min(BACKOFF_S_MAX, 2.0 ** (extra - 1))
        self._not_before = time.perf_counter() + wait_s
        REPLACED.labels(lost.reason).inc()
        log.warning(
            "process_lost",
            engine=self.spec.engine,
            source=self.spec.source,
            reason=lost.reason,
            error=lost.error.message,
            in_a_row=self._losses,
            wait_s=wait_s,
        )
        if not wait_s and not self._is_closed:
            self._start()

    def _drop(self) -> None:
        with self._guard:
            if self._process is not None:
                self._process.end()
                self._process = None


class NotIsolated(AnyEngine):
    """Stands for a model that asks for a process of its own and cannot have one."""

    @override
    def missing(self) -> str | None:
        return (
            f"engine '{self.spec.engine}' waits for others and computes nothing: it cannot have "
            "`isolation: process`, or limits that need it"
        )

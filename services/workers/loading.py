"""Loads a model, warms it, measures what it takes, and unloads it; all in threads."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from schemas.catalogue import ModelSpec
from schemas.errors import ModelUnavailable
from schemas.serving import Limits
from services.telemetry import get_logger
from services.workers import calibrating, devices, warming
from services.workers.engine import AnyEngine, Engine, Request
from services.workers.engines import engine_of, model_files
from services.workers.isolation import Isolated, NotIsolated
from services.workers.loaded import Loaded
from services.workers.memory import Size, give_back, held_bytes


KEPT_BYTES = 16 * 1024 * 1024
"""From here on it matters that a runtime gave back less than half of a model."""
DEVICE_KEPT_BYTES = 256 * 1024 * 1024
"""The same of a GPU's memory, where libraries keep kernels and room to work for all models."""
TRIM_BYTES = 16 * 1024 * 1024
"""Unloaded bytes after which freed memory is given back to the system: that takes time."""
log = get_logger()


class Loader:
    """Makes engines and brings them into memory.

    Args:
        models_dir: Where weights are looked for.
        engine_settings: By engine, what an operator sets: parameters that no node can change.
        hold: Puts a line before an engine that is loaded.
        calibrate_s: How long measuring the latency of a model may take; 0: it is not measured.
    """

    def __init__(
        self,
        models_dir: Path,
        engine_settings: Mapping[str, Mapping[str, Any]],
        hold: Callable[[str, AnyEngine], Loaded],
        calibrate_s: float = 0.0,
    ) -> None:
        self._models_dir = models_dir
        self.folders: dict[str, Path] = {}
        """Where the files of a model are, if elsewhere, by name."""
        self._engine_settings = engine_settings
        self._hold = hold
        self._calibrate_s = calibrate_s
        self._measuring = Lock()
        """One model at a time: what is added to the process is then its own."""
        self._freed = 0
        """Bytes of models unloaded since memory was last given back to the system."""
        self._kept: set[str] = set()
        """Models whose runtime did not give back their memory: next time in a process."""

    def engine(self, name: str, spec: ModelSpec) -> AnyEngine:
        """Return the engine of a model, not loaded; in a process of its own if that is due."""
        fixed = self._engine_settings.get(spec.engine)
        if fixed is not None:
            spec = spec.model_copy(update={"params": {**spec.params, **fixed}})
        folder = self.folders.get(name, self._models_dir)
        engine = engine_of(spec, folder)
        if not self._is_isolated(name, engine):
            return engine
        if isinstance(engine, Engine):
            return Isolated(engine)
        return NotIsolated(spec, folder)

    def folder(self, name: str, spec: ModelSpec | None) -> Path:
        """Return the folder of a model's source; without one that of all models."""
        root = self.folders.get(name, self._models_dir)
        return root if spec is None or spec.source is None else (root / spec.source).parent

    def _is_isolated(self, name: str, engine: AnyEngine) -> bool:
        spec = engine.spec
        if spec.isolation != "auto":
            return spec.isolation == "process"
        limits = spec.limits or Limits()
        if limits.memory is not None or limits.gpu_share is not None:
            return True
        return name in self._kept or (limits.threads is not None and not engine.bounds_threads)

    def open(self, name: str, spec: ModelSpec) -> Loaded:
        """Load a model and warm it.

        Raises:
            ModelUnavailable: It cannot run here; says why.
        """
        engine = self.engine(name, spec)
        try:
            _import(engine)
            alone = nullcontext() if isinstance(engine, Isolated) else self._measuring
            with alone:
                return self._bring_up(name, engine)
        except ModelUnavailable:
            engine.close()
            raise

    def _bring_up(self, name: str, engine: AnyEngine) -> Loaded:
        gpu = engine.gpu()
        if gpu is not None:
            devices.wake(gpu)  # what an open GPU takes is no model's memory
        if not isinstance(engine, Isolated):
            self._freed = 0
            give_back()  # else it moves into what others left, and seems to take nothing
        before, begun = _held(on_gpu=gpu is not None), time.perf_counter()
        engine.load()
        in_memory = time.perf_counter()
        requests = warming.warm(engine) if isinstance(engine, Engine) else []
        loaded = self._hold(name, engine)
        loaded.load_s, loaded.warm_s = in_memory - begun, time.perf_counter() - in_memory
        self._calibrate(loaded, requests)
        size = self._size(name, engine, _held(on_gpu=gpu is not None) - before)
        loaded.size_bytes, loaded.device_bytes = size.host, size.device
        limit = None if engine.spec.limits is None else engine.spec.limits.memory_bytes
        if limit is not None and size.host > limit:
            raise ModelUnavailable(f"it takes {size.host} bytes, its limit is {limit}")
        loaded.counters.load_count += 1
        loaded.counters.load_s += loaded.load_s + loaded.warm_s + loaded.calibrate_s
        return loaded

    def _calibrate(self, loaded: Loaded, requests: Sequence[Request]) -> None:
        """Measure the latency of a model by rows, or take what was measured the last time."""
        engine, line, known = loaded.engine, loaded.line, loaded.counters.calibrated
        if line is None or not isinstance(engine, Engine) or not self._calibrate_s:
            return
        begun = time.perf_counter()
        if not known and loaded.warm_s <= calibrating.WARM_S_MAX:
            for rows, took_s in calibrating.calibrate(
                engine, requests, line.sizes, self._calibrate_s
            ):
                known[rows].count += 1
                known[rows].compute_s += took_s
            if isinstance(engine, Isolated):
                engine.load()  # it may have lost its process
        for rows, calls in known.items():
            line.learn(rows, calls.compute_s / calls.count)
        loaded.calibrate_s = time.perf_counter() - begun

    def _size(self, name: str, engine: AnyEngine, added: Size) -> Size:
        """Return what a model takes: the engine's word, or what loading it added.

        At least its file, which is in one memory or the other.
        """
        host, device = engine.memory(), engine.device_memory()
        device = max(0, added.device) if device is None else device
        host = max(0, added.host) if host is None else host
        return Size(max(host, self.file_bytes(name, engine.spec) - device), device)

    def close(self, loaded: Loaded) -> None:
        """Unload a model, and have the allocator give back its memory."""
        log.info(
            "model_unloaded",
            model=loaded.name,
            size_bytes=loaded.size_bytes,
            device_bytes=loaded.device_bytes,
        )
        if isinstance(loaded.engine, Isolated):
            loaded.engine.close()
            return
        on_gpu = loaded.device_bytes > 0
        with self._measuring:
            if not on_gpu and self._freed + loaded.size_bytes < TRIM_BYTES:
                loaded.engine.close()
                self._freed += loaded.size_bytes
                return  # so little is used for the next model
            give_back()  # what others freed is not this one's
            before = _held(on_gpu=on_gpu)
            loaded.engine.close()
            give_back()
            self._freed = 0
            kept = loaded.size - (before - _held(on_gpu=on_gpu))
        if kept.host > max(KEPT_BYTES, loaded.size_bytes / 2) or kept.device > max(
            DEVICE_KEPT_BYTES, loaded.device_bytes / 2
        ):
            self._kept.add(loaded.name)
            log.warning(
                "memory_kept",
                model=loaded.name,
                kept_bytes=kept.host,
                kept_device_bytes=kept.device,
            )

    def estimate(self, name: str, spec: ModelSpec) -> Size:
        """Return what a model that was never loaded takes at least."""
        taken = self.file_bytes(name, spec)
        try:
            is_for_gpu = self.engine(name, spec).is_for_gpu()
        except ModelUnavailable:  # whoever loads it is told
            is_for_gpu = False
        return Size(device=taken) if is_for_gpu else Size(taken)

    def file_bytes(self, name: str, spec: ModelSpec) -> int:
        """Return the size of a model's file; 0 if it has none."""
        if spec.source is None:
            return 0
        try:
            return model_files.size(self.folders.get(name, self._models_dir), spec.source)
        except ModelUnavailable:
            return 0


def _held(*, on_gpu: bool) -> Size:
    """Return what this process holds of the processor's memory, and of GPUs if one is used."""
    return Size(held_bytes(), devices.level() if on_gpu else 0)


def _import(engine: AnyEngine) -> None:
    """Import what loading imports: a library is of all its models.

    Raises:
        ModelUnavailable: A package is absent, or broken.
    """
    for package in engine.packages:
        try:
            import_module(package)
        except ImportError as error:
            raise ModelUnavailable(f"the Python package {package} cannot be imported") from error

"""The models of one worker: which can run, loaded once, computed off the event loop."""

import asyncio
import hashlib
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from events.models import Offer
from schemas.catalogue import Catalogue, ModelSpec
from schemas.errors import ClawdbotError, ModelUnavailable, NotFound
from schemas.values import Value
from services.telemetry import get_logger
from services.workers.batches import CALLS, Computed, Crew, Line, count
from services.workers.engine import AnyEngine, AsyncEngine, Engine, Request
from services.workers.engines import engine_of


log = get_logger()

PACE_WEIGHT = 0.3
"""Of the newest inference in a model's pace."""
ROWS_MAX = 64
"""Rows of one call, where no setting says otherwise."""


@dataclass
class Loaded:
    """A model in memory."""

    name: str
    engine: AnyEngine
    line: Line | None = None
    """Of those who wait for an engine that computes in threads."""
    pace_s: float | None = None
    """How long an inference takes lately, waiting included."""

    def note(self, took_s: float) -> None:
        """Take note of one more inference."""
        past_s = took_s if self.pace_s is None else self.pace_s
        self.pace_s = past_s + PACE_WEIGHT * (took_s - past_s)


@dataclass(frozen=True)
class Answer:
    """What a model gave."""

    outputs: Mapping[str, Value]
    model: str
    """The model that really ran."""
    wait_ms: float
    """Until the engine was free."""
    load_ms: float
    compute_ms: float
    batch_size: int = 1
    """Requests that were computed in the same call."""


@dataclass(frozen=True)
class Capacity:
    """How much a worker computes at the same time."""

    threads: int = 1
    """Calls of engines."""
    rows_max: int = ROWS_MAX
    """Rows of one call of an engine that batches."""


class Models:
    """Finds, loads and runs models.

    Args:
        catalogue: What models there are.
        modality: Only these are run here.
        models_dir: Where weights are looked for.
        allow_fallback: Whether a declared fallback may serve.
        capacity: How much is computed at the same time.
        engine_settings: By engine, what an operator sets: parameters that no node can change.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        modality: str,
        models_dir: Path,
        *,
        allow_fallback: bool,
        capacity: Capacity,
        engine_settings: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    ) -> None:
        self._specs = {
            name: spec for name, spec in catalogue.models.items() if spec.modality == modality
        }
        self._catalogue = catalogue
        self._models_dir = models_dir
        self._allow_fallback = allow_fallback
        self._engine_settings = engine_settings
        self._pool = ThreadPoolExecutor(capacity.threads, thread_name_prefix="engine")
        self._crew = Crew(self._pool.submit, capacity.threads)
        self._rows_max = capacity.rows_max
        self._failed: dict[str, str] = {}
        """Why the last try to load a model failed, by name."""
        self._loaded: dict[str, Loaded] = {}
        self._loading = asyncio.Lock()

    def offers(self) -> tuple[Offer, ...]:
        """Return which models can run here, and who serves for those that cannot."""
        return tuple(self._offer(name, spec) for name, spec in self._specs.items())

    def inputs(self, name: str) -> dict[str, bool]:
        """Return the inputs of a model, and whether each is required.

        Raises:
            NotFound: No such model here.
        """
        spec = self._specs.get(name)
        if spec is None:
            known = ", ".join(sorted(self._specs))
            raise NotFound(f"no model named '{name}' here; known: {known}", field="model")
        return {port.name: port.required for port in spec.inputs}

    def folder(self, name: str) -> Path:
        """Return the folder of a model's source; without one that of all models."""
        spec = self._specs.get(name)
        if spec is None or spec.source is None:
            return self._models_dir
        return (self._models_dir / spec.source).parent

    def params(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of an inference: the catalogue's, overridden by those given.

        Raises:
            InvalidArgument: The engine knows no such parameter.
        """
        return self._catalogue.params(name, given, field="params")

    def fingerprint(self, name: str) -> str:
        """Return a digest of the model that serves for `name` here.

        Raises:
            NotFound: No such model here.
        """
        self.inputs(name)
        served = self._offer(name, self._specs[name]).served_by
        document = f"{served}\n{self._specs[served].model_dump_json()}"
        return hashlib.sha256(document.encode()).hexdigest()

    async def infer(self, name: str, request: Request, *, rank: int = 0) -> Answer:
        """Run one inference; when it is cancelled, so is what can be.

        A thread that computes goes on until it ends or asks `request.is_stopped`; its engine is
        nobody else's until then.

        Args:
            name: The model.
            request: Inputs and parameters.
            rank: The lower, the sooner among those that wait for the same engine.

        Raises:
            ModelUnavailable: The model is not here, and nothing may stand in for it.
            InvalidArgument: An input is malformed.
            EngineFailed: The engine could not compute it.
        """
        begun = time.perf_counter()
        loaded = self._loaded.get(name) or await self._load(name)
        ready = time.perf_counter()
        match loaded.engine:
            case AsyncEngine() as engine:
                computed = Computed(await engine.answer(request), 1, ready)
            case Engine(blocking=True):
                assert loaded.line is not None, "who computes in threads has a line"
                computed = await loaded.line.infer(request, rank)
            case Engine() as engine:
                [outputs] = engine.infer([request])
                computed = Computed(outputs, 1, ready)
            case _:
                raise AssertionError("an engine computes or waits")
        done = time.perf_counter()
        loaded.note(done - ready)
        if loaded.line is None:
            count(CALLS.setdefault(loaded.name, {}), 1, round((done - ready) * 1e9))
        return Answer(
            computed.outputs,
            loaded.name,
            wait_ms=(computed.started - ready) * 1000,
            load_ms=(ready - begun) * 1000,
            compute_ms=(done - computed.started) * 1000,
            batch_size=computed.batch_size,
        )

    async def preload(self) -> None:
        """Load what is to be loaded at start; what cannot be says so on the card."""
        for name, spec in self._specs.items():
            engine = self._engine(spec)
            if engine.missing() is not None or not (spec.preload or engine.is_uncertain()):
                continue
            try:
                await self._load(name)
            except ClawdbotError as error:
                log.warning("model_not_loaded", model=name, error=error.message)

    def pace_s(self, name: str) -> float | None:
        """Return how long an inference takes lately, seconds; None before the first one."""
        loaded = self._loaded.get(name)
        return None if loaded is None else loaded.pace_s

    def close(self) -> None:
        """Give everything back."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for loaded in self._loaded.values():
            loaded.engine.close()

    def _offer(self, name: str, spec: ModelSpec) -> Offer:
        reason = self._engine(spec).missing()
        if reason is None:
            failed = self._failed.get(name)  # it is tried again when it is asked for
            return Offer(model=name, served_by=name, reason=failed or "", available=failed is None)
        reason = f"{reason}; {spec.get}" if spec.get else reason
        if spec.fallback is not None and self._allow_fallback:
            stand_in = self._specs[spec.fallback]
            lacking = self._engine(stand_in).missing()
            return Offer(
                model=name, served_by=spec.fallback, reason=reason, available=lacking is None
            )
        return Offer(model=name, served_by=name, reason=reason, available=False)

    async def _load(self, name: str) -> Loaded:
        async with self._loading:
            if name in self._loaded:
                return self._loaded[name]
            spec = self._specs.get(name)
            if spec is None:
                raise ModelUnavailable(f"no worker of this pool knows the model '{name}'")
            offer = self._offer(name, spec)
            if not offer.available and name not in self._failed:
                raise ModelUnavailable(f"model '{name}' cannot run here: {offer.reason}")
            actual = offer.served_by
            loaded = self._loaded.get(actual)
            if loaded is None:
                loaded = self._loaded[actual] = await self._open(actual)
                log.info("model_loaded", model=actual, asked_for=name)
            self._loaded[name] = loaded
            return loaded

    async def _open(self, name: str) -> Loaded:
        """Load a model, and remember for the card why it could not be loaded."""
        engine = self._engine(self._specs[name])
        try:
            await self._off_loop(engine.load)
        except ModelUnavailable as error:
            self._failed[name] = error.message
            raise
        self._failed.pop(name, None)
        return self.hold(name, engine)

    def hold(self, name: str, engine: AnyEngine) -> Loaded:
        """Return a loaded engine with the line before it."""
        if isinstance(engine, Engine) and engine.blocking:
            return Loaded(name, engine, Line(name, engine, self._crew, self._rows_max))
        return Loaded(name, engine)

    def _engine(self, spec: ModelSpec) -> AnyEngine:
        fixed = self._engine_settings.get(spec.engine)
        if fixed is not None:
            spec = spec.model_copy(update={"params": {**spec.params, **fixed}})
        return engine_of(spec, self._models_dir)

    async def _off_loop(self, call: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *args)

"""The models of one worker: which can run, loaded once, computed off the event loop."""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from events.models import Offer
from schemas.catalogue import Catalogue, ModelSpec
from schemas.errors import ModelUnavailable, NotFound
from schemas.values import Value
from services.telemetry import get_logger
from services.workers.engine import Engine, Request
from services.workers.engines import engine_class


log = get_logger()


@dataclass
class Loaded:
    """A model in memory."""

    name: str
    engine: Engine
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """An engine computes for one at a time."""


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


class Models:
    """Finds, loads and runs models.

    Args:
        catalogue: What models there are.
        modality: Only these are run here.
        models_dir: Where weights are looked for.
        allow_fallback: Whether a declared fallback may serve.
        threads: Inferences at the same time.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        modality: str,
        models_dir: Path,
        *,
        allow_fallback: bool,
        threads: int,
    ) -> None:
        self._specs = {
            name: spec for name, spec in catalogue.models.items() if spec.modality == modality
        }
        self._models_dir = models_dir
        self._allow_fallback = allow_fallback
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="engine")
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

    async def infer(
        self, name: str, inputs: Mapping[str, Value], params: Mapping[str, Any]
    ) -> Answer:
        """Run one inference.

        Raises:
            ModelUnavailable: The model is not here, and nothing may stand in for it.
            InvalidArgument: An input is malformed.
            EngineFailed: The engine could not compute it.
        """
        begun = time.perf_counter()
        loaded = self._loaded.get(name) or await self._load(name)
        ready = time.perf_counter()
        request = Request(inputs=inputs, params=params)
        if loaded.engine.blocking:
            async with loaded.turn:
                started = time.perf_counter()
                [outputs] = await self._off_loop(loaded.engine.infer, [request])
        else:
            started = ready
            [outputs] = loaded.engine.infer([request])
        done = time.perf_counter()
        return Answer(
            outputs,
            loaded.name,
            wait_ms=(started - ready) * 1000,
            load_ms=(ready - begun) * 1000,
            compute_ms=(done - started) * 1000,
        )

    def close(self) -> None:
        """Give everything back."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for loaded in self._loaded.values():
            loaded.engine.close()

    def _offer(self, name: str, spec: ModelSpec) -> Offer:
        reason = self._engine(spec).missing()
        if reason is None:
            return Offer(model=name, served_by=name)
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
            if not offer.available:
                raise ModelUnavailable(f"model '{name}' cannot run here: {offer.reason}")
            actual = offer.served_by
            loaded = self._loaded.get(actual)
            if loaded is None:
                engine = self._engine(self._specs[actual])
                await self._off_loop(engine.load)
                loaded = self._loaded[actual] = Loaded(actual, engine)
                log.info("model_loaded", model=actual, asked_for=name)
            self._loaded[name] = loaded
            return loaded

    def _engine(self, spec: ModelSpec) -> Engine:
        return engine_class(spec.engine)(spec, self._models_dir)

    async def _off_loop(self, call: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *args)

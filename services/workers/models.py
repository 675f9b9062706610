"""The models of one worker: which can run, loaded once, computed off the event loop."""

import contextlib
import hashlib
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from events.models import Offer
from schemas.catalogue import Catalogue, ModelSpec
from schemas.errors import ClawdbotError, InvalidArgument, ModelUnavailable, NotFound
from schemas.values import Value
from services.telemetry import get_logger
from services.workers import offers
from services.workers.batches import Computed, Crew, Line
from services.workers.cache import Cache
from services.workers.counters import Counters
from services.workers.engine import AnyEngine, AsyncEngine, Engine, Request
from services.workers.loaded import Loaded
from services.workers.loading import Loader
from services.workers.memory import NOTHING, UNLIMITED, Budget, Size
from services.workers.responses import Responses
from services.workers.responses import digest as responses_digest
from services.workers.wanted import Shop


log = get_logger()

LOADS_MAX = 2
"""Models loaded at the same time, where no setting says otherwise."""
ROWS_MAX = 64
"""Rows of one call, where no setting says otherwise."""


class Answer(NamedTuple):
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
    batch: int = 0
    """Number of that call since the model was loaded; 0 where it had only this request."""
    remembered: bool | None = None
    """Whether it was computed before; None where nobody looks."""


@dataclass(frozen=True)
class Capacity:
    """How much a worker computes at the same time."""

    threads: int = 1
    """Calls of engines."""
    rows_max: int = ROWS_MAX
    """Rows of one call of an engine that batches."""
    loads_max: int = LOADS_MAX
    """Models that are loaded at the same time."""
    budget: Budget = UNLIMITED
    """Of all models in memory together."""
    responses_bytes_max: int = 0
    """Of all answers that are kept; 0 keeps none."""
    calibrate_s: float = 0.0
    """To measure the latency of a model when it is loaded; 0: it is not measured."""


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
        self._modality = modality
        self._allow_fallback = allow_fallback
        self._pool = ThreadPoolExecutor(capacity.threads, thread_name_prefix="engine")
        self._crew = Crew(self._pool.submit, capacity.threads)
        self._rows_max = capacity.rows_max
        self._failed: dict[str, str] = {}
        """Why the last try to load a model failed, by name."""
        self._served: dict[str, str] = {}
        """Who served for each name last."""
        self._counters: defaultdict[str, Counters] = defaultdict(Counters)
        self._loader = Loader(models_dir, engine_settings, self.hold, capacity.calibrate_s)
        self._loaders = ThreadPoolExecutor(capacity.loads_max, thread_name_prefix="load")
        shop = Shop(
            self._open, self._loader.close, self._estimate, self._loaders, capacity.loads_max
        )
        self._cache = Cache(shop, capacity.budget)
        room = capacity.responses_bytes_max
        self._responses = Responses(room) if room else None

    def offers(self) -> tuple[Offer, ...]:
        """Return which models can run here, who serves for those that cannot, and what they take.

        May be called in a thread.
        """
        specs = dict(self._specs)
        found = (self._offer(name, spec) for name, spec in specs.items())
        return tuple(offers.measured(item, self._cache.get(item.served_by)) for item in found)

    def spec(self, name: str) -> ModelSpec:
        """Return the entry of a model.

        Raises:
            NotFound: No such model here.
        """
        spec = self._specs.get(name)
        if spec is None:
            known = ", ".join(sorted(self._specs))
            raise NotFound(f"no model named '{name}' here; known: {known}", field="model")
        return spec

    def folder(self, name: str) -> Path:
        """Return the folder of a model's source."""
        return self._loader.folder(name, self._specs.get(name))

    def params(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of an inference: the catalogue's, overridden by those given.

        Raises:
            InvalidArgument: The engine knows no such parameter.
        """
        return self._catalogue.params(name, given, field="params")

    def streams(self, name: str) -> bool:
        """Tell whether a model's entry says that it answers in parts."""
        spec = self._specs.get(name)
        return spec is not None and spec.streams

    def fingerprint(self, name: str) -> str:
        """Return a digest of the model that serves for `name` here.

        Raises:
            NotFound: No such model here.
        """
        served = self._offer(name, self.spec(name)).served_by
        document = f"{served}\n{self._specs[served].model_dump_json()}"
        return hashlib.sha256(document.encode()).hexdigest()

    async def infer(
        self, name: str, request: Request, *, rank: int = 0, left_s: float = math.inf
    ) -> Answer:
        """Run one inference; when it is cancelled, so is what can be.

        A thread that computes goes on until it ends or asks `request.is_stopped`; its engine is
        nobody else's until then.

        Args:
            name: The model.
            request: Inputs and parameters.
            rank: The lower, the sooner among those that wait for the same engine.
            left_s: Until when it must be answered; the earlier, the sooner among the same rank.

        Raises:
            ModelUnavailable: The model is not here, and nothing may stand in for it.
            InvalidArgument: An input is malformed.
            EngineFailed: The engine could not compute it.
            TooLate: There is less time left than it takes.
        """
        if self._responses is not None:
            spec = self._specs.get(name)
            if spec is not None and spec.cache_responses:
                return await self._remember(name, request, self._responses, (rank, left_s))
        return await self._infer(name, request, rank, left_s)

    async def _remember(
        self, name: str, request: Request, responses: Responses, urgency: tuple[int, float]
    ) -> Answer:
        """Answer with what was computed before, or compute it and keep it."""
        digest = responses_digest(self.fingerprint(name), request)
        outputs = responses.find(digest)
        if outputs is not None:
            self._counters[name].cache_hit_count += 1
            served = self._served.get(name, name)
            return Answer(outputs, served, 0.0, 0.0, 0.0, remembered=True)
        answer = await self._infer(name, request, *urgency)
        responses.keep(digest, answer.outputs)
        return answer._replace(remembered=False)

    async def _infer(self, name: str, request: Request, rank: int, left_s: float) -> Answer:
        begun = time.perf_counter()
        loaded = self._cache.take(self._served.get(name, name), begun) or await self._obtain(name)
        ready = time.perf_counter()
        try:
            for wanted in request.then:
                self.prefetch(wanted)
            computed = await self._compute(loaded, request, rank, begun + left_s)
        finally:
            self._cache.release(loaded)
        done = time.perf_counter()
        loaded.note(done - ready)
        return Answer(
            computed.outputs,
            loaded.name,
            wait_ms=(computed.started - ready) * 1000,
            load_ms=(ready - begun) * 1000,
            compute_ms=(done - computed.started) * 1000,
            batch_size=computed.batch_size,
            batch=computed.batch,
        )

    def prefetch(self, name: str) -> None:
        """Load a model that will be asked for soon, if there is room for it."""
        if self._cache.get(self._served.get(name, name)) is None and name in self._specs:
            with contextlib.suppress(ModelUnavailable):  # who asks for it will hear why
                self._cache.prefetch(self._serving(name))

    def update(self, specs: Mapping[str, ModelSpec | None]) -> None:
        """Let models appear, change and go while others are served.

        Who computes with an old version finishes with it; whoever comes next waits for the new
        one, which is loaded at once where the old one was in memory. A name that is given is
        loaded anew, even with the same entry: its file may be another one.

        Args:
            specs: The new entries by name; None where a model goes. Other names stay as they are.

        Raises:
            InvalidArgument: A fallback is missing, or has another signature; nothing has changed.
        """
        models = {name: spec for name, spec in self._catalogue.models.items() if name not in specs}
        models |= {name: spec for name, spec in specs.items() if spec is not None}
        self._catalogue = self._catalogue.having(models)
        self._served.clear()
        for name, spec in specs.items():
            self._specs.pop(name, None)
            self._failed.pop(name, None)
            self._counters[name].forget()
            if spec is not None and spec.modality == self._modality:
                self._specs[name] = spec
            was_here = self._cache.get(name) is not None
            self._cache.drop(name)
            if was_here:
                self.prefetch(name)

    def place(self, name: str, spec: ModelSpec, folder: Path) -> None:
        """Have one more model, or another version of one, whose files are in a folder of its own.

        Raises:
            InvalidArgument: Its fallback is missing, or has another signature.
        """
        before = self._loader.folders.get(name)
        self._loader.folders[name] = folder
        try:
            self.update({name: spec})
        except InvalidArgument:
            if before is None:
                del self._loader.folders[name]
            else:
                self._loader.folders[name] = before
            raise

    def withdraw(self, name: str) -> None:
        """Have a model no more; who computes with it finishes, then its memory is free."""
        self.update({name: None})
        self._loader.folders.pop(name, None)

    def report(self) -> None:
        """Add to the metrics what is not counted each time."""
        self._cache.report()

    @property
    def used(self) -> Size:
        """Memory that the loaded models take together, measured when they were loaded."""
        return self._cache.used

    def calls(self) -> dict[str, dict[int, tuple[int, int]]]:
        """Return how often each engine was called, and nanoseconds, by model and rows."""
        return {name: item.calls() for name, item in self._counters.items() if item.batches}

    def counters(self, name: str) -> Counters:
        """Return the figures of a model since the worker started; zeros if it never ran."""
        return self._counters.get(name) or Counters()

    async def preload(self, names: Iterable[str] | None = None) -> None:
        """Load what is to be loaded at start; what cannot be says so on the card.

        Args:
            names: Only of these models.
        """
        for name in tuple(self._specs) if names is None else names:
            spec = self._specs.get(name)
            if spec is None:
                continue  # it went while another one loaded
            engine = self._loader.engine(name, spec)
            if engine.missing() is not None or not (spec.preload or engine.is_uncertain()):
                continue
            try:
                self._cache.release(await self._obtain(name))
            except ClawdbotError as error:
                log.warning("model_not_loaded", model=name, error=error.message)

    def pace_s(self, name: str) -> float | None:
        """Return how long an inference takes lately, seconds; None where it is not in memory."""
        loaded = self._cache.get(self._served.get(name, name))
        return None if loaded is None else loaded.pace_s

    def close(self) -> None:
        """Give everything back."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._loaders.shutdown(wait=False, cancel_futures=True)
        self._cache.close()

    async def _compute(
        self, loaded: Loaded, request: Request, rank: int, deadline: float
    ) -> Computed:
        if loaded.line is not None:
            return await loaded.line.infer(request, rank, deadline)
        begun = time.perf_counter()
        match loaded.engine:
            case AsyncEngine() as engine:
                outputs = await engine.answer(request)
            case Engine() as engine:
                [outputs] = engine.infer([request])
            case _:
                raise AssertionError("an engine computes or waits")
        loaded.counters.computed(1, time.perf_counter() - begun)
        return Computed(outputs, 1, begun)

    def _offer(self, name: str, spec: ModelSpec) -> Offer:
        failed = self._failed.get(name)  # it is tried again when it is asked for
        fallback = self._specs.get(spec.fallback or "") if self._allow_fallback else None
        return offers.possible(self._loader, (name, spec), failed, fallback)

    async def _obtain(self, name: str) -> Loaded:
        """Lease the model that serves for a name, loading it first if need be."""
        actual = self._serving(name)
        loaded = await self._cache.obtain(actual)
        self._served[name] = actual
        return loaded

    def _serving(self, name: str) -> str:
        """Return which model serves for a name.

        Raises:
            ModelUnavailable: It is not here, and nothing may stand in for it.
        """
        spec = self._specs.get(name)
        if spec is None:
            raise ModelUnavailable(f"no worker of this pool knows the model '{name}'")
        offer = self._offer(name, spec)
        if not offer.available and name not in self._failed:
            raise ModelUnavailable(f"model '{name}' cannot run here: {offer.reason}")
        return offer.served_by

    def _open(self, name: str) -> Loaded:
        """Load a model, in a thread; remember for the card why it could not be."""
        spec = self._specs.get(name)
        if spec is None:
            raise ModelUnavailable(f"no worker of this pool knows the model '{name}'")
        try:
            loaded = self._loader.open(name, spec)
        except ModelUnavailable as error:
            self._failed[name] = error.message
            raise
        self._failed.pop(name, None)
        return loaded

    def _estimate(self, name: str) -> Size:
        spec = self._specs.get(name)
        return NOTHING if spec is None else self._loader.estimate(name, spec)

    def hold(self, name: str, engine: AnyEngine) -> Loaded:
        """Return a loaded engine with the line before it."""
        loaded = Loaded(name, engine.spec, engine, self._counters[name])
        if isinstance(engine, Engine) and engine.blocking:
            loaded.line = Line(name, engine, self._crew, self._rows_max, loaded.counters)
            loaded.line.idle = partial(self._cache.settle, loaded)
        return loaded

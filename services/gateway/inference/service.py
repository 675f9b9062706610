"""Models as the Open Inference Protocol sees them, and the way of an inference to a worker."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import ormsgpack

from events.models import ModelDirectory
from events.subjects import infer
from schemas.catalogue import Catalogue, ModelSpec, Port
from schemas.errors import ModelUnavailable, NotFound, StoreUnavailable
from schemas.ids import DEFAULT_TENANT
from schemas.messages import Header, Inference, unpack
from schemas.open_inference import ModelMetadata, TensorMetadata
from schemas.submission import MSGPACK
from schemas.values import Value, from_wire, to_wire
from services.gateway.inference.asks import InferAsk
from services.requests import Requests
from services.runtime import Clock
from services.telemetry import get_logger


CARDS_INTERVAL_S = 5.0
"""Between two looks at the workers' cards."""
log = get_logger()
HIDDEN = ("http", "template")
"""Engines whose models are nodes of workflows, and nothing that one asks by itself."""


@dataclass
class Fleet:
    """How many workers offer each model, by their cards; a moment old."""

    directory: ModelDirectory
    clock: Clock
    _sizes: Mapping[str, int] = field(default_factory=dict)

    def size(self, model: str) -> int:
        """Return how many workers have a model, at least 1."""
        return self._sizes.get(model, 1)

    async def watch(self) -> None:
        """Read the cards for ever."""
        while True:
            try:
                cards = await self.directory.cards(self.clock.now())
            except StoreUnavailable as error:
                log.info("cards_unread", error=error.message)
            else:
                offers = (offer for card in cards for offer in card.offers)
                self._sizes = Counter(offer.model for offer in offers if offer.available)
            await asyncio.sleep(CARDS_INTERVAL_S)


@dataclass(frozen=True)
class Inferred:
    """What a model gave."""

    outputs: Mapping[str, Value]
    """By port."""
    model: str
    """The one that really ran."""


@dataclass(frozen=True)
class Inferences:
    """Asks workers.

    Args:
        catalogue: The models and their signatures.
        directory: Which worker serves what.
        fleet: How many serve it.
        requests: The way to them.
        clock: Tells which workers spoke lately.
        wait_s_max: Longest wait for an answer, seconds.
    """

    catalogue: Catalogue
    directory: ModelDirectory
    fleet: Fleet
    requests: Requests
    clock: Clock
    wait_s_max: float

    def model(self, name: str, version: str | None = None) -> ModelSpec:
        """Return what the catalogue says of a model.

        Raises:
            NotFound: No such model, or not this version of it.
        """
        spec = self.catalogue.models.get(name)
        if spec is None or spec.engine in HIDDEN:
            raise NotFound(f"there is no model '{name[:128]}'")
        if version is not None and version != spec.version:
            raise NotFound(
                f"there is no version '{version[:32]}' of model '{name}', only '{spec.version}'"
            )
        return spec

    def metadata(self, name: str, spec: ModelSpec) -> ModelMetadata:
        """Return a model's signature."""
        return ModelMetadata(
            name=name,
            versions=(spec.version,),
            platform=f"clawdbot_{spec.engine}",
            inputs=tuple(_described(port) for port in spec.inputs),
            outputs=tuple(_described(port) for port in spec.outputs),
        )

    async def check_ready(self, name: str) -> None:
        """Return when a worker is there that can run a model.

        Raises:
            ModelUnavailable: None is; says why, as far as workers know.
        """
        reasons: list[str] = []
        for card in await self.directory.cards(self.clock.now()):
            for offer in card.offers:
                if offer.model == name and offer.available:
                    return
                if offer.model == name:
                    reasons.append(offer.reason)
        why = reasons[0] if reasons else "no worker offers it"
        raise ModelUnavailable(f"model '{name}' is not ready: {why}")

    async def infer(
        self, name: str, spec: ModelSpec, ask: InferAsk, headers: Mapping[str, str]
    ) -> Inferred:
        """Have a worker compute, over `infer.<modality>.<model>`.

        Raises:
            ClawdbotError: The worker's error, or that of the way to it.
        """
        timeout_s = min(ask.timeout_s or spec.timeout_s, self.wait_s_max)
        document = {"inputs": {port: to_wire(value) for port, value in ask.inputs.items()}}
        if ask.params:
            document["params"] = dict(ask.params)
        answer = await self.requests.ask(
            infer(DEFAULT_TENANT, spec.modality, name),
            ormsgpack.packb(document),
            {
                **headers,
                Header.CONTENT_TYPE: MSGPACK,
                Header.ACCEPT: MSGPACK,
                Header.PRIORITY: ask.lane,
                Header.TIMEOUT_S: f"{timeout_s:.6f}",
            },
            timeout_s + GRACE_S,
            spread=self.fleet.size(name) if spec.max_batch_size else 0,
        )
        found = unpack(Inference, answer)
        outputs = {port: from_wire(value, field=port) for port, value in found.outputs.items()}
        return Inferred(outputs, found.model)


GRACE_S = 1.0
"""For the worker's own word that it was too late."""


def _described(port: Port) -> TensorMetadata:
    return TensorMetadata(name=port.tensor_name, datatype=port.datatype, shape=port.shape)

"""Models as the Open Inference Protocol sees them, and the way of an inference to a worker."""

from collections.abc import Mapping
from dataclasses import dataclass

import ormsgpack

from events.models import ModelDirectory
from events.subjects import infer
from schemas.catalogue import ModelSpec, Port
from schemas.errors import ModelUnavailable, NotFound
from schemas.ids import DEFAULT_TENANT
from schemas.live_catalogue import LiveCatalogue
from schemas.messages import Header, Inference, unpack
from schemas.open_inference import ModelMetadata, TensorMetadata
from schemas.repository import AT, split
from schemas.submission import MSGPACK
from schemas.values import Value, from_wire, to_wire
from services.gateway.inference.asks import InferAsk
from services.requests import Requests
from services.runtime import Clock


HIDDEN = ("http", "template")
"""Engines whose models are nodes of workflows, and nothing that one asks by itself."""


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
        requests: The way to them.
        clock: Tells which workers spoke lately.
        wait_s_max: Longest wait for an answer, seconds.
    """

    catalogue: LiveCatalogue
    directory: ModelDirectory
    requests: Requests
    clock: Clock
    wait_s_max: float

    def model(self, name: str, version: str | None = None, key: str = "") -> ModelSpec:
        """Return what the catalogue says of a model.

        Args:
            name: Of the model; `iris@3` and `iris@stable` are names too.
            version: A number, or an alias; that of the name, or the one in use, without.
            key: Decides between the version in use and its canaries; the same for the same.

        Raises:
            NotFound: No such model, or not this version of it.
        """
        record = self.catalogue.record(split(name)[0])
        if record is not None:
            at = f"{name}{AT}{version}" if version else name
            name, version = self.catalogue.concrete(at, key), None
            if name not in self.catalogue.offered:
                why = "its version policy leaves it out" if record.loaded else "it is unloaded"
                raise NotFound(f"'{name}' is not kept ready: {why}")
        spec = self.catalogue.now.models.get(name)
        if spec is None or spec.engine in HIDDEN:
            raise NotFound(f"there is no model '{name[:128]}'")
        if version is not None and version != spec.version:
            raise NotFound(
                f"there is no version '{version[:32]}' of model '{name}', only '{spec.version}'"
            )
        return spec

    def metadata(self, name: str, spec: ModelSpec) -> ModelMetadata:
        """Return a model's signature."""
        record = self.catalogue.record(split(name)[0])
        offered = () if record is None else record.offered()
        return ModelMetadata(
            name=name,
            versions=tuple(str(item.version) for item in offered) or (spec.version,),
            platform=f"clawdbot_{spec.engine}",
            inputs=tuple(_described(port) for port in spec.inputs),
            outputs=tuple(_described(port) for port in spec.outputs),
        )

    def offered_as(self, name: str, spec: ModelSpec) -> str:
        """Return what workers call a model of which a version was chosen: `iris@3`."""
        model, _ = split(name)
        return name if self.catalogue.record(model) is None else f"{model}{AT}{spec.version}"

    async def check_ready(self, name: str, spec: ModelSpec) -> None:
        """Return when a worker is there that can run a model.

        Raises:
            ModelUnavailable: None is; says why, as far as workers know.
        """
        name = self.offered_as(name, spec)
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
        concrete = self.offered_as(name, spec)
        answer = await self.requests.ask(
            infer(DEFAULT_TENANT, spec.modality, concrete),
            ormsgpack.packb(document),
            {
                **headers,
                Header.CONTENT_TYPE: MSGPACK,
                Header.ACCEPT: MSGPACK,
                Header.PRIORITY: ask.lane,
                Header.TIMEOUT_S: f"{timeout_s:.6f}",
            },
            timeout_s + GRACE_S,
        )
        found = unpack(Inference, answer)
        outputs = {port: from_wire(value, field=port) for port, value in found.outputs.items()}
        return Inferred(outputs, name if found.model == concrete else found.model)


GRACE_S = 1.0
"""For the worker's own word that it was too late."""


def _described(port: Port) -> TensorMetadata:
    return TensorMetadata(name=port.tensor_name, datatype=port.datatype, shape=port.shape)

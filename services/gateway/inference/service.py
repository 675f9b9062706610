"""Models as the Open Inference Protocol sees them, and the way of an inference to a worker."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple

import ormsgpack

from events.models import ModelDirectory
from events.subjects import infer, withdraw
from schemas.catalogue import Catalogue, ModelSpec, Port
from schemas.errors import DeadlineExceeded, InvalidArgument, ModelUnavailable, NotFound
from schemas.ids import DEFAULT_TENANT
from schemas.messages import Header, Inference, unpack
from schemas.open_inference import ModelMetadata, TensorMetadata
from schemas.submission import MSGPACK
from schemas.values import Value, from_wire, to_wire
from services.gateway.inference.asks import InferAsk
from services.gateway.inference.sequences import Sequences
from services.requests import Requests
from services.runtime import Clock


EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "parameters",
    "schedule_policy",
    "sequence",
    "sequence(string_id)",
    "statistics",
    "trace",
)
"""Of the protocol, in Triton's words: those that work."""


def extensions(*, shared_memory: bool) -> tuple[str, ...]:
    """Return the extensions that this gateway offers."""
    return tuple(sorted([*EXTENSIONS, *["system_shared_memory"] * shared_memory]))


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
        sequences: Those of stateful models.
        wait_s_max: Longest wait for an answer, seconds.
    """

    catalogue: Catalogue
    directory: ModelDirectory
    requests: Requests
    clock: Clock
    sequences: Sequences
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

    def served(self, name: str = "", version: str | None = None) -> dict[str, ModelSpec]:
        """Return the model of a name, or all of them.

        Raises:
            NotFound: As `model`.
        """
        if name:
            return {name: self.model(name, version)}
        return {
            name: spec
            for name, spec in sorted(self.catalogue.models.items())
            if spec.engine not in HIDDEN
        }

    def metadata(self, name: str, spec: ModelSpec) -> ModelMetadata:
        """Return a model's signature."""
        return ModelMetadata(
            name=name,
            versions=(spec.version,),
            platform=f"clawdbot_{spec.engine}",
            inputs=tuple(_described(port) for port in spec.asked),
            outputs=tuple(_described(port) for port in spec.given),
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
        """Have a worker compute, over `infer.<modality>.<model>`; cancelled, so is its work.

        Raises:
            ClawdbotError: The worker's error, or that of the way to it.
        """
        if not spec.state:
            _check_stateless(ask)
            return await self._infer(name, spec, ask, headers)
        async with self.sequences.turn(name, spec, ask) as turn:
            found = await self._infer(name, spec, turn.ask, headers)
            turn.outputs = found.outputs
        return found

    async def _infer(
        self, name: str, spec: ModelSpec, ask: InferAsk, headers: Mapping[str, str]
    ) -> Inferred:
        message = self._message(name, spec, ask, headers)
        try:
            answer = await self.requests.ask(*message)
        except (asyncio.CancelledError, DeadlineExceeded):
            self._withdraw(message)
            raise
        return _read(answer)

    async def stream(
        self, name: str, spec: ModelSpec, ask: InferAsk, headers: Mapping[str, str]
    ) -> AsyncGenerator[tuple[Inferred, bool], None]:
        """Yield what a model gives in parts, and whether each is the last; closed, it stops.

        A model that gives no parts gives one, which is the last.

        Raises:
            ClawdbotError: The worker's error, or that of the way to it.
        """
        _check_stateless(ask)
        message = self._message(name, spec, ask, {**headers, Header.STREAM: "true"})
        is_last = False
        try:
            async with aclosing(self.requests.stream(*message)) as parts:
                async for answer, is_last in parts:
                    yield _read(answer), is_last
        finally:
            if not is_last:
                self._withdraw(message)

    def _message(
        self, name: str, spec: ModelSpec, ask: InferAsk, headers: Mapping[str, str]
    ) -> "_Message":
        timeout_s = min(ask.timeout_s or spec.timeout_s, self.wait_s_max)
        document = {"inputs": {port: to_wire(value) for port, value in ask.inputs.items()}}
        if ask.params:
            document["params"] = dict(ask.params)
        said = {
            **headers,
            Header.CONTENT_TYPE: MSGPACK,
            Header.ACCEPT: MSGPACK,
            Header.PRIORITY: ask.lane,
            Header.TIMEOUT_S: f"{timeout_s:.6f}",
            Header.REQUEST_ID: self.requests.new_name(),
        }
        subject = infer(DEFAULT_TENANT, spec.modality, name)
        return _Message(subject, ormsgpack.packb(document), said, timeout_s + GRACE_S)

    def _withdraw(self, message: "_Message") -> None:
        """Tell the worker that nobody waits any more."""
        self.requests.tell(withdraw(DEFAULT_TENANT, message.headers[Header.REQUEST_ID]))


def _check_stateless(ask: InferAsk) -> None:
    if ask.step is not None:
        raise InvalidArgument("this model keeps no state: it takes no sequence_id")


class _Message(NamedTuple):
    """A request to a worker, as `Requests` takes it."""

    subject: str
    data: bytes
    headers: Mapping[str, str]
    timeout_s: float


def _read(answer: bytes) -> Inferred:
    found = unpack(Inference, answer)
    outputs = {port: from_wire(value, field=port) for port, value in found.outputs.items()}
    return Inferred(outputs, found.model)


GRACE_S = 1.0
"""For the worker's own word that it was too late."""


def _described(port: Port) -> TensorMetadata:
    return TensorMetadata(name=port.tensor_name, datatype=port.datatype, shape=port.shape)

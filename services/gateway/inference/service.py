"""Models as the Open Inference Protocol sees them, and the way of an inference to a worker."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import NamedTuple

from events.models import ModelDirectory, WorkerCard
from events.subjects import infer, withdraw
from schemas.catalogue import ModelSpec, Port
from schemas.errors import (
    BusUnavailable,
    DeadlineExceeded,
    InvalidArgument,
    ModelUnavailable,
    NotFound,
    Unavailable,
)
from schemas.ids import DEFAULT_TENANT
from schemas.live_catalogue import LiveCatalogue
from schemas.messages import Header, Inference, unpack
from schemas.open_inference import ModelMetadata, TensorMetadata
from schemas.pieces import Body, packed
from schemas.repository import AT, split
from schemas.submission import MSGPACK
from schemas.values import Value, bulk, from_wire, to_wire
from services.gateway.inference.asks import InferAsk, Wanted
from services.gateway.inference.balance import Balance
from services.gateway.inference.sequences import Sequences
from services.gateway.inference.workflows import ENGINE, WorkflowModels
from services.requests import NobodyServes, Requests
from services.runtime import Clock


EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
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
    run_id: str = ""
    """Of a workflow."""
    is_part: bool = False
    """Whether other parts have other outputs."""

    def of(self, wanted: Sequence[Wanted]) -> Sequence[Wanted]:
        """Return which of the outputs that are wanted there are: a run may have skipped a sink."""
        if not self.run_id and not self.is_part:
            return wanted
        return [item for item in wanted if item.port.name in self.outputs]

    def parameters(self, asked: str) -> dict[str, str]:
        """Return what an answer says beside its outputs."""
        said = {"run_id": self.run_id} if self.run_id else {}
        return said if self.model == asked else {**said, "served_by": self.model}


@dataclass(frozen=True)
class Inferences:
    """Asks workers.

    Args:
        catalogue: The models and their signatures.
        directory: Which worker serves what.
        requests: The way to them.
        clock: Tells which workers spoke lately.
        sequences: Those of stateful models.
        workflows: What is no model may be one.
        balance: Chooses among the workers that have a model.
        wait_s_max: Longest wait for an answer, seconds.
    """

    catalogue: LiveCatalogue
    directory: ModelDirectory
    requests: Requests
    clock: Clock
    sequences: Sequences
    workflows: WorkflowModels
    balance: Balance
    wait_s_max: float

    async def model(self, name: str, version: str | None = None, key: str = "") -> ModelSpec:
        """Return what a model takes and gives; a workflow is one too.

        Args:
            name: Of the model; `iris@3` and `iris@stable` are names too.
            version: A number, or an alias; that of the name, or the one in use, without.
            key: Decides between the version in use and its canaries; the same for the same.

        Raises:
            NotFound: No such model, or not this version of it.
            BusUnavailable: It may be a workflow, and the bus does not answer.
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
            spec = await self.workflows.spec(name)
        if version is not None and version != spec.version:
            raise NotFound(
                f"there is no version '{version[:32]}' of model '{name}', only '{spec.version}'"
            )
        return spec

    async def counted(self, name: str = "", version: str | None = None) -> dict[str, ModelSpec]:
        """Return the model of a name, or all of them: those that workers run.

        Raises:
            NotFound, BusUnavailable: As `model`.
            InvalidArgument: It is a workflow.
        """
        if name:
            spec = await self.model(name, version)
            if spec.engine == ENGINE:
                raise InvalidArgument(f"'{name}' is a workflow: /v1/statistics counts its nodes")
            return {self.offered_as(name, spec): spec}
        own, pushed = self.catalogue.base.models, self.catalogue.offered
        return {
            name: spec
            for name, spec in sorted(self.catalogue.now.models.items())
            if spec.engine not in HIDDEN and (name in own or name in pushed)
        }

    def metadata(self, name: str, spec: ModelSpec) -> ModelMetadata:
        """Return a model's signature."""
        record = self.catalogue.record(split(name)[0])
        offered = () if record is None else record.offered()
        return ModelMetadata(
            name=name,
            versions=tuple(str(item.version) for item in offered) or (spec.version,),
            platform=f"clawdbot_{spec.engine}",
            inputs=tuple(_described(port) for port in spec.asked),
            outputs=tuple(_described(port) for port in spec.given),
        )

    def offered_as(self, name: str, spec: ModelSpec) -> str:
        """Return what workers call a model of which a version was chosen: `iris@3`."""
        model, _ = split(name)
        return name if self.catalogue.record(model) is None else f"{model}{AT}{spec.version}"

    async def check_ready(self, name: str, spec: ModelSpec) -> None:
        """Return when a worker is there that can run a model, or every model of a workflow.

        Raises:
            ModelUnavailable: None is; says why, as far as workers know.
        """
        names: tuple[str, ...] = (self.offered_as(name, spec),)
        if spec.engine == ENGINE:
            used = await self.workflows.models(name)
            names = tuple(self.catalogue.concrete(model, "") for model in used)
        cards = await self.directory.cards(self.clock.now())
        for model in names:
            _check_offered(model, cards)

    async def _run(
        self, name: str, spec: ModelSpec, ask: InferAsk, headers: Mapping[str, str]
    ) -> Inferred:
        """Run a workflow, as long as it may be waited for."""
        found = await self.workflows.infer(name, spec, self._timed(ask), headers)
        return Inferred(found.outputs, name, found.run_id)

    def _timed(self, ask: InferAsk) -> InferAsk:
        """Return what is asked of a workflow, as long as it may be waited for."""
        if ask.params:
            raise InvalidArgument(f"a workflow takes no parameter '{next(iter(ask.params))[:64]}'")
        return replace(ask, timeout_s=min(ask.timeout_s, self.wait_s_max))

    async def infer(
        self, name: str, spec: ModelSpec, ask: InferAsk, headers: Mapping[str, str]
    ) -> Inferred:
        """Have a worker compute, over `infer.<modality>.<model>`; cancelled, so is its work.

        Raises:
            ClawdbotError: The worker's error, or that of the way to it.
        """
        if not spec.state:
            _check_stateless(ask)
            if spec.engine == ENGINE:
                return await self._run(name, spec, ask, headers)
            return await self._infer(name, spec, ask, headers)
        async with self.sequences.turn(self.offered_as(name, spec), spec, ask) as turn:
            found = await self._infer(name, spec, turn.ask, headers)
            turn.outputs = found.outputs
        return found

    async def _infer(
        self, name: str, spec: ModelSpec, ask: InferAsk, headers: Mapping[str, str]
    ) -> Inferred:
        at = self.offered_as(name, spec)
        message = self._message(at, spec, ask, headers)
        try:
            answer = await self._ask(at, message, together=spec.max_batch_size > 0)
        except (asyncio.CancelledError, DeadlineExceeded):
            self._withdraw(message)
            raise
        return _read(answer, at, name)

    async def stream(
        self, name: str, spec: ModelSpec, ask: InferAsk, headers: Mapping[str, str]
    ) -> AsyncGenerator[tuple[Inferred, bool], None]:
        """Yield what a model gives in parts, and whether each is the last; closed, it stops.

        A model that gives no parts gives one, which is the last.

        Raises:
            ClawdbotError: The worker's error, or that of the way to it.
        """
        _check_stateless(ask)
        if spec.engine == ENGINE:
            grown = self.workflows.stream(name, spec, self._timed(ask), headers)
            async with aclosing(grown) as growing:
                async for outputs, is_last in growing:
                    yield Inferred(outputs.outputs, name, outputs.run_id), is_last
            return
        at = self.offered_as(name, spec)
        message = self._message(at, spec, ask, {**headers, Header.STREAM: "true"})
        is_last = False
        try:
            async with aclosing(self._parts(at, message)) as parts:
                async for answer, is_last in parts:
                    found = _read(answer, at, name)
                    yield replace(found, is_part=spec.streams), is_last
        finally:
            if not is_last:
                self._withdraw(message)

    async def _ask(self, name: str, message: "_Message", *, together: bool) -> bytes:
        """Ask the worker that will answer soonest; one that is gone or full is no loss.

        What is computed together travels together.
        """
        worker = self.balance.choose(name)
        if worker is not None:
            try:
                with worker.asked():
                    return await self.requests.ask(*message.to(worker.name), together=together)
            except NobodyServes:
                self.balance.gone(worker)
            except Unavailable as error:
                other = self.balance.other(name, worker)
                if other is None or isinstance(error, BusUnavailable):
                    raise
                with other.asked():
                    return await self.requests.ask(*message.to(other.name), together=together)
        return await self.requests.ask(*message, together=together)

    async def _parts(
        self, name: str, message: "_Message"
    ) -> AsyncGenerator[tuple[bytes, bool], None]:
        """As `_ask`, in parts; how long a stream takes says nothing of its worker."""
        worker = self.balance.choose(name)
        target = message if worker is None else message.to(worker.name)
        try:
            async with aclosing(self.requests.stream(*target)) as parts:
                async for part in parts:
                    yield part
            return
        except NobodyServes:
            if worker is None:
                raise
            self.balance.gone(worker)
        async with aclosing(self.requests.stream(*message)) as parts:
            async for part in parts:
                yield part

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
        return _Message(
            subject, packed(document, bulk(ask.inputs.values())), said, timeout_s + GRACE_S
        )

    def _withdraw(self, message: "_Message") -> None:
        """Tell the worker that nobody waits any more."""
        self.requests.tell(withdraw(DEFAULT_TENANT, message.headers[Header.REQUEST_ID]))


def _check_offered(name: str, cards: Sequence[WorkerCard]) -> None:
    offers = [offer for card in cards for offer in card.offers if offer.model == name]
    if not any(offer.available for offer in offers):
        why = offers[0].reason if offers else "no worker offers it"
        raise ModelUnavailable(f"model '{name}' is not ready: {why}")


def _check_stateless(ask: InferAsk) -> None:
    if ask.step is not None:
        raise InvalidArgument("this model keeps no state: it takes no sequence_id")


class _Message(NamedTuple):
    """A request to a worker, as `Requests` takes it."""

    subject: str
    data: Body
    headers: Mapping[str, str]
    timeout_s: float

    def to(self, worker: str) -> "_Message":
        """Return the same for one worker alone."""
        return self._replace(subject=f"{self.subject}.{worker}")


def _read(answer: bytes, at: str, name: str) -> Inferred:
    """Return what a worker answered; the version that was chosen goes by the model's name."""
    found = unpack(Inference, answer)
    outputs = {port: from_wire(value, field=port) for port, value in found.outputs.items()}
    return Inferred(outputs, name if found.model == at else found.model)


GRACE_S = 1.0
"""For the worker's own word that it was too late."""


def _described(port: Port) -> TensorMetadata:
    return TensorMetadata(name=port.tensor_name, datatype=port.datatype, shape=port.shape)

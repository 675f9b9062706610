"""Workflows as models: an inference is a run, recorded as any other, and waited for.

Source: Triton shows its ensembles the same way.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from events.blobs import BlobStore
from events.definitions import DeployedWorkflow
from events.spill import fetch
from events.subjects import RunKey
from schemas import mustache
from schemas.catalogue import Catalogue, ModelSpec, Port, ValueKind
from schemas.errors import NotFound
from schemas.ids import DEFAULT_TENANT, TOKEN, new_id
from schemas.inputs import WHOLE_INPUT
from schemas.live_catalogue import LiveCatalogue
from schemas.messages import Header
from schemas.plan import RUN_INPUT, TEMPLATE_ENGINE, Plan
from schemas.values import Value, Wire, from_json, to_wire
from services.gateway.calls import error_of
from services.gateway.inference.asks import InferAsk
from services.gateway.inference.growing import Growing
from services.gateway.inputs import checked
from services.gateway.listening import listening
from services.gateway.submissions import Ask, Submissions


ENGINE = "workflow"
"""What stands as the engine of a workflow that is shown as a model."""
PREFIX = "workflow:"
"""Before the name of a workflow that is called as a model is."""


@dataclass(frozen=True)
class RunOutputs:
    """What a run gave."""

    run_id: str
    outputs: Mapping[str, Value]
    """By port; a sink that was skipped gave none."""


@dataclass(frozen=True)
class WorkflowModels:
    """Shows workflows as models, and runs them.

    Args:
        submissions: Knows the workflows, submits and waits.
        catalogue: What the nodes of a workflow take and give.
        blobs: Where large outputs are.
        wait_s: How long to wait where the client does not say, seconds.
    """

    submissions: Submissions
    catalogue: LiveCatalogue
    blobs: BlobStore
    wait_s: float
    _specs: dict[str, tuple[DeployedWorkflow, ModelSpec]] = field(default_factory=dict)
    """The newest version of each that was asked for."""

    async def spec(self, name: str) -> ModelSpec:
        """Return a workflow's newest version as a model.

        Raises:
            NotFound: No such workflow.
            BusUnavailable: The bus does not answer.
        """
        return (await self._known(name))[1]

    async def models(self, name: str) -> tuple[str, ...]:
        """Return the models that a workflow's nodes run on.

        Raises:
            NotFound, BusUnavailable: As `spec`.
        """
        deployed, _ = await self._known(name)
        return tuple(sorted({node.model for node in deployed.plan.worked_on()}))

    async def stream(
        self, name: str, spec: ModelSpec, ask: InferAsk, headers: Mapping[str, str]
    ) -> AsyncGenerator[tuple[RunOutputs, bool], None]:
        """Yield what sinks say while they compute, then the rest, and whether it is the last.

        Raises:
            ClawdbotError: As `infer`.
            Unavailable: What was said is not how it ended; see `Growing`.
        """
        run_id, growing = new_id(), Growing(spec)
        key = RunKey(DEFAULT_TENANT, run_id)
        async with listening(self.submissions.bus, key) as listener:
            run = asyncio.ensure_future(self.infer(name, spec, ask, headers, run_id=run_id))
            try:
                while not run.done():
                    hearing = asyncio.ensure_future(listener.more.wait())
                    try:
                        await asyncio.wait({run, hearing}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        hearing.cancel()
                        await asyncio.wait({hearing})
                    fresh = growing.add(listener.take())
                    if fresh:
                        yield RunOutputs(run_id, fresh), False
            finally:
                run.cancel()
                await asyncio.wait({run})
            yield RunOutputs(run_id, growing.rest(run.result().outputs, run_id)), True

    async def infer(
        self,
        name: str,
        spec: ModelSpec,
        ask: InferAsk,
        headers: Mapping[str, str],
        *,
        run_id: str = "",
    ) -> RunOutputs:
        """Run a workflow and wait for what comes out of it; the run goes on when nobody waits.

        Raises:
            DeadlineExceeded: It takes longer; the message has the run's id.
            ClawdbotError: The run's own error, or that of the way to it.
        """
        names = {port.name: port.tensor_name for port in spec.inputs}
        inputs = {names[port]: to_wire(value) for port, value in ask.inputs.items()}

        async def read(plan: Plan, ports: Mapping[str, Port]) -> Wire:
            return checked(inputs, plan, ports)

        ended = await self.submissions.call(
            Ask(
                workflow=name.removeprefix(PREFIX),
                run_id=run_id,
                correlation_id=headers.get(Header.CORRELATION_ID, ""),
                traceparent=headers.get(Header.TRACEPARENT, ""),
                wait_s=ask.timeout_s or self.wait_s,
            ),
            read,
        )
        if ended.status != "completed":
            raise error_of(ended)
        return RunOutputs(ended.run_id, await self._outputs(spec, ended.outputs or {}))

    async def _outputs(self, spec: ModelSpec, found: Mapping[str, Any]) -> dict[str, Value]:
        """Return what the sinks gave, by port."""
        flat: dict[str, Any] = {}
        for port in spec.outputs:
            sink, _, output = port.tensor_name.partition(".")
            gave = found.get(sink)
            if not output and gave is not None:
                flat[port.name] = gave
            elif isinstance(gave, Mapping) and output in gave:
                flat[port.name] = gave[output]
        return await fetch(from_json(flat, field="outputs"), DEFAULT_TENANT, self.blobs)

    async def _known(self, name: str) -> tuple[DeployedWorkflow, ModelSpec]:
        plain = name.removeprefix(PREFIX)
        if not re.fullmatch(TOKEN, plain):
            raise NotFound(f"there is no model '{name[:128]}'")
        try:
            async with self.submissions.bus.prompt(self.submissions.request_s):
                deployed, ports = await self.submissions.deployed(plain)
        except NotFound as error:
            raise NotFound(f"there is no model '{name[:128]}', and no such workflow") from error
        known = self._specs.get(plain)
        if known is None or known[0] is not deployed:
            known = self._specs[plain] = deployed, spec_of(deployed, ports, self.catalogue.now)
        return known


def spec_of(
    deployed: DeployedWorkflow, ports: Mapping[str, Port], catalogue: Catalogue
) -> ModelSpec:
    """Return a workflow as a model: the run's inputs, and `sink.output` of each sink.

    Args:
        deployed: The workflow.
        ports: What each run input feeds, as far as that is a model's input.
        catalogue: What models give.
    """
    plan = deployed.plan
    texts = {feed.source for feed in plan.feeds() if feed.node.model == TEMPLATE_ENGINE}
    texts |= _named_by_templates(plan, catalogue)
    known = {**dict.fromkeys(texts, False), **plan.run_inputs()}
    inputs = []
    for number, (name, required) in enumerate(sorted(known.items())):
        kind: ValueKind = "text" if name in texts else "json"
        like = ports.get(name) or Port(name="any", kind=kind)
        inputs.append(_renamed(like, f"i{number}", name, required=required))
    outputs: list[Port] = []
    for sink in plan.outputs:
        node = plan.node(sink)
        given = catalogue.models[node.model].outputs if node.model in catalogue.models else ()
        for port in given:
            outputs.append(_renamed(port, f"o{len(outputs)}", f"{sink}.{port.name}"))
        if not given:
            outputs.append(Port(name=f"o{len(outputs)}", tensor=sink, kind="json"))
    return ModelSpec(
        modality="text",
        engine=ENGINE,
        version=str(deployed.version),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        streams=any(
            catalogue.models[model].streams
            for sink in plan.outputs
            if (model := plan.node(sink).model) in catalogue.models
        ),
    )


def _named_by_templates(plan: Plan, catalogue: Catalogue) -> set[str]:
    """Return the run inputs that templates name: whatever is no node, and no output of one."""
    found: set[str] = set()
    for node in plan.nodes:
        if node.model != TEMPLATE_ENGINE or WHOLE_INPUT not in node.bindings.values():
            continue
        taken = set(node.bindings)
        for source in taken & plan.by_id.keys():
            spec = catalogue.models.get(plan.node(source).model)
            taken |= {port.name for port in spec.outputs} if spec is not None else set()
        for path in mustache.parse(str(node.params["template"])).paths():
            name = path[1:2] if path[:1] == (RUN_INPUT,) else path[:1]
            found.update(item for item in name if item not in taken)
    return {name for name in found if re.fullmatch(TOKEN, name)}


def _renamed(port: Port, name: str, tensor: str, *, required: bool = True) -> Port:
    return port.model_copy(update={"name": name, "tensor": tensor, "required": required})

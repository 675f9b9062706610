"""Deploying workflows: compile, ask the workers who can serve, store."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from events.definitions import DefinitionStore, DeployedWorkflow, called
from events.models import ModelDirectory, Offer, WorkerCard
from events.schedules import Schedules
from schemas.api import InputView, WorkflowView
from schemas.compiler import compile_plan
from schemas.errors import FailedPrecondition, InvalidArgument, NotFound
from schemas.expressions import parse
from schemas.ids import DEFAULT_TENANT
from schemas.inputs import input_ports
from schemas.live_catalogue import LiveCatalogue
from schemas.plan import Plan, PlanNode, adaptations
from schemas.workflow import Deployment, WorkflowDefinition
from services.runtime import Clock


PLAN_BYTES_MAX = 384 * 1024
"""A run's first commit carries the plan and the inputs, and a commit has 512 KiB."""


@dataclass(frozen=True)
class Deployments:
    """Deploys and shows workflows."""

    definitions: DefinitionStore
    schedules: Schedules
    directory: ModelDirectory
    catalogue: LiveCatalogue
    clock: Clock
    allow_fallback: bool

    async def deploy(self, deployment: Deployment) -> tuple[WorkflowView, bool]:
        """Store a workflow; return it, and whether that made a new version.

        Raises:
            InvalidArgument: The definition cannot work; names the node or edge.
            FailedPrecondition: A model cannot run here; says how to get it.
            StoreUnavailable: The definitions cannot be stored.
        """
        definition = deployment.definition
        check_starts(deployment)
        plan = self._compile(definition, await called(self.definitions, DEFAULT_TENANT, definition))
        cards = await self.directory.cards(self.clock.now())
        candidate = DeployedWorkflow(
            name=deployment.name,
            version=0,
            digest=definition.digest(),
            definition=definition,
            plan=plan,
            replicas=deployment.replicas,
            schedules=deployment.schedules,
            triggers=deployment.triggers,
            warnings=tuple(self._warnings(definition, plan, cards)),
            deployed_at=self.clock.now(),
        )
        stored = await self.definitions.deploy(DEFAULT_TENANT, candidate)
        created = stored.deployed_at == candidate.deployed_at
        if created:
            await self.schedules.put(DEFAULT_TENANT, stored)
        fresh = stored.model_copy(update={"warnings": candidate.warnings})
        return self.view(fresh), created

    async def all(self) -> list[WorkflowView]:
        """Return every workflow's newest version, by name."""
        return [self.view(found) for found in await self.definitions.all_newest(DEFAULT_TENANT)]

    async def get(self, name: str, version: int | None = None) -> WorkflowView:
        """Return one version, the newest by default.

        Raises:
            NotFound: There is none.
        """
        if version is None:
            return self.view(await self.definitions.newest(DEFAULT_TENANT, name))
        return self.view(await self.definitions.version(DEFAULT_TENANT, name, version))

    def view(self, deployed: DeployedWorkflow) -> WorkflowView:
        """Return a workflow as the API shows it."""
        ports = input_ports(deployed.plan, self.catalogue.now)
        return WorkflowView(
            name=deployed.name,
            version=deployed.version,
            digest=deployed.digest,
            replicas=deployed.replicas,
            schedules=deployed.schedules,
            triggers=deployed.triggers,
            warnings=deployed.warnings,
            inputs=tuple(
                InputView(name=name, required=required, kind=getattr(ports.get(name), "kind", None))
                for name, required in deployed.plan.run_inputs().items()
            ),
            outputs=deployed.plan.outputs,
            adapted={
                f"{node.id}.{name}": item
                for node in deployed.plan.worked_on()
                for name, item in adaptations(node.bindings).items()
            },
            deployed_at=deployed.deployed_at,
            definition=deployed.definition,
        )

    def _compile(
        self, definition: WorkflowDefinition, workflows: Mapping[str, WorkflowDefinition]
    ) -> Plan:
        try:
            plan = compile_plan(definition, self.catalogue.now, workflows)
        except NotFound as error:
            raise InvalidArgument(error.message, field=_within(error.field)) from error
        except InvalidArgument as error:
            raise InvalidArgument(error.message, field=_within(error.field)) from error
        size = len(orjson.dumps(plan.model_dump(mode="json")))
        if size > PLAN_BYTES_MAX:
            raise InvalidArgument(
                f"the workflow compiles to {size} bytes; at most {PLAN_BYTES_MAX} fit, so shorten "
                f"its templates or split it",
                field="definition",
            )
        return plan

    def _warnings(
        self, definition: WorkflowDefinition, plan: Plan, cards: list[WorkerCard]
    ) -> list[str]:
        found: list[str] = []
        for node, where in _worked_on(plan, definition.model_dump(), "definition"):
            text = self._warning(node, cards, where)
            if text and text not in found:
                found.append(text)
        return found

    def _warning(self, node: PlanNode, cards: list[WorkerCard], where: str) -> str:
        """Return what the user should know of a node's model; empty when all is well."""
        name = self.catalogue.concrete(node.model, "")
        offers = [offer for card in cards for offer in card.offers if offer.model == name]
        if any(offer.available and offer.served_by == name for offer in offers):
            return ""
        if not offers and name != node.model and any(c.modality == node.modality for c in cards):
            return ""  # it is in the repository, and fetched when it is asked for
        if not offers:
            return f"no {node.modality} worker is running; runs will wait for one"
        stand_in = next((offer for offer in offers if offer.available), None)
        if stand_in is not None and self.allow_fallback:
            return f"'{stand_in.served_by}' serves for '{name}': {stand_in.reason}"
        raise FailedPrecondition(self._how_to_get(name, offers), field=where)

    def _how_to_get(self, name: str, offers: list[Offer]) -> str:
        reason = offers[0].reason
        get = self.catalogue.now.model(name).get
        hint = f"; {get}" if get and get not in reason else ""
        return f"model '{name}' cannot run here: {reason}{hint}"


def check_starts(deployment: Deployment) -> None:
    """Refuse triggers whose expressions cannot work.

    Raises:
        InvalidArgument: Names the expression.
    """
    for name, trigger in deployment.triggers.items():
        for wanted, formula in trigger.inputs.items():
            where = f"triggers.{name}.inputs.{wanted}"
            try:
                unknown = parse(formula).names - {"event"}
            except InvalidArgument as error:
                raise InvalidArgument(error.message, field=where) from error
            if unknown:
                raise InvalidArgument("a trigger sees nothing but `event`", field=where)


def _worked_on(plan: Plan, document: dict[str, Any], where: str) -> Iterator[tuple[PlanNode, str]]:
    """Yield every node that a worker runs, inside control nodes too, and where its model stands."""
    places = {node["id"]: place for place, node in enumerate(document["nodes"])}
    for node in plan.nodes:
        written, at = document["nodes"][places[node.id]], f"{where}.nodes[{places[node.id]}]"
        if node.kind == "model":
            yield node, f"{at}.params.model"
        for label, body in node.bodies.items():
            if label == "compensate":
                yield from _worked_on(body, written["compensate"], f"{at}.compensate")
            elif node.kind == "graph":
                yield from ((inner, f"{at}.params.workflow") for inner in body.worked_on())
            else:
                yield from _worked_on(body, written["params"][label], f"{at}.params.{label}")


def _within(field: str | None) -> str:
    return f"definition.{field}" if field else "definition"

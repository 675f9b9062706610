"""Workflows of trivial nodes, deployed straight into the bucket."""

import itertools

from nats.js import JetStreamContext

from events.definitions import DefinitionStore, DeployedWorkflow
from schemas.catalogue import Catalogue, load
from schemas.compiler import compile_plan
from schemas.ids import DEFAULT_TENANT
from schemas.workflow import parse_definition


def echo_chain(length: int) -> dict[str, object]:
    """Return the definition of `length` echo nodes in a row."""
    names = [f"n{number}" for number in range(length)]
    return {
        "nodes": [{"id": name, "type": "model", "params": {"model": "echo"}} for name in names],
        "edges": [{"source": left, "target": right} for left, right in itertools.pairwise(names)],
    }


def compiled(name: str, document: object, catalogue: Catalogue | None = None) -> DeployedWorkflow:
    """Return a definition as it is deployed, by the catalogue that ships or by another one."""
    definition = parse_definition(document)
    return DeployedWorkflow(
        name=name,
        version=0,
        digest=definition.digest(),
        definition=definition,
        plan=compile_plan(definition, catalogue or load()),
        deployed_at=0.0,
    )


async def deploy(
    js: JetStreamContext, name: str, document: object, tenant: str = DEFAULT_TENANT
) -> DeployedWorkflow:
    """Deploy a definition."""
    return await DefinitionStore(js).deploy(tenant, compiled(name, document))

"""Preparing a fork: the run it comes from is read, the changed workflow is compiled."""

from dataclasses import dataclass

import ormsgpack

from events.catalog import ForkedFrom, NodeKept, RunStarted
from events.definitions import DefinitionStore, DeployedWorkflow, called
from events.fork import Kept, kept
from events.store import EventStore
from events.subjects import RunKey
from schemas.catalogue import Catalogue
from schemas.compiler import compile_plan
from schemas.errors import FailedPrecondition, InvalidArgument, NotFound
from schemas.forks import Fork, blame, changed_definition, changed_inputs
from schemas.plan import Plan
from schemas.submission import check_inputs
from schemas.values import Wire
from schemas.versions import as_before
from schemas.workflow import WorkflowDefinition


KEPT_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of outputs, apart from blobs, that a fork takes over: they are one commit."""


@dataclass(frozen=True)
class PreparedFork:
    """A fork that can begin."""

    deployed: DeployedWorkflow
    plan: Plan
    inputs: Wire
    digest: str
    """Of the request: the same fork of the same run has the same."""
    origin: ForkedFrom
    kept: tuple[Kept, ...]


async def prepare_fork(
    store: EventStore,
    definitions: DefinitionStore,
    catalogue: Catalogue,
    parent: RunKey,
    fork: Fork,
    *,
    at: float,
) -> PreparedFork:
    """Read the run a fork comes from, and compile what the fork is to run.

    Args:
        store: The log.
        definitions: Where its workflow is.
        catalogue: The models and templates there are.
        parent: The run it comes from.
        fork: What is asked for.
        at: Seconds since the epoch.

    Raises:
        NotFound: No such run, or no such version.
        InvalidArgument: The run has fewer events, or a change does not fit; names it.
        FailedPrecondition: The run never began, its workflow is not here, or it keeps too much.
        StoreUnavailable: The log or the definitions cannot be reached.
    """
    events = (await store.load(parent)).events()
    if not events:
        raise NotFound(f"no run {parent.run_id}", field="run_id")
    started = events[0]
    if not isinstance(started, RunStarted):
        raise FailedPrecondition("the run was rejected; there is nothing to fork", field="run_id")
    if fork.at is not None and fork.at > len(events):
        raise InvalidArgument(f"the run has {len(events)} events", field="at")
    events = events[: fork.at]
    deployed = await _deployed(definitions, parent, started, fork)
    changes = started.forked_from.changes if started.forked_from and not fork.version else {}
    changes = {**changes, **fork.changes}
    definition = changed_definition(deployed.definition, changes)
    inputs = changed_inputs(started.inputs, fork.changes)
    workflows = await called(definitions, parent.tenant, definition)
    plan = _compile(definition, catalogue, workflows, changes)
    plan = as_before(plan, started.plan, changes.keys())
    check_inputs(inputs, plan)
    found = kept(parent.run_id, events, plan, inputs, at)
    size = sum(len(ormsgpack.packb(item.outputs)) for item in found if isinstance(item, NodeKept))
    if size > KEPT_BYTES_MAX:
        raise FailedPrecondition(
            f"the fork would take over {size} bytes; at most {KEPT_BYTES_MAX} fit: fork earlier",
            field="at",
        )
    return PreparedFork(
        deployed=deployed,
        plan=plan,
        inputs=inputs,
        digest=fork.digest(parent.run_id, started.workflow),
        origin=ForkedFrom(run_id=parent.run_id, at=len(events), changes=changes),
        kept=found,
    )


async def _deployed(
    definitions: DefinitionStore, parent: RunKey, started: RunStarted, fork: Fork
) -> DeployedWorkflow:
    """Return the version that is asked for, or the one the run began with."""
    if fork.version is not None:
        return await definitions.version(parent.tenant, started.workflow, fork.version)
    try:
        found = await definitions.version(parent.tenant, started.workflow, started.version)
    except NotFound:
        found = None
    if found is None or found.digest != started.digest:
        raise FailedPrecondition(
            f"the workflow '{started.workflow}' is not deployed here as the run had it; deploy it "
            f"and name its version",
            field="version",
        )
    return found


def _compile(
    definition: WorkflowDefinition,
    catalogue: Catalogue,
    workflows: dict[str, WorkflowDefinition],
    changes: dict[str, object],
) -> Plan:
    try:
        return compile_plan(definition, catalogue, workflows)
    except (InvalidArgument, NotFound) as error:
        raise InvalidArgument(error.message, field=blame(changes)) from error

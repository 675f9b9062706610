"""Deployed workflows: immutable versions in a KV bucket, and a pointer to the newest."""

import orjson
from nats.js import JetStreamContext
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue
from pydantic import Field

from events.buckets import entries
from events.jetstream import BUS_ERRORS
from events.races import RACES_MAX, step_aside
from events.streams import DEFINITIONS
from schemas.errors import Aborted, NotFound, StoreUnavailable
from schemas.message import Message
from schemas.plan import Plan
from schemas.structures import workflows_named
from schemas.workflow import Schedule, Trigger, WorkflowDefinition


CALLED_MAX = 64
"""Workflows that one workflow may call, directly or not."""


class DeployedWorkflow(Message):
    """One version of a workflow."""

    name: str
    version: int
    digest: str
    definition: WorkflowDefinition
    plan: Plan
    replicas: int = 1
    schedules: dict[str, Schedule] = Field(default_factory=dict)
    triggers: dict[str, Trigger] = Field(default_factory=dict)
    warnings: tuple[str, ...] = Field(default=())
    deployed_at: float


class DefinitionStore:
    """Reads and writes `<tenant>.<name>` (newest) and `<tenant>.<name>.<version>` (immutable)."""

    def __init__(self, js: JetStreamContext) -> None:
        self._js = js
        self._versions: dict[tuple[str, str, int], DeployedWorkflow] = {}

    async def deploy(self, tenant: str, candidate: DeployedWorkflow) -> DeployedWorkflow:
        """Store a new version, unless the newest has the same digest, replicas and plan.

        `candidate.version` is ignored: the store counts.

        Raises:
            Aborted: Too many others deployed the same name at the same moment.
            StoreUnavailable: The bucket does not answer.
        """
        try:
            bucket = await self._js.key_value(DEFINITIONS)
            for lost in range(RACES_MAX):
                stored = await self._try_deploy(bucket, tenant, candidate)
                if stored is not None:
                    return stored
                await step_aside(lost)
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the definitions bucket does not answer") from error
        raise Aborted(f"others are deploying '{candidate.name}' too; try again")

    async def _try_deploy(
        self, bucket: KeyValue, tenant: str, candidate: DeployedWorkflow
    ) -> DeployedWorkflow | None:
        key = f"{tenant}.{candidate.name}"
        try:
            entry = await bucket.get(key)
            newest = _read(entry.value)
            revision = entry.revision or 0
        except KeyNotFoundError:
            newest, revision = None, 0
        if newest is not None and _same(newest, candidate):
            return newest
        if newest is not None:  # perhaps whoever deployed it died before it wrote its version
            await bucket.put(f"{key}.{newest.version}", _body(newest))
        version = newest.version + 1 if newest else 1
        stored = candidate.model_copy(update={"version": version})
        try:
            await bucket.update(key, _body(stored), last=revision)
        except KeyWrongLastSequenceError:
            return None
        await bucket.put(f"{key}.{version}", _body(stored))
        return stored

    async def newest(self, tenant: str, name: str) -> DeployedWorkflow:
        """Return the newest version.

        Raises:
            NotFound: Never deployed.
            StoreUnavailable: The bucket does not answer.
        """
        try:
            bucket = await self._js.key_value(DEFINITIONS)
            return _read((await bucket.get(f"{tenant}.{name}")).value)
        except KeyNotFoundError:
            raise NotFound(
                f"no workflow named '{name}'; deploy it first", field="workflow"
            ) from None
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the definitions bucket does not answer") from error

    async def version(self, tenant: str, name: str, version: int) -> DeployedWorkflow:
        """Return one version; versions never change, so they are remembered."""
        found = self._versions.get((tenant, name, version))
        if found is not None:
            return found
        try:
            bucket = await self._js.key_value(DEFINITIONS)
            found = _read((await bucket.get(f"{tenant}.{name}")).value)
            if found.version != version:
                found = _read((await bucket.get(f"{tenant}.{name}.{version}")).value)
        except KeyNotFoundError:
            raise NotFound(f"workflow '{name}' has no version {version}", field="version") from None
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the definitions bucket does not answer") from error
        self._versions[tenant, name, version] = found
        return found

    async def revision(self) -> int:
        """Return a number that every deploy, of whichever workflow, raises.

        Raises:
            StoreUnavailable: The bucket does not answer.
        """
        try:
            return (await self._js.stream_info(f"KV_{DEFINITIONS}")).state.last_seq
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the definitions bucket does not answer") from error

    async def all_newest(self, tenant: str) -> list[DeployedWorkflow]:
        """Return the newest version of each of a tenant's workflows, by name.

        Raises:
            StoreUnavailable: The bucket does not answer.
        """
        newest = await entries(self._js, DEFINITIONS, f"{tenant}.*")
        found = [_read(body) for body in newest.values()]
        return sorted(found, key=lambda workflow: workflow.name)


async def called(
    store: DefinitionStore, tenant: str, definition: WorkflowDefinition
) -> dict[str, WorkflowDefinition]:
    """Return the definitions that a definition's `workflow` nodes name, and those that they name.

    One that was never deployed is left out: the compiler says which node names it.

    Raises:
        StoreUnavailable: The bucket does not answer.
    """
    found: dict[str, WorkflowDefinition] = {}
    pending = list(workflows_named(definition))
    while pending and len(found) < CALLED_MAX:
        reference = pending.pop()
        if reference in found:
            continue
        name, _, version = reference.partition("@")
        try:
            deployed = (
                await store.version(tenant, name, int(version))
                if version
                else await store.newest(tenant, name)
            )
        except NotFound:
            continue
        found[reference] = deployed.definition
        pending += workflows_named(deployed.definition)
    return found


def _same(stored: DeployedWorkflow, candidate: DeployedWorkflow) -> bool:
    ignored = {"version", "warnings", "deployed_at"}
    return stored.model_dump(exclude=ignored) == candidate.model_dump(exclude=ignored)


def _body(workflow: DeployedWorkflow) -> bytes:
    return orjson.dumps(workflow.model_dump(mode="json"))


def _read(body: bytes | None) -> DeployedWorkflow:
    document = orjson.loads(body or b"{}")
    return DeployedWorkflow.model_validate(document, strict=False)

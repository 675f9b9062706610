"""Submissions and results in, commits and tasks out."""

from collections.abc import Sequence

from events.blobs import BlobStore
from events.catalog import NodeScheduled
from events.commands import CancelRun, CheckClock, RecordResult, RejectRun, StartRun
from events.definitions import DefinitionStore, DeployedWorkflow
from events.run import RunState, node_inputs
from events.spill import spill
from events.subjects import RunKey, run_key, task, tenant_and_name
from schemas.errors import AlreadyExists, InvalidArgument, NotFound, TerminalError
from schemas.ids import valid_token
from schemas.messages import Control, Fault, Header, Task, TaskResult, pack, unpack
from schemas.submission import inputs_digest, parse_submission
from schemas.values import Wire
from services.orchestrator.runs import Decision, Runs
from services.runtime import Clock, Delivery, Outgoing
from services.telemetry import child_traceparent, get_logger


log = get_logger()

LANE = "normal"
VERSION_DIGITS_MAX = 9


class Handlers:
    """The orchestrator's handlers; every one may be called again with the same message."""

    def __init__(
        self, runs: Runs, definitions: DefinitionStore, blobs: BlobStore, clock: Clock
    ) -> None:
        self._runs = runs
        self._definitions = definitions
        self._blobs = blobs
        self._clock = clock

    async def submit(self, delivery: Delivery) -> Sequence[Outgoing]:
        """Start the run a submission asks for, or record why not."""
        tenant, workflow = tenant_and_name(delivery.subject)
        derived = f"COMMANDS-{delivery.sequence}"
        run_id = delivery.headers.get(Header.RUN_ID) or derived
        key = RunKey(tenant, derived)  # of the refusal, should the chosen id be no token
        correlation_id = delivery.headers.get(Header.CORRELATION_ID) or run_id
        delivery.facts.update(run_id=run_id, correlation_id=correlation_id)
        inputs: Wire = {}
        try:
            key = RunKey(tenant, valid_token(run_id, field=Header.RUN_ID))
            deployed = await self._deployed(tenant, workflow, delivery)
            inputs = parse_submission(delivery.data, delivery.headers, deployed.plan)
            digest = inputs_digest(workflow, inputs)
            inputs = await spill(inputs, tenant, self._blobs)
        except TerminalError as error:
            return await self._reject(key, workflow, delivery, error)
        command = StartRun(
            workflow=workflow,
            version=deployed.version,
            digest=deployed.digest,
            plan=deployed.plan,
            inputs=inputs,
            inputs_digest=digest,
            correlation_id=correlation_id,
            at=self._clock.now(),
        )
        trace = child_traceparent(delivery.headers.get(Header.TRACEPARENT))
        try:
            decision = await self._runs.obey(
                key, command, traceparent=trace, fresh=delivery.count == 1
            )
        except NotFound as error:
            raise AlreadyExists(error.message, field=Header.RUN_ID) from error
        state = decision.state
        if state is not None and state.inputs_digest != digest:
            raise AlreadyExists(
                f"run {run_id} exists with other inputs; choose another id", field=Header.RUN_ID
            )
        return self._tasks(key, decision, trace)

    async def result(self, delivery: Delivery) -> Sequence[Outgoing]:
        """Record a worker's result."""
        key = run_key(delivery.subject)
        result = unpack(TaskResult, delivery.data)
        delivery.facts.update(run_id=key.run_id, node_id=result.node_id, attempt=result.attempt)
        trace = child_traceparent(delivery.headers.get(Header.TRACEPARENT))
        try:
            decision = await self._runs.obey(
                key, RecordResult(result, self._clock.now()), traceparent=trace
            )
        except NotFound:
            delivery.facts["stale"] = True  # the run was retired meanwhile
            return ()
        delivery.facts["stale"] = not decision.events
        return self._tasks(key, decision, trace)

    async def check_clock(self, key: RunKey) -> Sequence[Outgoing]:
        """Give up late attempts and begin waiting ones."""
        decision = await self._runs.obey(key, CheckClock(self._clock.now()))
        return self._tasks_of_events(key, decision, child_traceparent(None))

    async def control(self, key: RunKey, command: Control) -> None:
        """Do to a run what a client asked for; nothing if the run is unknown or over."""
        orders = {"cancel": CancelRun(command.reason, self._clock.now())}
        decision = await self._runs.obey(key, orders[command.action])
        log.info(
            "control_handled", action=command.action, run_id=key.run_id, done=bool(decision.events)
        )

    async def republish(self, key: RunKey) -> Sequence[Outgoing]:
        """Return the tasks of every open node, as after a loss of the TASKS stream."""
        state = await self._runs.state(key)
        if state is None:
            return ()
        trace = child_traceparent(None)
        return [self._task(key, state, node_id, trace) for node_id in state.open_nodes()]

    async def _deployed(self, tenant: str, workflow: str, delivery: Delivery) -> DeployedWorkflow:
        version = delivery.headers.get(Header.VERSION)
        if version is None:
            return await self._definitions.newest(tenant, workflow)
        if not version.isdecimal() or len(version) > VERSION_DIGITS_MAX:
            raise InvalidArgument("send the number of a version", field=Header.VERSION)
        return await self._definitions.version(tenant, workflow, int(version))

    async def _reject(
        self, key: RunKey, workflow: str, delivery: Delivery, error: TerminalError
    ) -> Sequence[Outgoing]:
        delivery.facts["rejected"] = error.message
        digest = inputs_digest(workflow, {"body": delivery.data})
        command = RejectRun(workflow, digest, Fault.of(error), self._clock.now())
        await self._runs.obey(key, command, fresh=delivery.count == 1)
        return ()

    def _tasks(self, key: RunKey, decision: Decision, trace: str) -> Sequence[Outgoing]:
        """Return the tasks a commit asks for; after a stale input, those of every open node."""
        state = decision.state
        if decision.events or state is None:
            return self._tasks_of_events(key, decision, trace)
        return [self._task(key, state, node_id, trace) for node_id in state.open_nodes()]

    def _tasks_of_events(self, key: RunKey, decision: Decision, trace: str) -> Sequence[Outgoing]:
        state = decision.state
        if state is None:
            return ()
        return [
            self._task(key, state, event.node_id, trace)
            for event in decision.events
            if isinstance(event, NodeScheduled)
        ]

    def _task(self, key: RunKey, state: RunState, node_id: str, trace: str) -> Outgoing:
        planned, node = state.plan.node(node_id), state.nodes[node_id]
        body = Task(
            tenant=key.tenant,
            run_id=key.run_id,
            node_id=node_id,
            attempt=node.attempt,
            model=planned.model,
            params=planned.params,
            inputs=node_inputs(state, planned),
            scheduled_at=node.scheduled_at,
            deadline=node.deadline,
            correlation_id=state.correlation_id,
        )
        return Outgoing(
            task(key.tenant, planned.modality, planned.pool, LANE, planned.model),
            pack(body),
            {
                Header.MSG_ID: f"{key.tenant}.{key.run_id}.{node_id}.{node.attempt}",
                Header.CORRELATION_ID: state.correlation_id,
                Header.TRACEPARENT: trace,
            },
        )

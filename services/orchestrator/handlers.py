"""Submissions and results in, commits and tasks out."""

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from events.blobs import BlobStore
from events.catalog import NodeScheduled
from events.commands import (
    Advice,
    CancelRun,
    CheckClock,
    Command,
    ExpandNode,
    GrantNode,
    PauseRun,
    RecordResult,
    RejectRun,
    ResumeRun,
    RetryNode,
    SignalRun,
    SkipNode,
    StartRun,
)
from events.definitions import DefinitionStore, DeployedWorkflow, called
from events.forking import prepare_fork
from events.paths import node_id_of, scope_of
from events.spill import spill
from events.state import RunState
from events.store import EventStore
from events.subjects import RunKey, cancel, run_key, tenant_and_name
from events.view import evaluate
from schemas.compiler import compile_plan
from schemas.errors import Aborted, AlreadyExists, InvalidArgument, NotFound, TerminalError
from schemas.forks import parse_fork
from schemas.ids import valid_token
from schemas.messages import Abandoned, Control, Fault, Header, TaskResult, pack, unpack
from schemas.plan import Plan
from schemas.submission import inputs_digest, parse_submission
from schemas.values import from_json
from schemas.workflow import parse_definition
from services.orchestrator.gates import Gates
from services.orchestrator.hints import Hints
from services.orchestrator.messages import emission_of, task_of
from services.orchestrator.routing import Routing
from services.orchestrator.runs import Decision, Runs, Wanted
from services.orchestrator.shares import Shares
from services.orchestrator.versions import Versions
from services.runtime import Clock, Delivery, Outgoing
from services.telemetry import child_traceparent, get_logger


log = get_logger()

VERSION_DIGITS_MAX = 9


@dataclass(frozen=True)
class Means:
    """What handlers work with."""

    runs: Runs
    store: EventStore
    definitions: DefinitionStore
    versions: Versions
    blobs: BlobStore
    gates: Gates
    shares: Shares
    clock: Clock
    noise: random.Random
    """For the jitter of retries."""


class Handlers:
    """The orchestrator's handlers; every one may be called again with the same message."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._runs = means.runs
        self._clock = means.clock
        self._routing = Routing()
        self._hints = Hints(means.clock)

    async def submit(self, delivery: Delivery) -> Sequence[Outgoing]:
        """Start the run a submission asks for, or record why not."""
        tenant, workflow = tenant_and_name(delivery.subject)
        derived = f"COMMANDS-{delivery.name}"
        run_id = delivery.headers.get(Header.RUN_ID) or derived
        key = RunKey(tenant, derived)  # of the refusal, should the chosen id be no token
        correlation_id = delivery.headers.get(Header.CORRELATION_ID) or run_id
        delivery.facts.update(run_id=run_id, correlation_id=correlation_id)
        try:
            key = RunKey(tenant, valid_token(run_id, field=Header.RUN_ID))
            if Header.FORK_OF in delivery.headers:
                command = await self._fork(tenant, delivery, correlation_id)
            else:
                command = await self._start(tenant, workflow, delivery, correlation_id)
            plan = await self._means.versions.chosen(command.plan, run_id)
            command = command if plan is command.plan else replace(command, plan=plan)
        except TerminalError as error:
            return await self._reject(key, workflow, delivery, error)
        trace = child_traceparent(delivery.headers.get(Header.TRACEPARENT))
        try:
            decision = await self._obey(key, command, traceparent=trace, fresh=delivery.count == 1)
        except NotFound as error:
            raise AlreadyExists(error.message, field=Header.RUN_ID) from error
        state = decision.state
        if state is not None and state.inputs_digest != command.inputs_digest:
            raise AlreadyExists(
                f"run {run_id} exists with other inputs; choose another id", field=Header.RUN_ID
            )
        _hold(delivery, decision)
        return await self._follow(key, decision, trace, stale=True)

    async def _start(
        self, tenant: str, workflow: str, delivery: Delivery, correlation_id: str
    ) -> StartRun:
        """Return the command behind a submission of inputs."""
        deployed = await self._deployed(tenant, workflow, delivery)
        inputs = parse_submission(delivery.data, delivery.headers, deployed.plan)
        inputs = await spill(inputs, tenant, self._means.blobs)
        return StartRun(
            workflow=workflow,
            version=deployed.version,
            digest=deployed.digest,
            plan=deployed.plan,
            inputs=inputs,
            inputs_digest=inputs_digest(workflow, inputs),  # of what a gateway would have sent
            correlation_id=correlation_id,
            at=self._clock.now(),
        )

    async def _fork(self, tenant: str, delivery: Delivery, correlation_id: str) -> StartRun:
        """Return the command behind a submission that forks another run."""
        at = self._clock.now()
        parent = RunKey(tenant, valid_token(delivery.headers[Header.FORK_OF], field=Header.FORK_OF))
        prepared = await prepare_fork(
            self._means.store,
            self._means.definitions,
            self._means.versions.live.now,
            parent,
            parse_fork(delivery.data),
            at=at,
        )
        return StartRun(
            workflow=prepared.deployed.name,
            version=prepared.deployed.version,
            digest=prepared.deployed.digest,
            plan=prepared.plan,
            inputs=await spill(prepared.inputs, tenant, self._means.blobs),
            inputs_digest=prepared.digest,
            correlation_id=correlation_id,
            at=at,
            forked_from=prepared.origin,
            kept=prepared.kept,
        )

    async def result(self, delivery: Delivery) -> Sequence[Outgoing]:
        """Record a worker's result."""
        key = run_key(delivery.subject)
        result = unpack(TaskResult, delivery.data)
        delivery.facts.update(run_id=key.run_id, node_id=result.node_id, attempt=result.attempt)
        trace = child_traceparent(delivery.headers.get(Header.TRACEPARENT))
        try:
            decision = await self._obey(
                key,
                RecordResult(result, self._clock.now()),
                traceparent=trace,
            )
        except NotFound:
            delivery.facts["stale"] = True  # the run was retired meanwhile
            return ()
        if result.behind and not decision.events and not _is_known(decision.state, result):
            raise Aborted("the log does not know of this attempt yet")
        delivery.facts["stale"] = not decision.events
        _hold(delivery, decision)
        return await self._follow(key, decision, trace, stale=True)

    async def check_clock(self, key: RunKey) -> Sequence[Outgoing]:
        """Give up late attempts and begin waiting ones."""
        decision = await self._obey(key, CheckClock(self._clock.now()))
        return await self._follow(key, decision, child_traceparent(None))

    async def control(
        self, key: RunKey, command: Control, sequence: int, wanted: Wanted
    ) -> Sequence[Outgoing]:
        """Do to a run what a client asked for; nothing if the run is over.

        Args:
            key: The run.
            command: What to do.
            sequence: Of the message; names a signal that has no id.
            wanted: Tells whether it is still to be done, or was done elsewhere meanwhile.

        Raises:
            NotFound: There is no such run, or not yet.
        """
        order = _order(command, sequence, self._clock.now())
        decision = await self._obey(key, order, wanted=wanted)
        if decision.state is None:
            raise NotFound(f"no run {key.run_id}", field="run_id")
        done = bool(decision.events)
        log.info("control_handled", action=command.action, run_id=key.run_id, done=done)
        if decision.stored is not None:
            await asyncio.shield(decision.stored)  # others may wait for the same
        return await self._follow(key, decision, child_traceparent(None), stale=True)

    async def republish(self, key: RunKey) -> Sequence[Outgoing]:
        """Return the tasks of every open node, as after a loss of the TASKS stream."""
        state = await self._runs.state(key)
        return await self._follow(key, Decision(state, []), child_traceparent(None), stale=True)

    async def _obey(
        self,
        key: RunKey,
        command: Command,
        *,
        traceparent: str = "",
        fresh: bool = False,
        wanted: Wanted | None = None,
    ) -> Decision:
        now = self._clock.now()
        advice = Advice(self._means.noise.random(), self._routing.health(now))
        decision = await self._runs.obey(
            key, command, advice=advice, traceparent=traceparent, fresh=fresh, wanted=wanted
        )
        self._routing.observe(decision, now)
        return decision

    async def _deployed(self, tenant: str, workflow: str, delivery: Delivery) -> DeployedWorkflow:
        version = delivery.headers.get(Header.VERSION)
        if version is None:
            return await self._means.definitions.newest(tenant, workflow)
        if not version.isdecimal() or len(version) > VERSION_DIGITS_MAX:
            raise InvalidArgument("send the number of a version", field=Header.VERSION)
        return await self._means.definitions.version(tenant, workflow, int(version))

    async def _reject(
        self, key: RunKey, workflow: str, delivery: Delivery, error: TerminalError
    ) -> Sequence[Outgoing]:
        delivery.facts["rejected"] = error.message
        digest = inputs_digest(workflow, {"body": delivery.data})
        command = RejectRun(workflow, digest, Fault.of(error), self._clock.now())
        await self._obey(key, command, fresh=delivery.count == 1)
        return ()

    async def _follow(
        self, key: RunKey, decision: Decision, trace: str, *, stale: bool = False
    ) -> Sequence[Outgoing]:
        """Return what a commit asks others to do; after a stale input, all that is open."""
        out: list[Outgoing] = []
        todo = deque([(key, decision, stale)])
        while todo:
            at, made, told = todo.popleft()
            sent, expanded = await self._consequences(at, made, trace, stale=told)
            out += sent
            todo += [(at, other, False) for other in expanded]
            for other, path in await self._means.gates.pass_through(at, made, stale=told):
                granted = await self._obey(other, GrantNode(path, self._clock.now()))
                todo.append((other, granted, False))
        return out

    async def check_gates(self) -> Sequence[Outgoing]:
        """Mend gates that the death of a process left wrong; return what can begin."""
        out: list[Outgoing] = []
        for key, path in await self._means.gates.check(self._runs.state):
            granted = await self._obey(key, GrantNode(path, self._clock.now()))
            out += await self._follow(key, granted, child_traceparent(None))
        return out

    async def _consequences(
        self, key: RunKey, decision: Decision, trace: str, *, stale: bool
    ) -> tuple[list[Outgoing], list[Decision]]:
        """Return what others are asked to do, and the decisions of dynamic nodes."""
        out: list[Outgoing] = []
        expanded: list[Decision] = []
        if decision.abandoned:
            body = pack(Abandoned(attempts=decision.abandoned))
            out.append(Outgoing(cancel(key), body, {}))
        state = decision.state
        paths = _scheduled(decision) if decision.events or not stale else _open(state)
        for path in paths:
            node = None if state is None else state.node(path)
            if state is None or node is None or node.status != "scheduled":
                continue  # its scope ended in the same commit
            match state.planned(path).kind:
                case "model":
                    asked = task_of(key, state, path, trace)
                    if self._means.shares.admits(asked):
                        out += [asked, *self._hints.of(key, state, path)]
                case "emit":
                    out += emission_of(key, state, path, trace)
                case "dynamic":
                    expanded.append(await self._expand(key, state, path, trace))
                case _:
                    pass  # the clock or a signal ends it
        return out, expanded

    async def _expand(self, key: RunKey, state: RunState, path: str, trace: str) -> Decision:
        """Compile the graph that a dynamic node was given, and begin it."""
        planned, node = state.planned(path), state.nodes_of(scope_of(path))[node_id_of(path)]
        plan: Plan | None = None
        fault: Fault | None = None
        try:
            document = evaluate(state, scope_of(path), planned.params["formulas"]["graph"])
            definition = parse_definition(document)
            if len(definition.nodes) > planned.params["max_nodes"]:
                raise InvalidArgument(
                    f"the graph has {len(definition.nodes)} nodes; "
                    f"max_nodes is {planned.params['max_nodes']}"
                )
            workflows = await called(self._means.definitions, key.tenant, definition)
            plan = compile_plan(definition, self._means.versions.live.now, workflows)
            plan = await self._means.versions.chosen(plan, key.run_id)
        except TerminalError as error:
            where = f"{error.field}: " if error.field else ""
            message = f"node '{path}' was given no graph that works: {where}{error.message}"
            fault = Fault(code=error.code, message=message)
        command = ExpandNode(path, node.attempt, plan, fault, self._clock.now())
        return await self._obey(key, command, traceparent=trace)


def _hold(delivery: Delivery, decision: Decision) -> None:
    """Keep a message until what it led to is stored, where its workflow wants that."""
    state = decision.state
    if decision.stored is not None and state is not None and state.plan.mode == "ordered":
        delivery.before_ack.append(decision.stored)


def _is_known(state: RunState | None, result: TaskResult) -> bool:
    """Tell whether a log has the attempt whose result this is."""
    if state is None:
        return False
    if state.terminal or not state.is_under_way(result.node_id):
        return True
    node = state.node(result.node_id)
    return node is not None and node.attempt >= result.attempt


def _scheduled(decision: Decision) -> list[str]:
    return [event.node_id for event in decision.events if isinstance(event, NodeScheduled)]


def _open(state: RunState | None) -> list[str]:
    return [] if state is None else state.open_nodes()


def _order(command: Control, sequence: int, at: float) -> Command:
    """Return the command behind a control message."""
    match command.action:
        case "cancel":
            return CancelRun(command.reason, at)
        case "pause":
            return PauseRun(command.reason, at)
        case "resume":
            return ResumeRun(at)
        case "signal":
            signal_id = command.id or f"COMMANDS-{sequence}"
            return SignalRun(command.name, signal_id, command.payload, at)
        case "skip":
            outputs = None if command.outputs is None else from_json(command.outputs)
            return SkipNode(command.node, outputs, command.reason, at)
        case "retry":
            return RetryNode(command.node, at)

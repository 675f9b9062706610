"""Submitting runs and waiting for them: the one path under HTTP and `call`."""

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from events.blobs import BlobStore
from events.catalog import Event, NodeCompleted, RunCompleted, RunStarted
from events.definitions import DefinitionStore, DeployedWorkflow
from events.fork import Kept
from events.forking import prepare_fork
from events.recording import cited_by
from events.spill import COMMIT_BYTES_MAX, spill
from events.store import EventStore
from events.subjects import RunKey, submit
from events.tape import Tape, accepted_view, run_view
from schemas.api import RunView
from schemas.catalogue import Port
from schemas.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from schemas.forks import INPUTS, Fork
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.inputs import input_ports
from schemas.live_catalogue import LiveCatalogue
from schemas.messages import Fault, Header
from schemas.plan import Plan
from schemas.submission import JSON, MSGPACK, inputs_digest, pack_inputs
from schemas.values import BlobRef, Wire, from_wire, to_json
from services.errors import BodyTooLarge
from services.gateway.admission import Admission
from services.gateway.inputs import checked
from services.gateway.waiters import Feed, Landed, Waiters
from services.runtime import Bus, Clock, Outgoing, stored
from services.telemetry import child_traceparent
from services.together import TogetherBySubject


NEWEST_S = 1.0
"""How long the newest version of a workflow is remembered; deploys elsewhere show by then."""
RECENT_MAX = 10_000
BLOBS_MAX = 64
"""Blobs that one submission may refer to."""

Reader = Callable[[Plan, Mapping[str, Port]], Awaitable[Wire]]
"""Reads the inputs that a request brings for a plan."""


@dataclass(frozen=True)
class Ask:
    """What a client wants: a run of a workflow, and how long it will wait for it."""

    workflow: str
    run_id: str = ""
    idempotency_key: str = ""
    correlation_id: str = ""
    traceparent: str = ""
    wait_s: float = 0.0


@dataclass(frozen=True)
class Submission:
    """A run that is about to be stored."""

    key: RunKey
    deployed: DeployedWorkflow
    inputs: Wire
    digest: str
    at: float
    parent: str = ""
    """The run it is a fork of."""
    fork: Fork | None = None

    def view(self) -> RunView:
        """Return the run as it is before anybody took it up."""
        deployed = self.deployed
        return accepted_view(self.key, deployed.name, deployed.version, self.inputs, self.at)


@dataclass(frozen=True)
class Ended:
    """What came out of a run that was waited for; `status` tells whether it is over."""

    run_id: str
    status: str
    outputs: dict[str, Any] | None
    error: Fault | None
    correlation_id: str


@dataclass(frozen=True)
class Submissions:
    """Submits runs."""

    bus: Bus
    together: TogetherBySubject
    store: EventStore
    definitions: DefinitionStore
    catalogue: LiveCatalogue
    blobs: BlobStore
    waiters: Waiters
    admission: Admission
    clock: Clock
    begin_s: float
    """How long to wait for the first commit of a run nobody waits for."""
    request_s: float
    """How long the bus may take to store a submission."""
    _newest: dict[str, tuple[float, DeployedWorkflow, Mapping[str, Port]]] = field(
        default_factory=dict
    )
    _recent: OrderedDict[RunKey, RunView] = field(default_factory=OrderedDict)

    def forget(self, workflow: str) -> None:
        """Ask for the newest version of a workflow again, as after a deploy."""
        self._newest.pop(workflow, None)

    def recent(self, key: RunKey) -> RunView | None:
        """Return a run submitted here lately that had not begun when it was answered."""
        return self._recent.get(key)

    async def run(self, ask: Ask, read: Reader) -> RunView:
        """Submit a run, and wait for its end or for `wait_s` seconds.

        Returns:
            The run as far as it is known: finished, running, or merely accepted.

        Raises:
            InvalidArgument: An input does not fit; nothing was stored.
            NotFound: No such workflow.
            AlreadyExists: The idempotency key or run id belongs to other inputs.
            StoreFull: The log has no room for another run.
            BusUnavailable: Nothing is known about the submission; the same key may be sent again.
        """
        submission = await self._prepare(ask, read)
        return self._view(submission, await self._submit(submission, ask))

    async def call(self, ask: Ask, read: Reader) -> Ended:
        """Submit a run and wait for what comes out of it; the rest of it is not looked at.

        Raises:
            InvalidArgument, NotFound, AlreadyExists, StoreFull, BusUnavailable: As `run`.
        """
        submission = await self._prepare(ask, read)
        landed = await self._submit(submission, ask, look=False)
        # A run that was there before may have another plan.
        outputs = None if _named(ask) else _outputs(landed, submission.deployed.plan)
        if outputs is not None:
            correlation_id = ask.correlation_id or submission.key.run_id
            return Ended(submission.key.run_id, "completed", outputs, None, correlation_id)
        view = self._view(submission, landed)
        return Ended(view.run_id, view.status, view.outputs, view.error, view.correlation_id)

    async def fork(self, ask: Ask, parent: RunKey, fork: Fork) -> RunView:
        """Submit a fork of a run, and wait for its end or for `wait_s` seconds.

        Args:
            ask: Its names and how long to wait; the workflow is the parent's.
            parent: The run it comes from.
            fork: Where it begins, and what is different in it.

        Raises:
            NotFound: No such run or version.
            InvalidArgument: A change does not fit; nothing was stored.
            FailedPrecondition: The run cannot be forked here.
            AlreadyExists, StoreFull, BusUnavailable: As `run`.
        """
        _check_names(ask)
        async with self.bus.prompt(self.request_s):
            prepared = await prepare_fork(
                self.store, self.definitions, self.catalogue.now, parent, fork, at=self.clock.now()
            )
        changed = {path.removeprefix(INPUTS) for path in fork.changes if path.startswith(INPUTS)}
        given = {name: prepared.inputs[name] for name in sorted(changed)}
        checked(prepared.inputs, prepared.plan, input_ports(prepared.plan, self.catalogue.now))
        await self._check_blobs(given)
        await self._renew(prepared.kept)
        exact = fork.model_copy(update={"at": prepared.origin.at})
        submission = Submission(
            key=RunKey(parent.tenant, run_id_of(ask)),
            deployed=prepared.deployed,
            inputs=prepared.inputs,
            digest=exact.digest(parent.run_id, prepared.deployed.name),
            at=self.clock.now(),
            parent=parent.run_id,
            fork=exact,
        )
        return self._view(submission, await self._submit(submission, ask))

    async def _submit(self, submission: Submission, ask: Ask, *, look: bool = True) -> list[Landed]:
        """Store a submission and follow its run; `look` at commits while the next ones come."""
        with self.waiters.feed(submission.key) as feed:
            with self.admission.storing():
                async with self.bus.prompt(self.request_s):
                    if not await self._exists(submission, ask):
                        self.admission.check()
                        await stored(self.together.ask(_message(submission, ask)))
            return await self._watch(submission, ask, feed, look=look)

    async def _prepare(self, ask: Ask, read: Reader) -> Submission:
        _check_names(ask)
        async with self.bus.prompt(self.request_s):
            deployed, ports = await self.deployed(ask.workflow)
        inputs = await read(deployed.plan, ports)
        await self._check_blobs(inputs)
        inputs = await spill(inputs, DEFAULT_TENANT, self.blobs)
        _check_size(inputs)
        run_id = run_id_of(ask)
        return Submission(
            key=RunKey(DEFAULT_TENANT, run_id),
            deployed=deployed,
            inputs=inputs,
            digest=inputs_digest(deployed.name, inputs),
            at=self.clock.now(),
        )

    async def _check_blobs(self, inputs: Wire) -> None:
        """Refuse references to blobs that are not there."""
        refs = _blob_refs(inputs)
        if len(refs) > BLOBS_MAX:
            raise InvalidArgument(f"a run takes at most {BLOBS_MAX} blobs", field="inputs")
        if not refs:
            return
        async with self.bus.prompt(self.request_s):
            for name, ref in refs.items():
                if not await self.blobs.renew(DEFAULT_TENANT, ref.sha256):
                    raise InvalidArgument(
                        f"no blob {ref.sha256}; POST it to /v1/blobs first", field=f"inputs.{name}"
                    )

    async def _renew(self, kept: Iterable[Kept]) -> None:
        """Keep the blobs that a fork takes over from being swept before it cites them."""
        async with self.bus.prompt(self.request_s):
            for sha256 in sorted(cited_by(kept)):
                if not await self.blobs.renew(DEFAULT_TENANT, sha256):
                    raise FailedPrecondition(
                        f"blob {sha256}, which the run cites, is gone; fork it earlier", field="at"
                    )

    async def deployed(self, name: str) -> tuple[DeployedWorkflow, Mapping[str, Port]]:
        """Return the newest version of a workflow, and the port that each of its inputs feeds.

        Raises:
            NotFound: No such workflow.
            StoreUnavailable: The bus does not answer.
        """
        now = self.clock.now()
        known = self._newest.get(name)
        if known is not None and 0 <= now - known[0] < NEWEST_S:
            return known[1], known[2]
        if known is not None:  # one asks, the others need not wait for the answer
            self._newest[name] = (now, known[1], known[2])
        deployed = await self.definitions.newest(DEFAULT_TENANT, name)
        ports = input_ports(deployed.plan, self.catalogue.now)
        self._newest[name] = (now, deployed, ports)
        return deployed, ports

    async def _exists(self, submission: Submission, ask: Ask) -> bool:
        """Tell whether the run is there already; only one with a name of its own may be."""
        if not _named(ask):
            return False
        try:
            history = await self.store.load(submission.key)
        except NotFound as error:
            raise AlreadyExists(error.message, field=_name_field(ask)) from error
        for event in history.events()[:1]:
            _check_same(event, submission, ask)
        return bool(history.commits)

    def _view(self, submission: Submission, landed: list[Landed]) -> RunView:
        """Return the run as far as it got."""
        if not landed:
            view = submission.view()
            self._recent[submission.key] = view
            if len(self._recent) > RECENT_MAX:
                self._recent.popitem(last=False)
            return view
        self._recent.pop(submission.key, None)
        tape = Tape()
        for item in landed:
            tape.add(item.commit, item.sequence)
        return run_view(submission.key, tape.records)

    async def _watch(
        self, submission: Submission, ask: Ask, feed: Feed, *, look: bool
    ) -> list[Landed]:
        """Follow a run to its end, or to its first commit when nobody waits for more."""
        seen: list[Landed] = []
        until = self.clock.now() + (ask.wait_s or self.begin_s)
        follow = self.waiters.follow(feed, read_first=_named(ask), until=until)
        async with aclosing(follow) as landed:
            async for item in landed:
                seen.append(item)
                if _named(ask):
                    _check_same(seen[0].commit.events[0], submission, ask)
                if item.is_last or not ask.wait_s:
                    break
                if look:
                    _ = item.commit
        return seen


def _outputs(landed: list[Landed], plan: Plan) -> dict[str, Any] | None:
    """Return a run's outputs if its last commit alone tells them."""
    if not landed or not landed[-1].is_last:
        return None
    events = landed[-1].commit.events
    end = events[-1]
    if not isinstance(end, RunCompleted):
        return None
    if end.outputs is not None:
        return to_json(end.outputs)
    done = {item.node_id: item.outputs for item in events if isinstance(item, NodeCompleted)}
    outputs = {sink: done.get(sink) for sink in plan.outputs}
    return None if None in outputs.values() else to_json(outputs)


def _check_names(ask: Ask) -> None:
    if ask.run_id and ask.idempotency_key:
        raise InvalidArgument(
            "either one names the run; send this or an Idempotency-Key", field=Header.RUN_ID
        )


def _blob_refs(inputs: Wire) -> dict[str, BlobRef]:
    values = {name: from_wire(item, field=f"inputs.{name}") for name, item in inputs.items()}
    return {name: value for name, value in values.items() if isinstance(value, BlobRef)}


def _check_size(inputs: Wire) -> None:
    """Refuse inputs that would not fit into a run's first commit, and name the largest.

    Raises:
        BodyTooLarge: They do not.
    """
    size = len(pack_inputs(inputs))
    if size > COMMIT_BYTES_MAX:
        largest = max(inputs, key=lambda name: len(pack_inputs({name: inputs[name]})))
        raise BodyTooLarge(
            f"the inputs take {size} bytes and at most {COMMIT_BYTES_MAX} fit beside blobs; send "
            f"'{largest}' as a file or a blob if you can",
            field=f"inputs.{largest}",
        )


def _named(ask: Ask) -> bool:
    return bool(ask.run_id or ask.idempotency_key)


def _name_field(ask: Ask) -> str:
    return "Idempotency-Key" if ask.idempotency_key else Header.RUN_ID


def _check_same(first: Event, submission: Submission, ask: Ask) -> None:
    if isinstance(first, RunStarted) and first.inputs_digest != submission.digest:
        raise AlreadyExists(
            "a run of this name exists with other inputs; choose another", field=_name_field(ask)
        )


def _message(submission: Submission, ask: Ask) -> Outgoing:
    deployed = submission.deployed
    headers = {
        Header.RUN_ID: submission.key.run_id,
        Header.CONTENT_TYPE: MSGPACK,
        Header.VERSION: str(deployed.version),
        Header.CORRELATION_ID: ask.correlation_id or submission.key.run_id,
        Header.TRACEPARENT: child_traceparent(ask.traceparent),
    }
    subject = submit(submission.key.tenant, deployed.name)
    if submission.fork is not None:
        headers |= {Header.FORK_OF: submission.parent, Header.CONTENT_TYPE: JSON}
        return Outgoing(subject, submission.fork.model_dump_json().encode(), headers)
    return Outgoing(subject, pack_inputs(submission.inputs), headers)


def run_id_of(ask: Ask) -> str:
    """Return the id that is asked for, the one that a key always leads to, or a new one."""
    if ask.run_id:
        return ask.run_id
    if not ask.idempotency_key:
        return new_id()
    name = f"{DEFAULT_TENANT}\0{ask.workflow}\0{ask.idempotency_key}".encode()
    return "idem-" + hashlib.sha256(name).hexdigest()[:40]

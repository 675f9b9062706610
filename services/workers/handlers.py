"""Tasks in, results out."""

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, Protocol

import orjson

from events.blobs import BlobStore
from events.paths import node_id_of
from events.spill import fetch, spill
from events.subjects import DEFAULT_LANE, LANES, RunKey, decode, lane_of, result, run_key
from events.view import bound_inputs, missing_inputs
from schemas.edges import adaptations_of
from schemas.errors import ClawdbotError, InvalidArgument, NotFound
from schemas.ids import new_id
from schemas.messages import (
    Abandoned,
    Fault,
    Header,
    Task,
    TaskResult,
    Timings,
    pack,
    unpack,
)
from schemas.pieces import Body, packed
from schemas.plan import Adaptation, adaptations
from schemas.submission import MSGPACK, check_names, read_inference
from schemas.values import Value, Wire, bulk, to_json, to_wire
from services.consumer import NOT_ITS_FAULT
from services.micro import Asked, Reply
from services.runtime import Clock, Delivery, Outgoing
from services.telemetry import STOPPED, get_logger
from services.workers.adapters import adapted
from services.workers.attempts import Attempts, Stopped
from services.workers.batches import TooLate
from services.workers.chunks import Chunks
from services.workers.engine import Request
from services.workers.models import Answer, Models
from services.workers.remembered import Remembered
from services.workers.tally import Counted, Tally
from services.workers.unlogged import Parts, Unlogged


log = get_logger()


class Message(Protocol):
    """A message of core NATS."""

    subject: str
    data: bytes


async def _as_named(name: str, _: str) -> str:
    return name


@dataclass(frozen=True)
class Means:
    """What a worker works with."""

    worker: str
    """This process's name in results."""
    models: Models
    remembered: Remembered
    """Results of before."""
    blobs: BlobStore
    attempts: Attempts
    """What is under way, and what nobody waits for."""
    tally: Tally
    """What was computed, for the statistics."""
    clock: Clock
    chain_s: float = 0.0
    """How long to go on after a task with what comes next; 0 never."""
    chunks: Chunks | None = None
    """Says what steps of runs give, while it grows."""
    at_hand: Callable[[str, str], Awaitable[str]] = _as_named
    """Brings the version of a model here that a name and a key mean; returns its name."""


class InferAsk(NamedTuple):
    """How an unlogged inference is wanted, besides its inputs."""

    rank: int
    timeout_s: float | None
    packed: bool
    """Whether the answer is MessagePack."""
    request_id: str
    """By what it may be withdrawn."""
    in_parts: bool

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "InferAsk":
        """Read the headers of a request.

        Raises:
            InvalidArgument: One is malformed; names it.
        """
        lane = headers.get(Header.PRIORITY, DEFAULT_LANE)
        if lane not in LANES:
            raise InvalidArgument(f"use one of {', '.join(LANES)}", field=Header.PRIORITY)
        text, timeout_s = headers.get(Header.TIMEOUT_S), None
        if text is not None:
            try:
                timeout_s = float(text)
            except ValueError:
                timeout_s = 0.0
            if not 0 < timeout_s < math.inf:
                raise InvalidArgument("send seconds, above 0", field=Header.TIMEOUT_S)
        return cls(
            rank=LANES.index(lane),
            timeout_s=timeout_s,
            packed=headers.get(Header.ACCEPT, "") == MSGPACK,
            request_id=headers.get(Header.REQUEST_ID, ""),
            in_parts=headers.get(Header.STREAM, "") == "true",
        )

    def body(self, outputs: Mapping[str, Value], model: str) -> Body:
        """Return an answer, or a part of one, as the caller wants it."""
        wire = {name: to_wire(value) for name, value in outputs.items()}
        if self.packed:
            return packed({"outputs": wire, "model": model}, bulk(outputs.values()))
        return orjson.dumps({"outputs": to_json(wire), "model": model})


class _Wanted(NamedTuple):
    """Which model is asked, with what."""

    tenant: str
    model: str
    inputs: Wire
    rank: int
    left_s: float
    """Until when."""
    adapt: Mapping[str, Adaptation] = MappingProxyType({})
    """What is done to inputs before."""


_Made = Callable[..., Request]
"""Makes a request of its inputs."""


class Handlers:
    """A worker's handlers."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._unlogged = Unlogged()
        self._clock = means.clock

    async def task(self, delivery: Delivery) -> Sequence[Outgoing]:
        """Run a task, and go on with what is quick to do next; a failure is a result too."""
        task = unpack(Task, delivery.data)
        facts = delivery.facts
        facts.update(run_id=task.run_id, node_id=task.node_id, attempt=task.attempt)
        rank = LANES.index(lane_of(delivery.subject))
        try:
            done = await self._attempt(task, rank, self._clock.now() - task.scheduled_at)
        except Stopped as stop:
            facts["stopped"] = stop.reason
            STOPPED.labels(stop.reason).inc()
            return ()  # the log knows already, or its clock does
        if done.error is not None:
            facts["error"] = done.error.message
        else:
            facts.update(model=done.model, queue_ms=done.timings.queue_ms)
            facts.update(load_ms=done.timings.load_ms, batch_size=done.timings.batch_size)
            if done.timings.batch_id:
                facts.update(batch_id=done.timings.batch_id)
            if delivery.count == 1:  # else one of what follows may have ended a worker
                done = done.model_copy(update={"then": await self._go_on(task, done, rank)})
                facts["went_on"] = len(done.then)
        return [self._answer(delivery, task, done)]

    async def _go_on(self, task: Task, done: TaskResult, rank: int) -> tuple[TaskResult, ...]:
        """Do the nodes after a task for as long as that is known to be quick."""
        until = self._clock.now() + self._means.chain_s
        seen = {**task.seen, node_id_of(task.node_id): done.outputs}
        results: list[TaskResult] = []
        for node in task.then:
            now, pace_s = self._clock.now(), self._means.models.pace_s(node.model)
            if pace_s is None or now + pace_s > until:
                break
            try:
                inputs = bound_inputs(node.bindings, seen.get)
                if missing_inputs(node, inputs):
                    break
                step = task.model_copy(
                    update={
                        "node_id": node.node_id,
                        "attempt": 1,
                        "model": node.model,
                        "params": node.params,
                        "inputs": inputs,
                        "adapt": adaptations(node.bindings),
                        "scheduled_at": now,
                        "deadline": now + node.timeout_s,
                    }
                )
                after = await self._attempt(step, rank)
            except (Stopped, InvalidArgument, *NOT_ITS_FAULT):
                break  # it is asked for, and fails, in its own name
            results.append(after)
            if after.error is not None:
                break
            seen[node_id_of(node.node_id)] = after.outputs
        return tuple(results)

    async def _attempt(self, task: Task, rank: int, queue_s: float = 0.0) -> TaskResult:
        """Try a node once.

        Raises:
            Stopped: Nobody waits for it any more.
            BusUnavailable, StoreUnavailable, StoreFull: A blob cannot be read or kept now.
        """
        try:
            async with self._means.attempts.under_way(task) as stopped:
                model = await self._means.at_hand(task.model, task.run_id)
                if model != task.model:
                    task = task.model_copy(update={"model": model})
                known = await self._means.remembered.find(task)
                if known is not None:
                    memo = {"model": known.model, "memo_of": known.source}
                    return self._blank(task).model_copy(update={"outputs": known.outputs, **memo})
                said = self._means.chunks if self._means.models.streams(task.model) else None
                made = partial(
                    Request,
                    params=task.params,
                    key=_work_key(task),
                    is_stopped=stopped.is_set,
                    then=[node.model for node in task.then],
                    emit=None if said is None else said.of(task),
                )
                # not what is left of it: who was held back (ADR-0020) would pass everybody
                left_s = task.deadline - task.scheduled_at
                with self._means.tally.inference(task.model) as counted:
                    wanted = _Wanted(task.tenant, task.model, task.inputs, rank, left_s, task.adapt)
                    answer = await self._infer(wanted, made, counted)
                    outputs = {name: to_wire(value) for name, value in answer.outputs.items()}
                    outputs = await spill(outputs, task.tenant, self._means.blobs)
                await self._means.remembered.keep(task, outputs, answer.model)
        except NOT_ITS_FAULT:
            raise
        except TooLate as error:
            raise Stopped("late") from error
        except ClawdbotError as error:
            return self._blank(task, Fault.of(error))
        timings = Timings(
            queue_ms=round(max(0.0, queue_s) * 1000 + answer.wait_ms, 3),
            load_ms=round(answer.load_ms, 3),
            compute_ms=round(answer.compute_ms, 3),
            batch_size=answer.batch_size,
            batch_id=self._batch_id(answer),
        )
        found = {"outputs": outputs, "model": answer.model, "timings": timings}
        return self._blank(task).model_copy(update=found)

    def exhausted(self, delivery: Delivery) -> Sequence[Outgoing]:
        """Answer for a task that was delivered too often: its worker died each time."""
        task = unpack(Task, delivery.data)
        fault = Fault(
            code="INTERNAL",
            message=f"node '{task.node_id}' ended its worker {delivery.count - 1} times",
        )
        return [self._answer(delivery, task, self._blank(task, error=fault))]

    async def infer(self, asked: Asked) -> Reply:
        """Answer one unlogged inference with `{"outputs": {...}, "model": ...}`.

        The body is `{"inputs": {...}}`, or one raw input of the content type the headers say; the
        answer is MessagePack for who accepts that, else JSON. With `Clawdbot-Stream` parts of it
        are sent before, and the answer that ends them has the outputs that none of them had.

        Raises:
            InvalidArgument: The body is malformed, or an input or a header is.
            NotFound: No such model here.
            ModelUnavailable: It cannot run here.
            DeadlineExceeded: It took longer than the caller waits; in line it is not computed.
            Cancelled: It was withdrawn.
        """
        tokens = asked.subject.split(".")
        ask = InferAsk.of(asked.headers)
        key = asked.headers.get(Header.CORRELATION_ID) or new_id()
        model = await self._means.at_hand(decode(tokens[5]), key)
        spec = self._means.models.spec(model)
        known = {port.name: port.required for port in spec.inputs}
        inputs, given = read_inference(asked.body, asked.headers, known)
        params = self._means.models.params(model, given)
        inputs, adapt = adaptations_of(spec, inputs)
        check_names(inputs, known, "model")
        wanted = _Wanted(tokens[2], model, inputs, ask.rank, ask.timeout_s or math.inf, adapt)
        with self._means.tally.inference(model) as counted:
            with self._unlogged.under_way(ask.request_id, ask.timeout_s, model) as under_way:
                made = partial(Request, params=params, is_stopped=under_way.is_stopped)
                if ask.in_parts:
                    answer = await self._in_parts(wanted, made, counted, asked, ask)
                else:
                    answer = await self._infer(wanted, made, counted)
            asked.facts.update(
                model=answer.model,
                load_ms=round(answer.load_ms, 3),
                wait_ms=round(answer.wait_ms, 3),
                compute_ms=round(answer.compute_ms, 3),
                batch_size=answer.batch_size,
            )
            if answer.batch:
                asked.facts.update(batch_id=self._batch_id(answer))
            return Reply(ask.body(answer.outputs, answer.model))

    async def _in_parts(
        self, wanted: _Wanted, made: _Made, counted: Counted, asked: Asked, ask: InferAsk
    ) -> Answer:
        """Infer, and send parts of the answer as the engine gives them; return what none had."""

        async def send(outputs: Mapping[str, Value], headers: dict[str, str]) -> None:
            await asked.send(ask.body(outputs, wanted.model), headers)

        parts = Parts(counted.sending(send))
        async with parts.sending():
            answer = await self._infer(wanted, partial(made, emit=parts.emit), counted)
        asked.facts["parts"] = parts.sent
        rest = {name: found for name, found in answer.outputs.items() if name not in parts.names}
        return answer._replace(outputs=rest)

    async def withdraw(self, message: Message) -> None:
        """Stop an unlogged inference that nobody waits for any more."""
        self._unlogged.withdraw(message.subject.rpartition(".")[2])

    async def warm(self, message: Message) -> None:
        """Load a model that will be asked for soon, if it is here and there is room for it."""
        try:
            model = decode(message.subject.rpartition(".")[2])
        except InvalidArgument as error:
            log.warning("hint_unreadable", subject=message.subject, error=error.message)
            return
        self._means.models.prefetch(model)

    async def cancel(self, message: Message) -> None:
        """Stop attempts that nobody waits for any more."""
        try:
            abandoned = unpack(Abandoned, message.data)
        except InvalidArgument as error:
            log.warning("cancel_unreadable", subject=message.subject, error=error.message)
            return
        self._means.attempts.abandon(run_key(message.subject), abandoned)

    async def _infer(self, wanted: _Wanted, made: _Made, counted: Counted) -> Answer:
        try:
            values = await fetch(wanted.inputs, wanted.tenant, self._means.blobs)
        except NotFound as error:
            raise InvalidArgument(error.message, field="inputs") from error
        counted.fetched()
        if wanted.adapt:
            folder = self._means.models.folder(wanted.model)
            values = await asyncio.to_thread(adapted, values, wanted.adapt, folder)
        models = self._means.models
        request = counted.watched(made(values), grows=models.streams(wanted.model))
        answer = await models.infer(wanted.model, request, rank=wanted.rank, left_s=wanted.left_s)
        counted.answered(answer)
        return answer

    def _batch_id(self, answer: Answer) -> str:
        """Return what those have in common who were computed in the same call; empty if alone."""
        return f"{self._means.worker}/{answer.model}/{answer.batch}" if answer.batch else ""

    def _blank(self, task: Task, error: Fault | None = None) -> TaskResult:
        """Return a result without outputs."""
        return TaskResult(
            tenant=task.tenant,
            run_id=task.run_id,
            node_id=task.node_id,
            attempt=task.attempt,
            error=error,
            behind=task.behind,
            model=task.model,
            worker=self._means.worker,
        )

    def _answer(self, delivery: Delivery, task: Task, done: TaskResult) -> Outgoing:
        headers = {
            Header.MSG_ID: f"{task.tenant}.{task.run_id}.{task.node_id}.{task.attempt}",
            Header.CORRELATION_ID: task.correlation_id,
        }
        if Header.TRACEPARENT in delivery.headers:
            headers[Header.TRACEPARENT] = delivery.headers[Header.TRACEPARENT]
        return Outgoing(result(RunKey(task.tenant, task.run_id)), pack(done), headers)


def _work_key(task: Task) -> str:
    """Return what names a node's work, in each of its attempts."""
    work = f"{task.tenant}/{task.run_id}/{task.node_id}"
    return hashlib.sha256(work.encode()).hexdigest()

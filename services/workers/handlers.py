"""Tasks in, results out."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import orjson

from events.blobs import BlobStore
from events.spill import fetch, spill
from events.subjects import LANES, RunKey, decode, lane_of, result, run_key
from schemas.errors import ClawdbotError, InvalidArgument, NotFound
from schemas.messages import (
    Abandoned,
    Fault,
    Header,
    Inference,
    Task,
    TaskResult,
    Timings,
    pack,
    unpack,
)
from schemas.submission import check_names, read_inputs
from schemas.values import Wire, to_json, to_wire
from services.micro import Asked, Reply
from services.runtime import Clock, Delivery, Outgoing
from services.telemetry import STOPPED, get_logger
from services.workers.attempts import Attempts, Stopped
from services.workers.engine import Request
from services.workers.models import Answer, Models
from services.workers.remembered import Remembered


log = get_logger()


class Message(Protocol):
    """A message of core NATS."""

    subject: str
    data: bytes


class Handlers:
    """A worker's handlers.

    Args:
        worker: This process's name in results.
        models: What it can run.
        remembered: Results of before.
        blobs: Where large values are.
        attempts: What is under way, and what nobody waits for.
        clock: For queueing times.
    """

    def __init__(
        self,
        worker: str,
        models: Models,
        remembered: Remembered,
        blobs: BlobStore,
        attempts: Attempts,
        clock: Clock,
    ) -> None:
        self._worker = worker
        self._models = models
        self._remembered = remembered
        self._blobs = blobs
        self._attempts = attempts
        self._clock = clock

    async def task(self, delivery: Delivery) -> Sequence[Outgoing]:
        """Run a task; its failure is a result too."""
        task = unpack(Task, delivery.data)
        delivery.facts.update(run_id=task.run_id, node_id=task.node_id, attempt=task.attempt)
        queue_ms = max(0.0, (self._clock.now() - task.scheduled_at) * 1000)
        try:
            async with self._attempts.under_way(task) as stopped:
                known = await self._remembered.find(task)
                if known is not None:
                    found = {"model": known.model, "memo_of": known.source}
                    delivery.facts.update(found)
                    return [self._answer(delivery, task, outputs=known.outputs, **found)]
                request = Request({}, task.params, _work_key(task), stopped.is_set)
                rank = LANES.index(lane_of(delivery.subject))
                answer = await self._infer(task.tenant, task.model, task.inputs, request, rank)
                outputs = {name: to_wire(value) for name, value in answer.outputs.items()}
                outputs = await spill(outputs, task.tenant, self._blobs)
                await self._remembered.keep(task, outputs, answer.model)
        except Stopped as stop:
            delivery.facts["stopped"] = stop.reason
            STOPPED.labels(stop.reason).inc()
            return ()  # the log knows already, or its clock does
        except ClawdbotError as error:
            delivery.facts["error"] = error.message
            return [self._answer(delivery, task, error=Fault.of(error))]
        timings = Timings(
            queue_ms=round(queue_ms + answer.wait_ms, 3),
            load_ms=round(answer.load_ms, 3),
            compute_ms=round(answer.compute_ms, 3),
        )
        delivery.facts.update(model=answer.model, queue_ms=timings.queue_ms)
        return [self._answer(delivery, task, outputs=outputs, model=answer.model, timings=timings)]

    def exhausted(self, delivery: Delivery) -> Sequence[Outgoing]:
        """Answer for a task that was delivered too often: its worker died each time."""
        task = unpack(Task, delivery.data)
        fault = Fault(
            code="INTERNAL",
            message=f"node '{task.node_id}' ended its worker {delivery.count - 1} times",
        )
        return [self._answer(delivery, task, error=fault)]

    async def infer(self, asked: Asked) -> Reply:
        """Answer one unlogged inference with `{"outputs": {...}, "model": ...}`, JSON.

        The body is `{"inputs": {...}}`, or one raw input of the content type the headers say.

        Raises:
            InvalidArgument: The body is malformed, or an input is.
            NotFound: No such model here.
            ModelUnavailable: It cannot run here.
        """
        tokens = asked.subject.split(".")
        model = decode(tokens[-1])
        known = self._models.inputs(model)
        inputs = read_inputs(asked.body, asked.headers, known)
        check_names(inputs, known, "model")
        answer = await self._infer(tokens[2], model, inputs, Request({}))
        asked.facts.update(model=answer.model, compute_ms=round(answer.compute_ms, 3))
        outputs = to_json({name: to_wire(value) for name, value in answer.outputs.items()})
        return Reply(orjson.dumps(Inference(outputs=outputs, model=answer.model).model_dump()))

    async def cancel(self, message: Message) -> None:
        """Stop attempts that nobody waits for any more."""
        try:
            abandoned = unpack(Abandoned, message.data)
        except InvalidArgument as error:
            log.warning("cancel_unreadable", subject=message.subject, error=error.message)
            return
        self._attempts.abandon(run_key(message.subject), abandoned)

    async def _infer(
        self, tenant: str, model: str, inputs: Wire, request: Request, rank: int = 0
    ) -> Answer:
        try:
            values = await fetch(inputs, tenant, self._blobs)
        except NotFound as error:
            raise InvalidArgument(error.message, field="inputs") from error
        return await self._models.infer(model, replace(request, inputs=values), rank=rank)

    def _answer(self, delivery: Delivery, task: Task, **found: Any) -> Outgoing:
        """Return the result of a task: what was found, as `TaskResult` has it."""
        body = TaskResult(
            tenant=task.tenant,
            run_id=task.run_id,
            node_id=task.node_id,
            attempt=task.attempt,
            worker=self._worker,
            **{"model": task.model, **found},
        )
        headers = {
            Header.MSG_ID: f"{task.tenant}.{task.run_id}.{task.node_id}.{task.attempt}",
            Header.CORRELATION_ID: task.correlation_id,
        }
        if Header.TRACEPARENT in delivery.headers:
            headers[Header.TRACEPARENT] = delivery.headers[Header.TRACEPARENT]
        return Outgoing(result(RunKey(task.tenant, task.run_id)), pack(body), headers)


def _work_key(task: Task) -> str:
    """Return what names a node's work, in each of its attempts."""
    work = f"{task.tenant}/{task.run_id}/{task.node_id}"
    return hashlib.sha256(work.encode()).hexdigest()

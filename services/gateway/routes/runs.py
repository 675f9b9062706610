"""Runs: submit them, look at them, follow them, replay them, steer them."""

from dataclasses import replace
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request, Response

from events.evolve import fold
from events.subjects import RunKey, control
from events.tape import Tape, event_view, run_view
from schemas.api import ErrorBody, EventPage, RunPage, RunSummary, RunView
from schemas.errors import InvalidArgument, NotFound
from schemas.ids import DEFAULT_TENANT, valid_token
from schemas.messages import Control
from services.gateway.controls import check, is_done, with_id
from services.gateway.inputs import read_body
from services.gateway.routes import ERRORS, Parts, Wanted, answer
from services.gateway.routes.asking import Asked, IdempotencyKey, begun, started
from services.gateway.routes.following import (
    EVENT_STREAM,
    LastEventId,
    Wish,
    after_of,
    streamed,
    wants_stream,
)
from services.gateway.submissions import run_id_of
from services.runtime import Outgoing


router = APIRouter(prefix="/v1", tags=["runs"], responses=ERRORS)

CONTROL_BYTES_MAX = 64 * 1024
PAGE_MAX = 500
SEQUENCE_MAX = 2**53
_RUN_BODY: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/RunRequest"}},
            "multipart/form-data": {
                "schema": {"type": "object", "description": "One part for each input, by name"}
            },
            "audio/wav": {"schema": {"type": "string", "format": "binary"}},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "text/plain": {"schema": {"type": "string"}},
        },
    }
}
_CONTROL_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Control"}}},
    }
}
Status = Literal["running", "paused", "completed", "failed", "rejected", "cancelled"]


@router.post(
    "/workflows/{name}/runs",
    response_model=RunView,
    status_code=202,
    responses={
        200: {
            "model": RunView,
            "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
            "description": "Over within `wait` seconds; or its events and parts",
        }
    },
    openapi_extra=_RUN_BODY,
)
async def submit(
    request: Request,
    parts: Wanted,
    name: str,
    asked: Asked,
    last_event_id: LastEventId = None,
) -> Response:
    """Start a run; it is stored before the answer.

    The answer is 200 with the finished run when it ends within `wait` seconds, else 202 with the
    run so far. The same `Idempotency-Key`, or the same `Clawdbot-Run-Id`, with the same inputs is
    the same run, for ever. With `Accept: text/event-stream` the answer is the run's events as they
    happen, and between them, as `part`, what its nodes say while they compute; the run goes on
    when the client leaves. Sent again with `Last-Event-ID` it goes on after that event.
    """
    valid_token(name, field="name")
    ask = replace(asked, workflow=name)
    if not wants_stream(request):
        return started(request, await begun(request, parts, ask), ask)
    ask = replace(ask, run_id="" if ask.idempotency_key else run_id_of(ask), wait_s=0.0)
    key = RunKey(DEFAULT_TENANT, run_id_of(ask))
    request.state.facts["run_id"] = key.run_id
    wish = Wish(after_of(last_event_id), with_parts=True)
    return await streamed(parts, key, wish, lambda: begun(request, parts, ask))


@router.get("/runs", response_model=RunPage)
async def runs(
    parts: Wanted,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
    cursor: Annotated[int | None, Query(ge=1, le=SEQUENCE_MAX)] = None,
    workflow: str | None = None,
    status: Status | None = None,
) -> Response:
    """List runs, newest first."""
    if workflow is not None:
        valid_token(workflow, field="workflow")
    rows = parts.index.runs(
        DEFAULT_TENANT,
        workflow=workflow,
        status=status,
        limit=limit + 1,
        before=None if cursor is None else str(cursor),
    )
    page = rows[:limit]
    summaries = tuple(
        RunSummary(
            run_id=row.run_id,
            workflow=row.workflow,
            status=row.status,
            commits=row.commits,
            started_at=row.started_at,
            updated_at=row.updated_at,
            duration_ms=round((row.updated_at - row.started_at) * 1000, 3),
        )
        for row in page
    )
    return answer(RunPage(runs=summaries, next=page[-1].cursor if len(rows) > limit else None))


@router.get("/runs/{run_id}", response_model=RunView)
async def run(parts: Wanted, run_id: str) -> Response:
    """Show a run as its log has it now."""
    key = run_key_of(run_id)
    tape = await _tape(parts, key)
    if not tape.records:
        recent = parts.submissions.recent(key)
        if recent is not None:
            return answer(recent)
    return answer(run_view(key, tape.records))


@router.get("/runs/{run_id}/replay", response_model=RunView)
async def replay(
    parts: Wanted,
    run_id: str,
    until: Annotated[
        int | None, Query(ge=1, le=SEQUENCE_MAX, description="Fold up to this event")
    ] = None,
) -> Response:
    """Fold the log anew, up to an event if one is named; no model is called."""
    key = run_key_of(run_id)
    records = (await _tape(parts, key)).records
    if until is not None and records and until > len(records):
        raise InvalidArgument(f"the run has {len(records)} events", field="until")
    return answer(run_view(key, records[:until]))


@router.post(
    "/runs/{run_id}/control",
    status_code=202,
    responses={
        202: {"description": "Stored; the run's events tell what came of it"},
        404: {"model": ErrorBody, "description": "No such run, or no such node under way"},
        409: {"model": ErrorBody, "description": "The run is over, or the node cannot take it now"},
    },
    openapi_extra=_CONTROL_BODY,
)
async def control_run(
    request: Request,
    parts: Wanted,
    run_id: str,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Ask for something to be done to a run that is under way.

    - `{"action": "cancel", "reason": "..."}` calls it off; what it did is undone first where its
      nodes say how, and workers stop.
    - `{"action": "pause", "reason": "..."}` begins nothing new; results are still taken.
    - `{"action": "resume"}` lets it go on.
    - `{"action": "signal", "name": "approved", "payload": ..., "id": "..."}` hands a signal to the
      node that waits for it, or keeps it until one does. The same `id`, or the same
      `Idempotency-Key`, is the same signal.
    - `{"action": "skip", "node": "each[3]/ocr", "outputs": {...}}` does without a node, or puts
      `outputs` in place of its work.
    - `{"action": "retry", "node": "ocr"}` tries a node again that failed, or that waits for its
      next attempt.
    """
    key = run_key_of(run_id)
    command = with_id(await read_body(request, CONTROL_BYTES_MAX, Control), idempotency_key)
    state = fold(record.event for record in (await _tape(parts, key)).records)
    if state is None and parts.submissions.recent(key) is None:
        raise NotFound(f"no run {run_id}", field="run_id")
    if state is None or not is_done(state, command):
        if state is not None:
            check(state, command)
        body = orjson.dumps(command.model_dump(exclude_defaults=True))
        headers = {"content-type": "application/json"}
        async with parts.bus.prompt(parts.settings.request_s_max):
            await parts.bus.submit(Outgoing(control(key), body, headers))
    return Response(status_code=202, headers={"Location": f"/v1/runs/{run_id}"})


@router.get(
    "/runs/{run_id}/events",
    response_model=EventPage,
    responses={
        200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}, "description": "Events"},
        204: {"description": "Nothing will follow the event named by `Last-Event-ID`"},
    },
)
async def events(
    request: Request,
    parts: Wanted,
    run_id: str,
    last_event_id: LastEventId = None,
    with_parts: Annotated[
        bool, Query(alias="parts", description="Also what nodes say while they compute")
    ] = False,
) -> Response:
    """List a run's events; with `Accept: text/event-stream`, follow them as they happen.

    A stream ends with the run. `Last-Event-ID` resumes it after that event, at any gateway; after
    the last event of a run that is over the answer is 204. With `parts=true` what its nodes say
    from now on comes between the events, as `part`.
    """
    key = run_key_of(run_id)
    tape = await _tape(parts, key)
    if not tape.records and parts.submissions.recent(key) is None:
        raise NotFound(f"no run {run_id}", field="run_id")
    if not wants_stream(request):
        return answer(EventPage(events=tuple(event_view(record) for record in tape.records)))
    after = after_of(last_event_id)
    if tape.terminal and after >= len(tape.records):
        return Response(status_code=204)  # tells an EventSource not to connect again
    return await streamed(parts, key, Wish(after, with_parts))


async def _tape(parts: Parts, key: RunKey) -> Tape:
    async with parts.bus.prompt(parts.settings.request_s_max):
        return Tape.of(await parts.store.load(key))


def run_key_of(run_id: str) -> RunKey:
    """Return the run that an address names.

    Raises:
        InvalidArgument: Not the id of a run.
    """
    return RunKey(DEFAULT_TENANT, valid_token(run_id, field="run_id"))

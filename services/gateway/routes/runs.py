"""Runs: submit them, look at them, follow them, replay them, steer them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import StreamingResponse

from events.evolve import fold
from events.subjects import RunKey, control
from events.tape import Recorded, Tape, event_view, run_view
from schemas.api import ErrorBody, EventPage, RunPage, RunSummary, RunView
from schemas.errors import ClawdbotError, InvalidArgument, NotFound
from schemas.ids import DEFAULT_TENANT, valid_token
from schemas.messages import Control
from services.gateway.controls import check, is_done, with_id
from services.gateway.inputs import read_body, read_inputs
from services.gateway.routes import ERRORS, Parts, Wanted, answer
from services.gateway.routes.asking import Asked, IdempotencyKey, started
from services.gateway.silence import ALIVE, with_silence
from services.runtime import Outgoing
from services.telemetry import get_logger


log = get_logger()
router = APIRouter(prefix="/v1", tags=["runs"], responses=ERRORS)

CONTROL_BYTES_MAX = 64 * 1024
PAGE_MAX = 500
SEQUENCE_MAX = 2**53
_EVENT_STREAM = "text/event-stream"
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
    responses={200: {"model": RunView, "description": "Over within `wait` seconds"}},
    openapi_extra=_RUN_BODY,
)
async def submit(
    request: Request,
    parts: Wanted,
    name: str,
    asked: Asked,
) -> Response:
    """Start a run; it is stored before the answer.

    The answer is 200 with the finished run when it ends within `wait` seconds, else 202 with the
    run so far. The same `Idempotency-Key`, or the same `Clawdbot-Run-Id`, with the same inputs is
    the same run, for ever.
    """
    valid_token(name, field="name")
    ask = replace(asked, workflow=name)
    view = await parts.submissions.run(ask, lambda plan, ports: read_inputs(request, plan, ports))
    return started(request, view, ask)


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
        200: {"content": {_EVENT_STREAM: {"schema": {"type": "string"}}}, "description": "Events"},
        204: {"description": "Nothing will follow the event named by `Last-Event-ID`"},
    },
)
async def events(
    request: Request,
    parts: Wanted,
    run_id: str,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """List a run's events; with `Accept: text/event-stream`, follow them as they happen.

    A stream ends with the run. `Last-Event-ID` resumes it after that event, at any gateway; after
    the last event of a run that is over the answer is 204.
    """
    key = run_key_of(run_id)
    tape = await _tape(parts, key)
    if not tape.records and parts.submissions.recent(key) is None:
        raise NotFound(f"no run {run_id}", field="run_id")
    if _EVENT_STREAM not in request.headers.get("accept", ""):
        return answer(EventPage(events=tuple(event_view(record) for record in tape.records)))
    after = last_event_id or "0"
    if not after.isdecimal() or len(after) > 15:  # noqa: PLR2004 - far beyond any log
        raise InvalidArgument("send the id of the last event you saw", field="Last-Event-ID")
    if tape.terminal and int(after) >= len(tape.records):
        return Response(status_code=204)  # tells an EventSource not to connect again
    return StreamingResponse(
        _stream(parts, key, int(after)),
        media_type=_EVENT_STREAM,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _stream(parts: Parts, key: RunKey, after: int) -> AsyncGenerator[bytes, None]:
    """Yield a run's events as server-sent events, and a comment when nothing happens.

    Source: HTML Standard, section 9.2.
    """
    with parts.waiters.feed(key) as feed:
        tape = Tape()
        async with aclosing(parts.waiters.follow(feed)) as landed:
            batches = with_silence(landed, parts.settings.heartbeat_s)
            async with aclosing(batches):
                yield b"retry: 1000\n\n"
                try:
                    async for commit in batches:
                        if commit is None:
                            yield ALIVE
                            continue
                        fresh = [
                            record
                            for record in tape.add(commit.commit, commit.sequence)
                            if record.ordinal > after
                        ]
                        yield b"".join(_event_bytes(record) for record in fresh)
                        if tape.terminal:
                            return
                except ClawdbotError as error:
                    log.warning("stream_broken", run_id=key.run_id, error=error.message)


def _event_bytes(record: Recorded) -> bytes:
    view = event_view(record)
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (
        record.ordinal,
        record.type.encode(),
        view.model_dump_json().encode(),
    )


async def _tape(parts: Parts, key: RunKey) -> Tape:
    async with parts.bus.prompt(parts.settings.request_s_max):
        return Tape.of(await parts.store.load(key))


def run_key_of(run_id: str) -> RunKey:
    """Return the run that an address names.

    Raises:
        InvalidArgument: Not the id of a run.
    """
    return RunKey(DEFAULT_TENANT, valid_token(run_id, field="run_id"))

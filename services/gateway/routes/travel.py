"""Time travel: runs as files, and forks of runs."""

import asyncio
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from events.bundles import export_recording, import_recording
from events.recording import MEDIA_TYPE, unpack_recording
from events.subjects import RunKey
from events.tape import Tape, run_view
from schemas.api import ErrorBody, RunView
from schemas.errors import InvalidArgument
from schemas.forks import Fork
from schemas.ids import DEFAULT_TENANT
from services.gateway.inputs import read_body
from services.gateway.routes import ERRORS, Wanted, answer
from services.gateway.routes.asking import Asked, started
from services.gateway.routes.runs import run_key_of


router = APIRouter(prefix="/v1", tags=["time travel"], responses=ERRORS)

FORK_BYTES_MAX = 1024 * 1024
"""Bytes of the body that asks for a fork."""
_FILE: dict[str, Any] = {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}
_BYTES = {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}
_FORK_BODY: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Fork"}}},
    }
}


@router.get("/runs/{run_id}/bundle", response_class=Response, responses={200: _FILE})
async def bundle(
    parts: Wanted,
    run_id: str,
    blobs: Annotated[bool, Query(description="Whether cited blobs go with it")] = True,
) -> Response:
    """Return a run as one file, in clear: its events, its workflow, its blobs.

    Whoever has the file can read and replay the run without the mesh, its keys or any model.
    """
    key = run_key_of(run_id)
    async with parts.bus.prompt(parts.settings.blob_s_max):
        packed = await export_recording(
            parts.store,
            parts.blobs,
            parts.deployments.definitions,
            key,
            at=parts.clock.now(),
            bytes_max=parts.settings.bundle_bytes_max,
            with_blobs=blobs,
        )
    headers = {
        "Cache-Control": "no-store",
        "Content-Disposition": f'attachment; filename="{key.run_id}.clawdbot"',
        "X-Content-Type-Options": "nosniff",
    }
    return Response(packed, headers=headers, media_type=MEDIA_TYPE)


@router.post(
    "/bundles",
    response_model=RunView,
    status_code=201,
    responses={
        200: {"model": RunView, "description": "The same run is here already"},
        409: {"model": ErrorBody, "description": "The id has another history here"},
    },
    openapi_extra={"requestBody": {"required": True, **_BYTES}},
)
async def import_bundle(request: Request, parts: Wanted) -> Response:
    """Take a run out of a file into this mesh's log, under its own id.

    Only a run that is over is taken; the same again changes nothing. A file whose hash chain or
    blobs do not verify is refused.
    """
    body = await request.body()
    if not body:
        raise InvalidArgument("send the bundle as the body", field="bundle")
    recording = await asyncio.to_thread(
        unpack_recording, body, bytes_max=parts.settings.bundle_bytes_max
    )
    parts.submissions.admission.check()
    async with parts.bus.prompt(parts.settings.blob_s_max):
        written = await import_recording(parts.store, parts.blobs, DEFAULT_TENANT, recording)
    key = RunKey(DEFAULT_TENANT, recording.key.run_id)
    request.state.facts["run_id"] = key.run_id
    view = run_view(key, Tape.of(recording.history()).records)
    return answer(view, 201 if written else 200, {"Location": f"/v1/runs/{key.run_id}"})


@router.post(
    "/runs/{run_id}/fork",
    response_model=RunView,
    status_code=202,
    responses={200: {"model": RunView, "description": "Over within `wait` seconds"}},
    openapi_extra=_FORK_BODY,
)
async def fork(
    request: Request,
    parts: Wanted,
    run_id: str,
    asked: Asked,
) -> Response:
    """Start a run that begins like another one and goes on differently.

    `{"at": 7, "changes": {"nlu.model": "intent-large", "inputs.text": "hi"}}`: nodes that were over
    at event 7 and that no change concerns keep their outputs; the rest runs.
    """
    parent = run_key_of(run_id)
    wanted = Fork()
    if await request.body():
        wanted = await read_body(request, FORK_BYTES_MAX, Fork)
    ask = replace(asked, workflow=f"fork of {run_id}")
    view = await parts.submissions.fork(ask, parent, wanted)
    return started(request, view, ask)

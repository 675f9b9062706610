"""The model repository: parts of files, versions, and what is done with them."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from schemas.api import PartView, PushView, RepositoryList, RepositoryView
from schemas.ids import DEFAULT_TENANT
from schemas.repository import VERSION_MAX, ModelControl, Push
from schemas.values import OCTETS
from services.gateway.inputs import read_body
from services.gateway.routes import ERRORS, Wanted, answer


PUSH_BYTES_MAX = 4 * 1024 * 1024
"""Of the JSON that names files; the files come as parts."""
CONTROL_BYTES_MAX = 16 * 1024

router = APIRouter(prefix="/v1", tags=["models"], responses=ERRORS)
_BYTES: dict[str, Any] = {"content": {OCTETS: {"schema": {"type": "string"}}}}
Name = Annotated[str, Path(description="Name of a model of the repository")]
Version = Annotated[int, Path(ge=1, le=VERSION_MAX)]
Force = Annotated[bool, Query(description="Whatever needs it")]
Sha = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]


def _json(kind: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{kind}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.post(
    "/artefacts",
    response_model=PartView,
    status_code=201,
    openapi_extra={"requestBody": {"required": True, **_BYTES}},
)
async def put_artefact(request: Request, parts: Wanted) -> Response:
    """Keep one part of a model's file, 16 MiB at most; the same bytes again are the same part."""
    data = await request.body()
    async with parts.bus.prompt(parts.settings.blob_s_max):
        sha256 = await parts.models.repository.put_part(DEFAULT_TENANT, data)
    location = {"Location": f"/v1/artefacts/{sha256}"}
    return answer(PartView(sha256=sha256, size_bytes=len(data)), 201, location)


@router.get("/artefacts/{sha256}", response_class=Response, responses={200: _BYTES})
async def get_artefact(parts: Wanted, sha256: Sha) -> Response:
    """Return one part of a model's file."""
    async with parts.bus.prompt(parts.settings.blob_s_max):
        data = await parts.models.repository.get_part(DEFAULT_TENANT, sha256)
    headers = {"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"}
    return Response(data, headers=headers, media_type=OCTETS)


@router.get("/repository", response_model=RepositoryList)
async def repository(parts: Wanted) -> Response:
    """List the models of the repository."""
    async with parts.bus.prompt(parts.settings.request_s_max):
        cards = await parts.directory.cards(parts.clock.now())
    views = [parts.models.shown(record, cards) for record in parts.catalogue.records.values()]
    return answer(RepositoryList(models=tuple(views)))


@router.get("/models/{name}", response_model=RepositoryView)
async def model(parts: Wanted, name: Name) -> Response:
    """Show a model of the repository: its versions, and which of them its names mean."""
    async with parts.bus.prompt(parts.settings.request_s_max):
        return answer(await parts.models.view(name))


@router.post(
    "/models/{name}/versions",
    response_model=PushView,
    status_code=201,
    responses={200: {"model": PushView, "description": "There already; nothing changed"}},
    openapi_extra=_json("Push"),
)
async def push_version(request: Request, parts: Wanted, name: Name) -> Response:
    """Make files whose parts are stored the next version of a model, once they are looked through.

    Unless it is held back, or gets a part of the requests only, it is in use at once.
    """
    push = await read_body(request, PUSH_BYTES_MAX, Push)
    async with parts.bus.prompt(parts.settings.push_s_max):
        view = await parts.models.push(name, push)
    headers = {"Location": f"/v1/models/{name}"}
    return answer(view, 201 if view.created else 200, headers)


@router.post(
    "/models/{name}/control", response_model=RepositoryView, openapi_extra=_json("ModelControl")
)
async def control_model(request: Request, parts: Wanted, name: Name) -> Response:
    """Set an alias, a canary or the version policy; promote, roll back, load, unload."""
    order = await read_body(request, CONTROL_BYTES_MAX, ModelControl)
    async with parts.bus.prompt(parts.settings.request_s_max):
        record = await parts.models.control(name, order)
        cards = await parts.directory.cards(parts.clock.now())
    return answer(parts.models.shown(record, cards))


@router.delete("/models/{name}", status_code=204, response_class=Response)
async def remove_model(parts: Wanted, name: Name, *, force: Force = False) -> Response:
    """Remove a model; one that a workflow names stays unless it is forced."""
    return await _remove(parts, name, None, force=force)


@router.delete("/models/{name}/versions/{version}", status_code=204, response_class=Response)
async def remove_version(
    parts: Wanted, name: Name, version: Version, *, force: Force = False
) -> Response:
    """Remove a version; one that something needs stays unless it is forced."""
    return await _remove(parts, name, version, force=force)


async def _remove(parts: Wanted, name: str, version: int | None, *, force: bool) -> Response:
    async with parts.bus.prompt(parts.settings.request_s_max):
        await parts.models.remove(name, version, force=force)
    return Response(status_code=204)

"""The repository extension of the Open Inference Protocol over HTTP."""

from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from schemas.message import UserInput
from schemas.open_inference import IndexEntry, IndexRequest, InferenceError, RepositoryRequest
from services.gateway.inference import repository
from services.gateway.inputs import read_body
from services.gateway.routes import Wanted


_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": InferenceError, "description": "The request cannot work; says why"},
    "501": {"model": InferenceError, "description": "A parameter that is not offered"},
    "503": {"model": InferenceError, "description": "No worker can have it"},
}

router = APIRouter(prefix="/v2/repository", tags=["inference"], responses=_ERRORS)


def _json(kind: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{kind}"}
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


@router.post("/index", response_model=list[IndexEntry], openapi_extra=_json("IndexRequest"))
async def repository_index(request: Request, parts: Wanted) -> Response:
    """List every version of every model, and whether a worker has it."""
    asked = await _read(request, parts, IndexRequest)
    found = await repository.index(parts, only_ready=asked.ready)
    body = orjson.dumps([entry.model_dump() for entry in found])
    return Response(body, media_type="application/json")


@router.post(
    "/models/{name}/load", response_class=Response, openapi_extra=_json("RepositoryRequest")
)
async def repository_load(request: Request, parts: Wanted, name: str) -> Response:
    """Have workers offer a model, and answer when one has it."""
    asked = await _read(request, parts, RepositoryRequest)
    await repository.load(parts, name, asked.parameters)
    return Response()


@router.post(
    "/models/{name}/unload", response_class=Response, openapi_extra=_json("RepositoryRequest")
)
async def repository_unload(request: Request, parts: Wanted, name: str) -> Response:
    """Have workers offer a model no more; it stays in the repository."""
    asked = await _read(request, parts, RepositoryRequest)
    await repository.unload(parts, name, asked.parameters)
    return Response()


async def _read(request: Request, parts: Wanted, kind: type[UserInput]) -> Any:
    """Read a body that may be left out."""
    if not await request.body():
        return kind()
    return await read_body(request, parts.settings.body_bytes_max, kind)

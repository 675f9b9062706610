"""What the Open Inference Protocol offers beside inference: statistics, configuration, settings."""

from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from schemas.errors import InvalidArgument
from schemas.inference_management import (
    LogSettings,
    Region,
    RegionRequest,
    Statistics,
    TraceSettings,
)
from schemas.message import UserInput
from schemas.workflow import invalid
from services.gateway.inference.config import model_config
from services.gateway.inference.watching import change_log, log_settings
from services.gateway.routes import Parts, Wanted, answer
from services.gateway.routes.inference import ERRORS


U = TypeVar("U", bound=UserInput)

# Names of models may have slashes: what is longer comes before what it could be a name of.
router = APIRouter(prefix="/v2", tags=["inference"], responses=ERRORS)


def _body(kind: type[UserInput]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


@router.get("/models/{name:path}/versions/{version}/stats", response_model=Statistics)
async def model_version_statistics(parts: Wanted, name: str, version: str) -> Response:
    """Count what the workers computed with a model's version since they started."""
    return await _statistics(parts, name, version)


@router.get("/models/{name:path}/versions/{version}/config", response_model=dict[str, Any])
async def version_configuration(parts: Wanted, name: str, version: str) -> Response:
    """Show the configuration of a model's version, as Triton's ModelConfig."""
    return _json(model_config(name, await parts.inferences.model(name, version)))


@router.get("/models/stats", response_model=Statistics)
async def all_statistics(parts: Wanted) -> Response:
    """Count what the workers computed since they started, of every model."""
    return await _statistics(parts, "", None)


@router.get("/models/{name:path}/stats", response_model=Statistics)
async def model_statistics(parts: Wanted, name: str) -> Response:
    """Count what the workers computed with a model since they started."""
    return await _statistics(parts, name, None)


@router.get("/models/{name:path}/config", response_model=dict[str, Any])
async def configuration(parts: Wanted, name: str) -> Response:
    """Show a model's configuration, as Triton's ModelConfig."""
    return _json(model_config(name, await parts.inferences.model(name)))


@router.get("/logging", response_model=LogSettings)
async def logging() -> Response:
    """Show what this gateway writes into its log."""
    return _json(log_settings())


@router.post("/logging", response_model=LogSettings, openapi_extra=_body(LogSettings))
async def change_logging(request: Request) -> Response:
    """Change what this gateway writes into its log, until it ends."""
    return _json(change_log(await _read(request, LogSettings)))


@router.get("/trace/setting", response_model=TraceSettings)
async def trace(parts: Wanted) -> Response:
    """Show which inferences this gateway writes a line about."""
    return _json(parts.traces.settings())


@router.post("/trace/setting", response_model=TraceSettings, openapi_extra=_body(TraceSettings))
async def change_trace(request: Request, parts: Wanted) -> Response:
    """Change which inferences this gateway writes a line about, until it ends."""
    return _json(parts.traces.change(await _read_trace(request)))


@router.get("/models/{name:path}/trace/setting", response_model=TraceSettings)
async def model_trace(parts: Wanted, name: str) -> Response:
    """Show which inferences of a model this gateway writes a line about."""
    await parts.inferences.model(name)
    return _json(parts.traces.settings(name))


@router.post(
    "/models/{name:path}/trace/setting",
    response_model=TraceSettings,
    openapi_extra=_body(TraceSettings),
)
async def change_model_trace(request: Request, parts: Wanted, name: str) -> Response:
    """Change which inferences of a model this gateway writes a line about, until it ends."""
    await parts.inferences.model(name)
    return _json(parts.traces.change(await _read_trace(request), name))


@router.get("/systemsharedmemory/status", response_model=list[Region])
async def shared_memory(parts: Wanted) -> Response:
    """List the regions of shared memory that are registered with this gateway."""
    return _json([region.model_dump() for region in parts.regions.status()])


@router.get("/systemsharedmemory/region/{name}/status", response_model=list[Region])
async def shared_memory_region(parts: Wanted, name: str) -> Response:
    """Show a region of shared memory."""
    return _json([region.model_dump() for region in parts.regions.status(name)])


@router.post("/systemsharedmemory/region/{name}/register", openapi_extra=_body(RegionRequest))
async def register_shared_memory(request: Request, parts: Wanted, name: str) -> Response:
    """Give a part of a shared memory object of this machine a name."""
    parts.regions.register(name, await _read(request, RegionRequest))
    return Response()


@router.post("/systemsharedmemory/unregister")
async def unregister_all_shared_memory(parts: Wanted) -> Response:
    """Forget all regions of shared memory."""
    parts.regions.unregister()
    return Response()


@router.post("/systemsharedmemory/region/{name}/unregister")
async def unregister_shared_memory(parts: Wanted, name: str) -> Response:
    """Forget a region of shared memory."""
    parts.regions.unregister(name)
    return Response()


@router.get("/cudasharedmemory/status")
async def cuda_shared_memory() -> Response:
    """List the regions of shared GPU memory: there are none."""
    return _json([])


@router.post("/cudasharedmemory/unregister")
async def unregister_cuda_shared_memory() -> Response:
    """Forget all regions of shared GPU memory, of which there are none."""
    return Response()


async def _statistics(parts: Parts, name: str, version: str | None) -> Response:
    models = await parts.inferences.counted(name, version)
    return answer(Statistics(model_stats=await parts.tallies.of(models)))


async def _read_trace(request: Request) -> TraceSettings:
    """Read trace settings; Triton's clients send one level by itself, and numbers as they are."""
    document = await _document(request)
    if isinstance(document.get("trace_level"), str):
        document["trace_level"] = [document["trace_level"]]
    for name in ("trace_rate", "trace_count", "log_frequency"):
        if type(document.get(name)) is int:
            document[name] = str(document[name])
    return validated(TraceSettings, document)


async def _read(request: Request, kind: type[U]) -> U:
    return validated(kind, await _document(request))


async def _document(request: Request) -> dict[str, Any]:
    try:
        document = orjson.loads(await request.body() or b"{}")
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"the body is not JSON: {error.msg}") from error
    if not isinstance(document, dict):
        raise InvalidArgument("send a JSON object")
    return document


def validated(kind: type[U], document: dict[str, Any]) -> U:
    """Read a document of a user.

    Raises:
        InvalidArgument: Names the field.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise invalid(error) from error


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")

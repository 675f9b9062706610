"""The HTTP application and its OpenAPI document."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema

from schemas.api import RunRequest
from schemas.forks import Fork
from schemas.inference_management import LogSettings, RegionRequest, TraceSettings
from schemas.messages import Control
from schemas.open_inference import (
    GenerateRequest,
    IndexRequest,
    InferRequest,
    RepositoryRequest,
)
from schemas.repository import ModelControl, Push
from schemas.workflow import Deployment
from services.gateway import errors
from services.gateway.routes import (
    Parts,
    blobs,
    generate,
    health,
    inference,
    management,
    model_repository,
    repository,
    runs,
    statistics,
    travel,
    workflows,
)


VERSION = "1"
DESCRIPTION = """
Workflows of models, templates and conditions, run durably over NATS JetStream.

Times are seconds since the epoch. Bytes in JSON are `{"$binary": {"media_type", "data"}}` with
base64 data; an uploaded blob is `{"$blob": {"media_type", "size_bytes", "sha256"}}`. Every error is
`{"error": {"code", "message", "field", "retryable", "request_id"}}`; below /v2, the Open Inference
Protocol, it is `{"error": "<message>"}`.
"""
_BODIES = (Deployment, RunRequest, Control, Fork, InferRequest)
_MANAGEMENT = (GenerateRequest, LogSettings, RegionRequest, TraceSettings)
_REPOSITORY = (IndexRequest, RepositoryRequest, Push, ModelControl)


def build_api(parts: Parts | None = None) -> FastAPI:
    """Return the application; without `parts` it can describe itself, but not serve."""
    app = FastAPIOffline(
        title="clawdbot",
        version=VERSION,
        description=DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.state.parts = parts
    for module in (
        workflows,
        repository,
        runs,
        travel,
        statistics,
        blobs,
        management,
        generate,
        inference,
        model_repository,
        health,
    ):
        app.include_router(module.router)
    errors.install(app)
    app.openapi = lambda: openapi_document(app)  # type: ignore[method-assign]
    return app


def openapi_document(app: FastAPI | None = None) -> dict[str, Any]:
    """Return the OpenAPI document, with the bodies that the routes read by themselves."""
    app = app or build_api()
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        _, bodies = models_json_schema(
            [(kind, "validation") for kind in (*_BODIES, *_MANAGEMENT, *_REPOSITORY)],
            ref_template="#/components/schemas/{model}",
        )
        document["components"]["schemas"] |= bodies["$defs"]
        document["components"]["schemas"].pop("HTTPValidationError", None)
        document["components"]["schemas"].pop("ValidationError", None)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)  # ours are 400, and say so under 4XX
                summary, _, rest = operation["description"].partition("\n\n")
                operation["summary"] = " ".join(summary.split()).rstrip(".")
                operation["description"] = rest
        app.openapi_schema = document
    return app.openapi_schema


def _operation_id(route: APIRoute) -> str:
    """Name an operation as a client in another language should."""
    return route.name

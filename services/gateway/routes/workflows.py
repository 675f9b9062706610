"""Workflows and the models they can be made of."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from schemas.api import ModelList, ModelOffer, ModelView, WorkflowList, WorkflowView
from schemas.catalogue import ModelSpec
from schemas.ids import valid_token
from schemas.repository import AT
from schemas.workflow import DEFINITION_BYTES_MAX, Deployment
from services.gateway.inputs import read_body
from services.gateway.model_store import offers_of
from services.gateway.routes import ERRORS, Wanted, answer


router = APIRouter(prefix="/v1", responses=ERRORS)
VERSION_MAX = 2**31
_DEPLOYMENT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Deployment"}}},
    }
}


@router.post(
    "/workflows",
    tags=["workflows"],
    response_model=WorkflowView,
    status_code=201,
    responses={200: {"model": WorkflowView, "description": "Deployed already; nothing changed"}},
    openapi_extra=_DEPLOYMENT,
)
async def deploy(request: Request, parts: Wanted) -> Response:
    """Deploy a workflow: a changed definition is a new version, the same one changes nothing."""
    deployment = await read_body(request, DEFINITION_BYTES_MAX, Deployment)
    async with parts.bus.prompt(parts.settings.request_s_max):
        view, created = await parts.deployments.deploy(deployment)
    parts.submissions.forget(view.name)
    return answer(view, 201 if created else 200, {"Location": f"/v1/workflows/{view.name}"})


@router.get("/workflows", tags=["workflows"], response_model=WorkflowList)
async def workflows(parts: Wanted) -> Response:
    """List every workflow's newest version."""
    async with parts.bus.prompt(parts.settings.request_s_max):
        views = await parts.deployments.all()
    return answer(WorkflowList(workflows=tuple(views)))


@router.get("/workflows/{name}", tags=["workflows"], response_model=WorkflowView)
async def workflow(
    parts: Wanted,
    name: Annotated[str, Path(description="Name of a workflow")],
    version: Annotated[int | None, Query(ge=1, le=VERSION_MAX)] = None,
) -> Response:
    """Show a workflow, the newest version unless another is asked for."""
    valid_token(name, field="name")
    async with parts.bus.prompt(parts.settings.request_s_max):
        return answer(await parts.deployments.get(name, version))


@router.get("/models", tags=["models"], response_model=ModelList)
async def models(parts: Wanted) -> Response:
    """List the catalogue, and which workers serve what."""
    async with parts.bus.prompt(parts.settings.request_s_max):
        cards = await parts.directory.cards(parts.clock.now())
    views: list[ModelView] = []
    for name, spec in parts.catalogue.now.models.items():
        if AT in name:
            continue
        concrete = parts.catalogue.concrete(name, "")
        offers = tuple(
            offer.model_copy(update={"served_by": name}) if offer.served_by == concrete else offer
            for offer in offers_of(concrete, cards)
        )
        views.append(_model_view(name, spec, offers))
    return answer(ModelList(models=tuple(views)))


def _model_view(name: str, spec: ModelSpec, offers: tuple[ModelOffer, ...]) -> ModelView:
    serving = [offer for offer in offers if offer.available]
    return ModelView(
        name=name,
        modality=spec.modality,
        version=spec.version,
        description=spec.description,
        inputs=tuple(port.model_dump(mode="json", exclude_none=True) for port in spec.inputs),
        outputs=tuple(port.model_dump(mode="json", exclude_none=True) for port in spec.outputs),
        fallback=spec.fallback,
        get=spec.get,
        available=bool(serving),
        served_by=tuple(sorted({offer.served_by for offer in serving})),
        offers=offers,
    )

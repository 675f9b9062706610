"""The HTTP API, one module for each kind of thing."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request, Response

from events.blobs import BlobStore
from events.index import RunIndex
from events.jetstream import JetStreamEventStore
from events.models import ModelDirectory
from events.projections import Projector
from schemas.api import ErrorBody
from schemas.live_catalogue import LiveCatalogue
from schemas.message import Message
from services.gateway.deployments import Deployments
from services.gateway.inference.regions import Regions
from services.gateway.inference.service import Inferences
from services.gateway.inference.statistics import Tallies
from services.gateway.inference.watching import Traces
from services.gateway.model_store import ModelStore
from services.gateway.settings import GatewaySettings
from services.gateway.submissions import Submissions
from services.gateway.waiters import Waiters
from services.runtime import Bus, Clock


@dataclass(frozen=True)
class Parts:
    """What the routes stand on."""

    settings: GatewaySettings
    bus: Bus
    store: JetStreamEventStore
    blobs: BlobStore
    index: RunIndex
    directory: ModelDirectory
    catalogue: LiveCatalogue
    models: ModelStore
    deployments: Deployments
    submissions: Submissions
    waiters: Waiters
    clock: Clock
    projector: Projector
    inferences: Inferences
    tallies: Tallies
    regions: Regions
    traces: Traces = field(default_factory=Traces)


async def _parts(request: Request) -> Parts:  # a sync dependency would run in a thread
    parts: Parts = request.app.state.parts
    return parts


Wanted = Annotated[Parts, Depends(_parts)]

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot work; says why"},
    "503": {"model": ErrorBody, "description": "The bus is away; try again after Retry-After"},
}


def answer(view: Message, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a model as JSON."""
    return Response(
        view.model_dump_json().encode(), status, headers=headers, media_type="application/json"
    )

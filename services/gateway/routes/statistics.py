"""What the log adds up to: statistics of nodes, and proof that projections are what it says."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from events.projections import Verdict
from events.statistics import NodeStatistics
from schemas.api import (
    ModelStatisticsView,
    NodeStatisticsView,
    ProjectionsView,
    ProjectionView,
    StatisticsView,
)
from schemas.ids import DEFAULT_TENANT, valid_token
from services.gateway.routes import ERRORS, Wanted, answer


router = APIRouter(prefix="/v1", tags=["statistics"], responses=ERRORS)

NODES_MAX = 1_000
"""Nodes that one answer lists."""


@router.get("/statistics", response_model=StatisticsView)
async def statistics(
    parts: Wanted,
    workflow: str | None = None,
    limit: Annotated[int, Query(ge=1, le=NODES_MAX)] = NODES_MAX,
) -> Response:
    """Count what each node did over all runs in the log.

    The gateway reads what was committed since it was asked last; the first time that is all there
    is. When it takes too long the answer is 503, and the next request goes on where it stopped.
    """
    if workflow is not None:
        valid_token(workflow, field="workflow")
    async with parts.bus.prompt(parts.settings.project_s_max):
        await parts.projector.catch_up()
    kept = parts.projector.statistics
    nodes = tuple(_node(item) for item in kept.nodes(DEFAULT_TENANT, workflow, limit))
    return answer(StatisticsView(sequence=kept.position, nodes=nodes))


@router.post("/projections/verify", response_model=ProjectionsView)
async def verify_projections(parts: Wanted) -> Response:
    """Build the run index and the statistics anew from the log, and compare them bit by bit."""
    async with parts.bus.prompt(parts.settings.project_s_max):
        verdicts = await parts.projector.verify(parts.index)
    return answer(ProjectionsView(projections=tuple(_verdict(item) for item in verdicts)))


def _verdict(item: Verdict) -> ProjectionView:
    return ProjectionView(
        name=item.name,
        sequence=item.sequence,
        same=item.same,
        kept=item.kept,
        rebuilt=item.rebuilt,
        events=item.events,
        seconds=round(item.seconds, 3),
        events_per_s=round(item.events / item.seconds, 1) if item.seconds else 0.0,
    )


def _node(item: NodeStatistics) -> NodeStatisticsView:
    count = max(1, item.completed)
    return NodeStatisticsView(
        workflow=item.workflow,
        node=item.node,
        runs=item.runs,
        scheduled=item.scheduled,
        completed=item.completed,
        kept=item.kept,
        failed=item.failed,
        retried=item.retried,
        skipped=item.skipped,
        queue_ms=_ms(item.queue_us / count),
        load_ms=_ms(item.load_us / count),
        compute_ms=_ms(item.compute_us / count),
        compute_ms_max=_ms(item.compute_us_max),
        models=tuple(
            ModelStatisticsView(
                model=model.model,
                completed=model.completed,
                compute_ms=_ms(model.compute_us / model.completed),
                compute_ms_max=_ms(model.compute_us_max),
            )
            for model in item.models
        ),
    )


def _ms(us: float) -> float:
    return round(us / 1000, 3)

"""Probes and metrics."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import RedirectResponse

from events.marks import refusal
from schemas.api import Health
from schemas.errors import StoreUnavailable
from services.gateway.routes import ERRORS, Parts, Wanted, answer


router = APIRouter(tags=["operations"])


@router.get("/", include_in_schema=False)
async def root() -> Response:
    """Lead whoever opens the gateway in a browser to the documentation."""
    return RedirectResponse("/docs")


@router.get("/livez", response_model=Health)
async def livez() -> Response:
    """Tell that the process runs."""
    return answer(Health())


@router.get("/readyz", response_model=Health, responses={503: ERRORS["503"]})
async def readyz(parts: Wanted) -> Response:
    """Tell that the bus answers and that the event log is not refused."""
    await check_ready(parts)
    return answer(Health())


async def check_ready(parts: Parts) -> None:
    """Return when the bus answers and the event log is not refused.

    Raises:
        BusUnavailable: It does not answer.
        StoreUnavailable: The log is refused; says why.
    """
    async with parts.bus.prompt(parts.settings.request_s_max):
        await parts.bus.ping()
        refused = await refusal(parts.bus.nc)
    if refused:
        raise StoreUnavailable(f"{refused}; submissions wait until it is mended or accepted")


@router.get("/metrics", response_class=Response)
async def metrics() -> Response:
    """Return Prometheus metrics."""
    return Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

"""The connection of a service to the bus: kept for ever, and told of when it is lost."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from faststream.nats import NatsBroker

from services.telemetry import BUS_CONNECTED, get_logger


log = get_logger()

PING_INTERVAL_S = 2
RECONNECT_WAIT_S = 0.25


@dataclass(frozen=True)
class Link:
    """What happens to the connection."""

    on_loss: list[Callable[[], None]] = field(default_factory=list)
    """Called when it is lost, before any other server is asked."""
    came_back: asyncio.Event = field(default_factory=asyncio.Event)


def broker_of(url: str, name: str, link: Link) -> NatsBroker:
    """Return a broker that reconnects for ever and notices a silent server within seconds."""
    said = ""

    async def disconnected() -> None:
        for call in link.on_loss:
            call()
        BUS_CONNECTED.labels(name).set(0)
        log.warning("bus_disconnected")

    async def reconnected() -> None:
        nonlocal said
        said = ""
        BUS_CONNECTED.labels(name).set(1)
        log.info("bus_reconnected")
        link.came_back.set()

    async def errored(error: Exception) -> None:
        nonlocal said
        text = f"{type(error).__name__}: {error}"
        if text != said:  # while the bus is away the same comes four times a second
            said = text
            log.info("bus_error", error=str(error), kind=type(error).__name__)

    return NatsBroker(
        [part.strip() for part in url.split(",")],
        name=f"clawdbot-{name}",
        allow_reconnect=True,
        max_reconnect_attempts=-1,
        reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type] # seconds; nats-py takes floats
        ping_interval=PING_INTERVAL_S,
        max_outstanding_pings=2,
        connect_timeout=2,
        disconnected_cb=disconnected,
        reconnected_cb=reconnected,
        error_cb=errored,
        logger=log,
        log_level=logging.DEBUG,  # of a line per message; what goes wrong is said anyway
    )

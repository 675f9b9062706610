"""The connection to the bus: a server that falls silent is left within seconds for another one.

A server that is killed closes its connections; one that is stopped or cut off does not, and only
its silence tells. Whatever it sends is a sign of life (`events.express`), not pongs alone: behind a
large message on a slow line those come late.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from faststream.nats import NatsBroker
from nats.aio.client import Client as Nats
from nats.aio.client import Server

from services.telemetry import BUS_CONNECTED, get_logger


PINGS = 2
"""Without any sign of life; when the next one is due, the server is given up."""
RECONNECT_WAIT_S = 0.25
"""Between two tries of the same server."""
CONNECT_TIMEOUT_S = 2
log = get_logger()


@dataclass(frozen=True)
class Link:
    """What happens to the connection."""

    on_loss: list[Callable[[], None]] = field(default_factory=list)
    """Called when it is lost, before any other server is asked."""
    came_back: asyncio.Event = field(default_factory=asyncio.Event)


class NextServer:
    """Chooses which server is asked after a loss: the one that was tried least since.

    The one that was lost comes last: stopped, it still takes connections, and each try costs the
    whole time limit.

    Args:
        chance: Chooses among equals, so that not all clients go to the same one.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._at = ""
        self._tries: Counter[str] = Counter()

    def connected(self, address: str) -> None:
        """Take note of the server that is connected; what was tried before is forgotten."""
        self._at = address
        self._tries.clear()

    def choose(self, servers: Sequence[Server], _: Mapping[str, object]) -> tuple[Server, float]:
        """Return the server to ask next, and how long to wait before, seconds."""

        def rank(server: Server) -> tuple[int, bool]:
            return self._tries[server.uri.netloc], server.uri.netloc == self._at

        chosen = min(self._chance.sample(servers, len(servers)), key=rank)
        tried = self._tries[chosen.uri.netloc]
        self._tries[chosen.uri.netloc] += 1
        return chosen, RECONNECT_WAIT_S if tried else 0.0


async def connect(url: str, name: str, link: Link, silence_s: float) -> tuple[NatsBroker, Nats]:
    """Connect, trying for as long as it takes, and again after every loss.

    Args:
        url: Addresses of the servers, separated by commas.
        name: Of the service.
        link: Told of every loss and every reconnect.
        silence_s: After so long without a sign of life another server is asked.
    """
    said = ""
    following = NextServer(random.Random())  # noqa: S311 - no secret

    async def disconnected() -> None:
        for call in link.on_loss:
            call()
        BUS_CONNECTED.labels(name).set(0)
        log.warning("bus_disconnected")

    async def reconnected() -> None:
        nonlocal said
        said = ""
        following.connected(_address(nc))
        BUS_CONNECTED.labels(name).set(1)
        log.info("bus_reconnected")
        link.came_back.set()

    async def errored(error: Exception) -> None:
        nonlocal said
        text = f"{type(error).__name__}: {error}"
        if text != said:  # while the bus is away the same comes four times a second
            said = text
            log.info("bus_error", error=str(error), kind=type(error).__name__)

    broker = NatsBroker(
        [part.strip() for part in url.split(",")],
        name=f"clawdbot-{name}",
        allow_reconnect=True,
        max_reconnect_attempts=-1,
        reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type] # seconds; nats-py takes floats
        reconnect_to_server_handler=following.choose,
        ping_interval=silence_s / (PINGS + 1),  # type: ignore[arg-type] # likewise
        max_outstanding_pings=PINGS,
        connect_timeout=CONNECT_TIMEOUT_S,
        disconnected_cb=disconnected,
        reconnected_cb=reconnected,
        error_cb=errored,
        logger=log,
        log_level=logging.DEBUG,  # of a line per message; what goes wrong is said anyway
    )
    nc = await broker.connect()
    following.connected(_address(nc))
    BUS_CONNECTED.labels(name).set(1)
    return broker, nc


def _address(nc: Nats) -> str:
    return nc.connected_url.netloc if nc.connected_url is not None else ""

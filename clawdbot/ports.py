"""Addresses of this machine and others: whether one can be had, whether somebody answers there."""

import asyncio
import contextlib
import socket
from urllib.parse import urlsplit

from schemas.errors import FailedPrecondition


NATS_PORT = 4222
REACH_S = 5.0


def family(host: str) -> socket.AddressFamily:
    """Return the kind of address that `host` is."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def why_not(host: str, port: int) -> str | None:
    """Return why nobody can listen there now, or None when somebody can."""
    with socket.socket(family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


async def check_reachable(nats_url: str) -> None:
    """Connect to one of several servers, named with commas between them.

    Raises:
        FailedPrecondition: None of them answers, or one is malformed.
    """
    places = [_place(part.strip()) for part in nats_url.split(",")]
    for host, port in places:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(REACH_S):
                _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return
    tried = ", ".join(f"{host}:{port}" for host, port in places)
    raise FailedPrecondition(
        f"no NATS server answers at {tried}; start it, or leave out the address to have one "
        f"started here",
        field="CLAWDBOT_NATS_URL",
    )


def _place(nats_url: str) -> tuple[str, int]:
    """Return host and port; what else is in an address, a password say, is nobody's business."""
    try:
        address = urlsplit(nats_url if "://" in nats_url else f"nats://{nats_url}")
        return address.hostname or "", address.port or NATS_PORT
    except ValueError as error:
        raise FailedPrecondition(
            "an address looks like nats://host:4222", field="CLAWDBOT_NATS_URL"
        ) from error


def url(host: str, port: int) -> str:
    """Return the address at which a browser of this machine finds what listens there."""
    match host:
        case "0.0.0.0":  # noqa: S104 - compared
            return f"http://127.0.0.1:{port}"
        case "::":
            return f"http://[::1]:{port}"
        case _:
            return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

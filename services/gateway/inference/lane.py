"""The short way of an inference through the gateway: past the framework's search for its route.

FastAPI compares a path with every route, one after the other, gathers dependencies for each
request, and makes objects of its parts: for an inference that is more than three times the work of
the inference itself (ADR-0031, ADR-0047). The routes stay where they are, for the document.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from schemas.errors import Cancelled
from schemas.pieces import Body, Pieces, parts_of
from services.gateway.departures import called_off_when_gone


_BEFORE, _VERSIONS, _BEHIND = "/v2/models/", "/versions/", "/infer"


@dataclass(slots=True)
class Asked:
    """An inference as it came."""

    model: str
    version: str | None
    headers: Mapping[bytes, bytes]
    """Names in lower case; of several with the same name the first."""
    body: Body
    request_id: str
    correlation_id: str
    facts: dict[str, Any]
    """What goes into the log line."""


@dataclass(slots=True)
class Answer:
    """What goes back."""

    body: Body
    headers: list[tuple[bytes, bytes]]


Infer = Callable[[Asked], Awaitable[Answer]]


@dataclass(frozen=True)
class Lane:
    """Answers inferences; whatever else comes goes on to the application.

    Args:
        app: The application.
        infer: Answers an inference; its errors are the outer layer's.
    """

    app: ASGIApp
    infer: Infer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        target = target_of(scope) if scope["type"] == "http" else None
        if target is None:
            await self.app(scope, receive, send)
            return
        with called_off_when_gone(scope):
            answer = await self.infer(Asked(*target, body=await whole(receive), **scope["state"]))
        await send({"type": "http.response.start", "status": 200, "headers": answer.headers})
        *before, last = parts_of(answer.body)
        for part in before:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": last})


def target_of(scope: Scope) -> tuple[str, str | None] | None:
    """Return model and version of an inference; None for any other request."""
    path: str = scope["path"]
    if scope["method"] != "POST" or not (path.startswith(_BEFORE) and path.endswith(_BEHIND)):
        return None
    rest = path[len(_BEFORE) : -len(_BEHIND)]
    name, _, version = rest.rpartition(_VERSIONS)
    if name and version and "/" not in version:
        return name, version
    return (rest, None) if rest else None


async def whole(receive: Receive) -> Body:
    """Return the body of a request, as it came.

    Raises:
        Cancelled: The client went away before it ended.
    """
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client went away")
        pieces.append(message["body"])
        if not message["more_body"]:
            return pieces[0] if len(pieces) == 1 else Pieces(tuple(pieces))

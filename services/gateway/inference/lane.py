"""The short way of an inference through the gateway: past the framework's search for its route.

FastAPI compares a path with every route, one after the other, and gathers dependencies for each
request: for an inference that is more than twice the work of the inference itself (ADR-0031). The
routes stay where they are, for the document.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.departures import called_off_when_gone


_BEFORE, _VERSIONS, _BEHIND = "/v2/models/", "/versions/", "/infer"
Infer = Callable[[Request, str, str | None], Awaitable[Response]]
"""Answers an inference, by model and version."""


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
            response = await self.infer(Request(scope, receive), *target)
        await response(scope, receive, send)


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

"""The short way of a run through the gateway: a request that asks for nothing unusual.

FastAPI compares a path with every route, one after the other, and gathers dependencies for each
request: more work than storing the run is (ADR-0062). What can be read at a glance is served here,
by the functions that the route calls; whatever is unusual or wrong goes on to the route.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from schemas.ids import TOKEN
from services.gateway.routes import Parts
from services.gateway.routes.asking import KEY_CHARS_MAX, begun, started
from services.gateway.routes.following import EVENT_STREAM
from services.gateway.submissions import Ask


_STREAM, _FORM = EVENT_STREAM.encode(), b"multipart/"
_BEFORE, _BEHIND = "/v1/workflows/", "/runs"
_TOKEN = re.compile(TOKEN)
_WAIT = re.compile(r"(?:wait=([0-9]{1,6}(?:\.[0-9]{1,6})?))?")
_KEY = re.compile(rf"[\x21-\x7e]{{1,{KEY_CHARS_MAX}}}")


@dataclass(frozen=True)
class PlainRuns:
    """Answers plain requests for runs; whatever else comes goes on to the application.

    Args:
        app: The application.
        parts: What its routes stand on.
    """

    app: ASGIApp
    parts: Parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        ask = plain(scope) if scope["type"] == "http" else None
        if ask is None or ask.wait_s > self.parts.settings.wait_s_max:
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        view = await begun(request, self.parts, ask)
        await started(request, view, ask)(scope, receive, send)


def plain(scope: Scope) -> Ask | None:
    """Return what a request asks for; None when only the route can tell."""
    path: str = scope["path"]
    if scope["method"] != "POST" or not (path.startswith(_BEFORE) and path.endswith(_BEHIND)):
        return None
    headers: Mapping[bytes, bytes] = scope["state"]["headers"]
    if _STREAM in headers.get(b"accept", b"") or _FORM in headers.get(b"content-type", b"").lower():
        return None
    wait = _WAIT.fullmatch(scope["query_string"].decode("latin-1"))
    workflow = _TOKEN.fullmatch(path[len(_BEFORE) : -len(_BEHIND)])
    key = _KEY.fullmatch(_text(headers, b"idempotency-key", "-"))
    run_id = _TOKEN.fullmatch(_text(headers, b"clawdbot-run-id", "-"))
    if wait is None or workflow is None or key is None or run_id is None:
        return None
    return Ask(
        workflow=workflow[0],
        run_id=run_id[0] if b"clawdbot-run-id" in headers else "",
        idempotency_key=key[0] if b"idempotency-key" in headers else "",
        correlation_id=scope["state"]["correlation_id"],
        traceparent=_text(headers, b"traceparent", ""),
        wait_s=float(wait[1] or 0),
    )


def _text(headers: Mapping[bytes, bytes], name: bytes, absent: str) -> str:
    found = headers.get(name)
    return absent if found is None else found.decode("latin-1")

"""The short way of a run: whatever it takes, the route would have understood alike."""

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from schemas.errors import NotFound
from services.gateway.api import build_api
from services.gateway.departures import ARRIVED
from services.gateway.middleware import Watch
from services.gateway.routes.plain import PlainRuns
from services.gateway.submissions import Ask


PATH = "/v1/workflows/w/runs"
PLAIN: dict[str, tuple[str, dict[str, str]]] = {
    "nothing but a path": (PATH, {}),
    "a wait": (f"{PATH}?wait=30", {}),
    "a wait of parts of seconds": (f"{PATH}?wait=0.25", {}),
    "a key": (f"{PATH}?wait=1", {"Idempotency-Key": "order/17:a"}),
    "an id of its own": (PATH, {"Clawdbot-Run-Id": "mine-1"}),
    "both names": (PATH, {"Clawdbot-Run-Id": "mine-1", "Idempotency-Key": "k"}),
    "a trace": (PATH, {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}),
    "any answer": (PATH, {"Accept": "*/*", "ce-correlationid": "c-1"}),
}
LEFT: dict[str, tuple[str, dict[str, str]]] = {
    "an exponent": (f"{PATH}?wait=3e1", {}),
    "too long a wait": (f"{PATH}?wait=9999", {}),
    "no number": (f"{PATH}?wait=soon", {}),
    "below zero": (f"{PATH}?wait=-1", {}),
    "a wait said twice": (f"{PATH}?wait=1&wait=2", {}),
    "something more": (f"{PATH}?wait=1&colour=blue", {}),
    "a name that is no token": ("/v1/workflows/a.b/runs", {}),
    "a name of two parts": ("/v1/workflows/a/b/runs", {}),
    "an empty key": (PATH, {"Idempotency-Key": ""}),
    "a key of spaces": (PATH, {"Idempotency-Key": "a b"}),
    "a long key": (PATH, {"Idempotency-Key": "k" * 256}),
    "a form": (PATH, {"Content-Type": "Multipart/form-data"}),
    "an id that is no token": (PATH, {"Clawdbot-Run-Id": "a.b"}),
}


class Submissions:
    """Keeps what it is asked for, and knows no workflow."""

    def __init__(self) -> None:
        self.asks: list[Ask] = []

    async def run(self, ask: Ask, _: object) -> None:
        """Take a wish down."""
        self.asks.append(ask)
        raise NotFound("no workflow named so", field="workflow")


class Counting:
    """The application behind, and how often it was called."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        self.calls += 1
        await self._app(scope, receive, send)


async def post(app: ASGIApp, path: str, headers: dict[str, str]) -> tuple[int, Any]:
    """Send a request; return status and answer."""
    transport = httpx.ASGITransport(Watch(app, body_bytes_max=1000, body_s_max=30.0))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post(path, headers={"X-Request-Id": "r-1", **headers})
    return answer.status_code, answer.json()


class Reading:
    """Reads the inputs that a request brings, after a moment in which its client may leave."""

    async def run(self, ask: Ask, read: Any) -> None:
        """Read them."""
        await read(None, {})


@pytest.mark.parametrize("query", [b"wait=1", b"wait=3e1"], ids=["plain", "left"])
async def test_who_is_gone_before_the_body_is_read_is_no_failure(query: bytes) -> None:
    """Whether all of it was here or not."""
    parts: Any = SimpleNamespace(submissions=Reading(), settings=SimpleNamespace(wait_s_max=60.0))
    app = Watch(PlainRuns(build_api(parts), parts), body_bytes_max=1000, body_s_max=30.0)
    for arrived in (True, False):
        scope = {
            "type": "http",
            "method": "POST",
            "path": PATH,
            "query_string": query,
            "headers": [(b"content-length", b"2")],
            ARRIVED: arrived,
        }
        sent: list[Any] = []

        async def receive() -> dict[str, str]:
            return {"type": "http.disconnect"}

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        await app(scope, receive, send)
        assert 499 == sent[0]["status"]


@pytest.mark.parametrize("case", [*PLAIN, *LEFT])
async def test_both_ways_understand_a_request_alike(case: str) -> None:
    """And only what is plain is spared the way through the framework."""
    path, headers = {**PLAIN, **LEFT}[case]
    submissions = Submissions()
    parts: Any = SimpleNamespace(submissions=submissions, settings=SimpleNamespace(wait_s_max=60.0))
    behind = Counting(build_api(parts))
    short = await post(PlainRuns(behind, parts), path, headers)
    assert (0 if case in PLAIN else 1) == behind.calls
    assert await post(behind, path, headers) == short
    assert submissions.asks[::2] == submissions.asks[1::2]
    assert bool(submissions.asks) or case not in PLAIN

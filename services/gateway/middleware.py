"""What surrounds every request: ids, a body limit, one log line, one metric."""

import asyncio
import re
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.errors import ClawdbotError
from schemas.ids import new_id
from services.errors import BodyTooLarge, BodyTooSlow
from services.gateway.departures import ARRIVED
from services.gateway.errors import FOREIGN, ours, refusal, unexpected
from services.telemetry import get_logger


REQUESTS = Counter("clawdbot_http_requests_total", "Requests answered.", ["method", "status"])
SECONDS = Histogram(
    "clawdbot_http_seconds",
    "Time from the head of a request to the end of its answer.",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_PROBES = {"/livez", "/readyz", "/metrics"}
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
log = get_logger()


@dataclass
class Watch:
    """The outermost layer of the API.

    Args:
        app: What answers.
        body_bytes_max: Largest request body.
        body_s_max: How long a body may take to arrive, seconds.
    """

    app: ASGIApp
    body_bytes_max: int
    body_s_max: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self)
        try:
            await exchange.check_length()
            await self.app(scope, exchange.receive, exchange.send)
        except ClawdbotError as error:
            await exchange.refuse(error)
        except FOREIGN as error:
            await exchange.refuse(ours(error))
        except Exception:
            log.exception("request_crashed", request_id=exchange.request_id)
            if not exchange.status:
                response = unexpected(exchange.request_id, scope["path"])
                await response(scope, receive, exchange.send)
        finally:
            exchange.close()


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Watch) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._body_max = limits.body_bytes_max
        self._body_s = limits.body_s_max
        self._body_over = False
        self._begun = time.perf_counter()
        self._received = self._sent = 0
        headers = dict(reversed(scope["headers"]))  # of several with one name the first counts
        self.request_id = _sane(headers.get(b"x-request-id")) or new_id()
        self.status = 0
        self._length = headers.get(b"content-length", b"")
        self.facts: dict[str, Any] = {}
        self._correlation_id = _sane(headers.get(b"ce-correlationid")) or self.request_id
        scope["state"] = {
            "request_id": self.request_id,
            "correlation_id": self._correlation_id,
            "facts": self.facts,
            "headers": headers,
        }

    async def check_length(self) -> None:
        """Refuse a body that says beforehand that it is too large.

        Raises:
            BodyTooLarge: It is.
        """
        if self._length.isdigit() and int(self._length) > self._body_max:
            raise self._too_large()

    async def receive(self) -> Message:
        """Pass on a piece of the body.

        Raises:
            BodyTooLarge: There is more of it than fits.
            BodyTooSlow: It does not end in time.
        """
        message = await self._next()
        self._body_over = not message.get("more_body", False)
        self._received += len(message.get("body", b""))
        if self._received > self._body_max:
            raise self._too_large()
        return message

    async def _next(self) -> Message:
        if self._body_over or self._scope.get(ARRIVED):
            return await self._receive()  # nothing, or only the end of the connection, is to come
        left_s = self._body_s - (time.perf_counter() - self._begun)
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                return await self._receive()
        except TimeoutError as error:
            raise BodyTooSlow(
                f"the body must be here within {self._body_s:g} seconds", field="body"
            ) from error

    async def send(self, message: Message) -> None:
        """Pass on a piece of the answer, with its id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id.encode()),
            ]
        self._sent += len(message.get("body", b""))
        await self._send(message)

    async def refuse(self, error: ClawdbotError) -> None:
        """Answer with an error, unless an answer has begun."""
        response = refusal(error, self._scope)
        if not self.status:
            await response(self._scope, self._receive, self.send)

    def close(self) -> None:
        """Write the log line and count."""
        seconds = time.perf_counter() - self._begun
        method = self._scope["method"] if self._scope["method"] in _METHODS else "other"
        _counter(method, self.status).inc()
        _histogram(method).observe(seconds)
        if self._scope["path"] in _PROBES and self.status < 400:  # noqa: PLR2004
            return
        log.info(
            "request_handled",
            method=method,
            path=self._scope["path"][:256],
            status=self.status,
            request_id=self.request_id,
            correlation_id=self._correlation_id,
            handle_ms=round(seconds * 1000, 3),
            in_bytes=self._received,
            out_bytes=self._sent,
            **self.facts,
        )

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"a body holds at most {self._body_max} bytes", field="body")


@cache
def _counter(method: str, status: int) -> Counter:
    return REQUESTS.labels(method, str(status))


@cache
def _histogram(method: str) -> Histogram:
    return SECONDS.labels(method)


def _sane(name: bytes | None) -> str:
    return name.decode() if name and _REQUEST_ID.fullmatch(name) else ""

"""Request and reply over core NATS: what `nats micro ls|info|stats` sees of a service.

nats-py's endpoints take one request after the other. Here each request is a task of its own, a
bounded number at a time, and the figures that STATS shows are those of the tasks. Requests take the
express; those that came in one message (`services.bundles`) are answered together as they end.

Source: ADR-32 of NATS, "Service API".
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from nats.aio.client import Client as Nats
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeout
from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER, Request
from nats.micro.service import EndpointStats, Service, ServiceConfig

from events.express import Express, Frame, decode_head, encode_head
from schemas.errors import ClawdbotError, EngineFailed, InvalidArgument, Unavailable
from schemas.ids import new_id
from schemas.messages import Header
from schemas.pieces import Body
from services.bundles import HEAD, HEADERS_BYTES, Item, body_size, bundles, pack, unpack
from services.errors import BodyTooLarge, error_body, status_of
from services.telemetry import LINES, MessageMeter, get_logger


log = get_logger()

VERSION = "0.1.0"
LEAVE_S = 1
"""Longest wait until the server knows that no more requests are wanted."""
CRASHED = "something went wrong here; the log has it under this request_id"


async def _nowhere(_: Body, __: dict[str, str]) -> None:
    """Send a part to nobody."""


@dataclass(slots=True)
class Asked:
    """One request."""

    subject: str
    headers: Mapping[str, str]
    body: bytes
    request_id: str = ""
    """The one it came with, or else a new one."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the handler wants in the canonical log line."""
    send: Callable[[Body, dict[str, str]], Awaitable[None]] = _nowhere
    """Sends a part of the answer, before the reply that ends it."""

    def __post_init__(self) -> None:
        if not self.request_id:
            self.request_id = self.headers.get(Header.REQUEST_ID) or new_id()


@dataclass(slots=True)
class Reply:
    """What goes back to the caller; `error` is None when all went well."""

    body: Body
    headers: dict[str, str] = field(default_factory=dict)
    error: ClawdbotError | None = None

    def fitting(self, bytes_max: int) -> "Reply":
        """Return this reply, or one that says why it does not fit into a message."""
        size = len(self.body)
        if size <= bytes_max:
            return self
        text = f"the answer has {size} bytes, a message holds {bytes_max}"
        where = "; read the run" if Header.RUN_ID in self.headers else "; submit it as a run"
        return replace(self, body=b"", error=BodyTooLarge(text + where))


@dataclass(frozen=True)
class Endpoint:
    """The one endpoint of a service."""

    service: str
    name: str
    subject: str
    description: str
    answer: Callable[[Asked], Awaitable[Reply]]
    """Its errors become the reply."""
    in_flight_max: int
    """Requests at the same time, waiting ones counted; more are answered 503."""
    also: str = ""
    """A subject of this process alone, beside the one it shares with its like."""
    figures: Callable[[], Any] = lambda: None
    """What STATS says as the endpoint's `data`."""


async def announce(nc: Nats, service: str, instance: str, description: str) -> None:
    """Let `nats micro` see a service that answers no requests."""
    await _start(nc, _config(service, instance, description))


async def serve(nc: Nats, group: asyncio.TaskGroup, endpoint: Endpoint, instance: str) -> None:
    """Answer an endpoint's requests in tasks of `group`."""
    express = await Express.of(nc)
    desk = _Desk(express, nc.max_payload, group, endpoint)
    config = _config(endpoint.service, instance, endpoint.description)
    service = await _start(nc, replace(config, stats_handler=desk.correct))
    express.divert(desk.on_frame)
    await service.add_endpoint(name=endpoint.name, subject=endpoint.subject, handler=_never)
    also = await express.subscribe(endpoint.also, desk.on_frame) if endpoint.also else None
    group.create_task(_leave_at_the_end(nc, service, also))


async def _leave_at_the_end(nc: Nats, service: Service, also: Subscription | None) -> None:
    """Take no more requests before the process ends; what still came in is refused, not lost."""
    try:
        await asyncio.Event().wait()
    finally:
        with contextlib.suppress(NatsError):  # the bus is away, and sends nothing either
            if also is not None:
                await also.unsubscribe()
            await service.stop()
            await nc.flush(LEAVE_S)


async def _never(request: Request) -> None:
    raise AssertionError(f"{request.subject} did not take the express")


def _config(service: str, instance: str, description: str) -> ServiceConfig:
    name, metadata = f"clawdbot-{service}", {"instance": instance}
    return ServiceConfig(name=name, version=VERSION, description=description, metadata=metadata)


async def _start(nc: Nats, config: ServiceConfig) -> Service:
    """Return a service that others can see, at the latest when the bus is back."""
    service = Service(nc, config)
    try:
        await service.start()
    except NatsTimeout as error:  # its subscriptions are made all the same, now or at a reconnect
        log.info("announce_unconfirmed", error=str(error))
    return service


class _From(NamedTuple):
    """Where an answer goes."""

    reply: str
    token: str | None = None
    """Of a request that came in a bundle, and is answered in one."""


class _Desk:
    """Takes requests, counts them, and answers each exactly once."""

    def __init__(
        self, express: Express, bytes_max: int, group: asyncio.TaskGroup, endpoint: Endpoint
    ) -> None:
        self._express = express
        self._body_max = bytes_max - HEADERS_BYTES
        self._group = group
        self._endpoint = endpoint
        self._meter = MessageMeter(endpoint.service, endpoint.name)
        self._meter.in_flight.set_function(lambda: self._working)
        self._working = self._done = self._errors = self._busy_ns = 0
        self._last_error = ""
        self._out: dict[str, list[Item[Body]]] = {}
        """Answers of this turn of the loop, by the address of their bundle."""

    def correct(self, stats: EndpointStats) -> Any:
        """Put the tasks' figures in place of those of nats-py, which sees no request."""
        stats.num_requests = self._done
        stats.num_errors = self._errors
        stats.last_error = self._last_error
        stats.processing_time = self._busy_ns
        stats.average_processing_time = self._busy_ns // max(1, self._done)
        return self._endpoint.figures()

    def on_frame(self, frame: Frame) -> None:
        """Begin to work on a message."""
        if frame.head != HEAD:
            headers = decode_head(frame.head) if frame.head else {}
            caller = _From(frame.reply)
            send = partial(self._send_part, caller)
            self._take(caller, Asked(frame.subject, headers, frame.data, send=send))
            return
        try:
            items = unpack(frame.data)
        except InvalidArgument as error:
            asked = Asked(frame.subject, {}, frame.data)
            self._finish(_From(frame.reply), asked, Reply(b"", error=error))
            return
        for token, headers, body in items:
            self._take(_From(frame.reply, token), Asked(frame.subject, headers, body))

    def _take(self, caller: _From, asked: Asked) -> None:
        """Begin to work on a request, unless there are too many."""
        if self._working >= self._endpoint.in_flight_max:
            self._finish(caller, asked, _refusal("too many requests wait here; try again"))
            return
        self._working += 1
        work = self._work(caller, asked)
        try:
            task = self._group.create_task(work)
        except RuntimeError:  # the group is shutting down
            work.close()
            self._working -= 1
            self._finish(caller, asked, _refusal("this process is stopping; try again"))
        else:
            task.add_done_callback(partial(self._over, caller, asked))

    def _over(self, caller: _From, asked: Asked, task: asyncio.Task[None]) -> None:
        """Answer for a task that was cancelled before it began."""
        if task.cancelled():
            self._working -= 1
            self._finish(caller, asked, _refusal("this process is stopping; try again"))

    async def _work(self, caller: _From, asked: Asked) -> None:
        begun = time.perf_counter_ns()
        try:
            reply = await self._answer(asked)
        except asyncio.CancelledError:  # the task ends with its answer, and so is not cancelled
            reply = _refusal("this process is stopping; try again")
        finally:
            self._working -= 1
        self._finish(caller, asked, reply, time.perf_counter_ns() - begun)

    async def _answer(self, asked: Asked) -> Reply:
        try:
            return await self._endpoint.answer(asked)
        except ClawdbotError as error:
            return Reply(b"", error=error)
        except Exception:
            log.exception("request_crashed", subject=asked.subject, request_id=asked.request_id)
            return Reply(b"", error=EngineFailed(CRASHED))

    def _finish(self, caller: _From, asked: Asked, reply: Reply, busy_ns: int = 0) -> None:
        """Answer, count, and write the canonical line."""
        reply = reply.fitting(self._body_max)
        code = "200" if reply.error is None else str(status_of(reply.error))
        answered = self._respond(caller, asked.request_id, reply, code)
        self._done += 1
        self._busy_ns += busy_ns
        if reply.error is not None:
            self._errors += 1
            self._last_error = f"{code}:{reply.error.message}"
        outcome = "ok" if reply.error is None else "retry" if reply.error.retryable else "terminal"
        self._meter.handled(outcome, busy_ns / 1e9)
        line = {
            "outcome": outcome,
            "subject": asked.subject,
            "correlation_id": asked.headers.get(Header.CORRELATION_ID),
            "request_id": asked.request_id,
            "run_id": reply.headers.get(Header.RUN_ID),
            "code": code,
            "error": reply.error.message if reply.error is not None else None,
            "answered": answered,
            "handle_ms": round(busy_ns / 1e6, 3),
            "in_bytes": len(asked.body),
            "out_bytes": len(reply.body),
        }
        log.info("message_handled", **(line | asked.facts))
        if caller.token is None:
            LINES.leave()  # who has the answer can read the line; a bundle leaves a turn later

    def _respond(self, caller: _From, request_id: str, reply: Reply, code: str) -> bool:
        """Send a reply; a caller that cannot be reached is no reason to stop serving others."""
        if not caller.reply:
            return False
        headers, body = reply.headers, reply.body
        if reply.error is not None:
            text = " ".join(reply.error.message.split())[:256]
            headers = {**headers, ERROR_HEADER: text, ERROR_CODE_HEADER: code}
            body = error_body(reply.error, request_id)
        if caller.token is not None:
            if not self._out:
                asyncio.get_running_loop().call_soon(self._flush)
            self._out.setdefault(caller.reply, []).append(Item(caller.token, headers, body))
            return True
        return self._publish(caller.reply, body, encode_head(headers) if headers else b"")

    async def _send_part(self, caller: _From, body: Body, headers: dict[str, str]) -> None:
        self._publish(caller.reply, body, encode_head(headers))

    def _flush(self) -> None:
        """Send the answers of this turn that belong to bundles."""
        out, self._out = self._out, {}
        for reply, items in out.items():
            for together in bundles(items, body_size):
                self._publish(reply, pack(together), HEAD)

    def _publish(self, reply: str, body: Body, head: bytes) -> bool:
        try:
            self._express.publish(reply, body, head)
        except NatsError:  # the bus is away for too long
            return False
        return True


def _refusal(text: str) -> Reply:
    return Reply(b"", error=Unavailable(text))

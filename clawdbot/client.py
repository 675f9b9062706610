"""The clients: the same operations, waiting or awaiting."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from clawdbot import protocol
from clawdbot.protocol import Call
from clawdbot.results import Run
from clawdbot.settings import read
from schemas.api import EventView, ModelView, RunPage, WorkflowView
from schemas.errors import RetryableError
from schemas.messages import Control
from schemas.values import Binary, BlobRef, Tensor, to_wire
from schemas.workflow import Deployment


T = TypeVar("T")
WAIT_S = 60.0
STREAM_SILENCE_S = 45.0
TERMINAL = {"RunCompleted", "RunFailed", "RunRejected", "RunCancelled"}


def address(url: str | None) -> str:
    """Return the gateway's address: the argument, else `CLAWDBOT_URL`, else this machine."""
    return (url or read().url).rstrip("/")


class Client:
    """Talks to a gateway.

    Args:
        url: The gateway's address; by default `CLAWDBOT_URL`, else `http://127.0.0.1:8080`.

    Every method raises the errors of `schemas.errors`; what may work later is tried again, as long
    as that is safe.
    """

    def __init__(self, url: str | None = None) -> None:
        self.url = address(url)
        self._http = httpx.Client(base_url=self.url)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def deploy(self, deployment: Deployment) -> WorkflowView:
        """Deploy a workflow; the same again changes nothing."""
        return self._do(protocol.deploy(deployment))

    def workflows(self) -> tuple[WorkflowView, ...]:
        """Return every workflow's newest version."""
        return self._do(protocol.workflows())

    def workflow(self, name: str, version: int | None = None) -> WorkflowView:
        """Return one workflow."""
        return self._do(protocol.workflow(name, version))

    def run(
        self,
        workflow: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        wait_s: float = WAIT_S,
        idempotency_key: str | None = None,
    ) -> Run:
        """Start a run and wait for its end.

        Args:
            workflow: Name of a deployed workflow.
            inputs: By name: text, JSON, `Path`, `bytes`, `Binary`, `BlobRef` or `Tensor`.
            wait_s: How long to wait; 0 returns at once.
            idempotency_key: The same key with the same inputs is the same run, for ever.

        Returns:
            The run, finished or as far as it is.
        """
        wire, uploads = protocol.prepare(inputs or {})
        for upload in uploads:
            wire[upload.name] = to_wire(self.put_blob(upload.data, upload.media_type))
        return self._do(protocol.submit(workflow, wire, wait_s, idempotency_key))

    def get(self, run_id: str) -> Run:
        """Return a run as it is now."""
        return self._do(protocol.run(run_id))

    def runs(
        self,
        *,
        workflow: str | None = None,
        status: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> RunPage:
        """Return a page of runs, newest first."""
        return self._do(protocol.runs(workflow, status, limit, cursor))

    def cancel(self, run_id: str, reason: str = "") -> None:
        """Call a run off."""
        self._do(protocol.control(run_id, Control(action="cancel", reason=reason)))

    def events(self, run_id: str) -> tuple[EventView, ...]:
        """Return a run's events so far."""
        return self._do(protocol.events(run_id))

    def follow(self, run_id: str, after: int = 0) -> Generator[EventView, None, None]:
        """Yield a run's events as they happen, to its end; a broken connection is resumed."""
        attempt = 0
        while True:
            try:
                for event in self._stream(protocol.follow(run_id, after)):
                    if event is None:
                        return
                    after, attempt = event.id, 0
                    yield event
                    if event.type in TERMINAL:
                        return
            except RetryableError:
                if attempt + 1 >= protocol.ATTEMPTS_MAX:
                    raise
            time.sleep(protocol.delay_before(attempt, None))
            attempt += 1

    def replay(self, run_id: str, until: int | None = None) -> Run:
        """Return a run folded from its log, up to an event; no model is called."""
        return self._do(protocol.replay(run_id, until))

    def put_blob(self, data: bytes, media_type: str = "application/octet-stream") -> BlobRef:
        """Keep bytes."""
        return self._do(protocol.put_blob(data, media_type))

    def fetch(self, value: BlobRef | Binary | Tensor) -> bytes:
        """Return the bytes of a value, from wherever they are."""
        if isinstance(value, BlobRef):
            return self._do(protocol.get_blob(value.sha256))
        return value.data

    def models(self) -> tuple[ModelView, ...]:
        """Return the catalogue and who serves it."""
        return self._do(protocol.models())

    def _do(self, call: Call[T]) -> T:
        attempt = 0
        while True:
            last = attempt + 1 >= protocol.ATTEMPTS_MAX
            answer: httpx.Response | None = None
            try:
                answer = self._http.send(_request(self._http, call))
                if answer.status_code not in protocol.RETRYABLE or last:
                    break
            except httpx.TransportError as error:
                if last:
                    raise protocol.unreachable(self.url, error) from error
            time.sleep(protocol.delay_before(attempt, answer))
            attempt += 1
        protocol.check(answer)
        return call.read(answer)

    def _stream(self, call: Call[None]) -> Generator[EventView | None, None, None]:
        """Yield the events of one connection; None when nothing will ever follow."""
        event: dict[str, str] = {}
        try:
            with contextlib.closing(
                self._http.send(_request(self._http, call, STREAM_SILENCE_S), stream=True)
            ) as answer:
                if not answer.is_success:
                    answer.read()
                    protocol.check(answer)
                if answer.status_code == httpx.codes.NO_CONTENT:
                    yield None
                for line in answer.iter_lines():
                    found = protocol.with_data(line, event)
                    if found is not None:
                        yield found
        except httpx.TransportError as error:
            raise protocol.unreachable(self.url, error) from error


class AsyncClient:
    """`Client` for asyncio; see there."""

    def __init__(self, url: str | None = None) -> None:
        self.url = address(url)
        self._http = httpx.AsyncClient(base_url=self.url)

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def deploy(self, deployment: Deployment) -> WorkflowView:
        """Deploy a workflow; the same again changes nothing."""
        return await self._do(protocol.deploy(deployment))

    async def workflows(self) -> tuple[WorkflowView, ...]:
        """Return every workflow's newest version."""
        return await self._do(protocol.workflows())

    async def workflow(self, name: str, version: int | None = None) -> WorkflowView:
        """Return one workflow."""
        return await self._do(protocol.workflow(name, version))

    async def run(
        self,
        workflow: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        wait_s: float = WAIT_S,
        idempotency_key: str | None = None,
    ) -> Run:
        """Start a run and wait for its end, as `Client.run` does."""
        wire, uploads = await asyncio.to_thread(protocol.prepare, inputs or {})
        for upload in uploads:
            wire[upload.name] = to_wire(await self.put_blob(upload.data, upload.media_type))
        return await self._do(protocol.submit(workflow, wire, wait_s, idempotency_key))

    async def get(self, run_id: str) -> Run:
        """Return a run as it is now."""
        return await self._do(protocol.run(run_id))

    async def runs(
        self,
        *,
        workflow: str | None = None,
        status: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> RunPage:
        """Return a page of runs, newest first."""
        return await self._do(protocol.runs(workflow, status, limit, cursor))

    async def cancel(self, run_id: str, reason: str = "") -> None:
        """Call a run off."""
        await self._do(protocol.control(run_id, Control(action="cancel", reason=reason)))

    async def events(self, run_id: str) -> tuple[EventView, ...]:
        """Return a run's events so far."""
        return await self._do(protocol.events(run_id))

    async def follow(self, run_id: str, after: int = 0) -> AsyncGenerator[EventView, None]:
        """Yield a run's events as they happen, to its end; a broken connection is resumed."""
        attempt = 0
        while True:
            try:
                async for event in self._stream(protocol.follow(run_id, after)):
                    if event is None:
                        return
                    after, attempt = event.id, 0
                    yield event
                    if event.type in TERMINAL:
                        return
            except RetryableError:
                if attempt + 1 >= protocol.ATTEMPTS_MAX:
                    raise
            await asyncio.sleep(protocol.delay_before(attempt, None))
            attempt += 1

    async def replay(self, run_id: str, until: int | None = None) -> Run:
        """Return a run folded from its log, up to an event; no model is called."""
        return await self._do(protocol.replay(run_id, until))

    async def put_blob(self, data: bytes, media_type: str = "application/octet-stream") -> BlobRef:
        """Keep bytes."""
        return await self._do(protocol.put_blob(data, media_type))

    async def fetch(self, value: BlobRef | Binary | Tensor) -> bytes:
        """Return the bytes of a value, from wherever they are."""
        if isinstance(value, BlobRef):
            return await self._do(protocol.get_blob(value.sha256))
        return value.data

    async def models(self) -> tuple[ModelView, ...]:
        """Return the catalogue and who serves it."""
        return await self._do(protocol.models())

    async def _do(self, call: Call[T]) -> T:
        attempt = 0
        while True:
            last = attempt + 1 >= protocol.ATTEMPTS_MAX
            answer: httpx.Response | None = None
            try:
                answer = await self._http.send(_request(self._http, call))
                if answer.status_code not in protocol.RETRYABLE or last:
                    break
            except httpx.TransportError as error:
                if last:
                    raise protocol.unreachable(self.url, error) from error
            await asyncio.sleep(protocol.delay_before(attempt, answer))
            attempt += 1
        protocol.check(answer)
        return call.read(answer)

    async def _stream(self, call: Call[None]) -> AsyncGenerator[EventView | None, None]:
        """Yield the events of one connection; None when nothing will ever follow."""
        event: dict[str, str] = {}
        try:
            request = _request(self._http, call, STREAM_SILENCE_S)
            async with contextlib.aclosing(await self._http.send(request, stream=True)) as answer:
                if not answer.is_success:
                    await answer.aread()
                    protocol.check(answer)
                if answer.status_code == httpx.codes.NO_CONTENT:
                    yield None
                async for line in answer.aiter_lines():
                    found = protocol.with_data(line, event)
                    if found is not None:
                        yield found
        except httpx.TransportError as error:
            raise protocol.unreachable(self.url, error) from error


def _request(
    http: httpx.Client | httpx.AsyncClient, call: Call[Any], patience_s: float | None = None
) -> httpx.Request:
    return http.build_request(
        call.method,
        call.path,
        params=dict(call.params),
        headers=dict(call.headers),
        content=call.content,
        timeout=patience_s or call.patience_s,
    )

"""Following runs: their events as they happen, and what their nodes say between them."""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import Any

import httpx

from clawdbot import protocol
from clawdbot.inputs import prepare
from clawdbot.protocol import Call
from schemas.api import EventView, NodePart
from schemas.errors import RetryableError
from schemas.values import BlobRef, Wire, to_wire


Followed = EventView | NodePart
_Next = Callable[[int], Call[None]]
"""Returns what is asked, with the last event that was seen."""


class Following(ABC):
    """The part of `Client` that follows runs."""

    url: str
    _http: httpx.Client

    @abstractmethod
    def put_blob(self, data: bytes, media_type: str = "application/octet-stream") -> BlobRef:
        """Keep bytes."""

    def follow(self, run_id: str, after: int = 0) -> Generator[EventView, None, None]:
        """Yield a run's events as they happen, to its end; a broken connection is resumed."""
        for item in self._followed(lambda seen: protocol.follow(run_id, seen), after):
            if isinstance(item, EventView):
                yield item

    def stream(
        self,
        workflow: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Generator[Followed, None, None]:
        """Start a run; yield its events as they happen, and what its nodes say between them.

        A `NodePart` holds what is new in the outputs of a node that computes still, of models that
        stream; a later `attempt` begins anew, and `NodeCompleted` has the whole. A connection that
        breaks is resumed: no event is lost, a part may be. The run goes on if nobody listens.

        Args:
            workflow: Name of a deployed workflow.
            inputs: As of `run`.
            run_id: An id of your own, to speak of the run while it is streamed.
            idempotency_key: As of `run`; one of the two.
        """
        named = protocol.named(run_id, idempotency_key)
        wire = self._wire(inputs)
        yield from self._followed(protocol.stream(workflow, wire, named), 0)

    def _wire(self, inputs: Mapping[str, Any] | None) -> Wire:
        """Return inputs as they are sent; large ones are uploaded."""
        wire, uploads = prepare(inputs or {})
        for upload in uploads:
            wire[upload.name] = to_wire(self.put_blob(upload.data, upload.media_type))
        return wire

    def _followed(self, ask: _Next, after: int) -> Generator[Followed, None, None]:
        attempt = 0
        while True:
            try:
                for item in self._stream(ask(after)):
                    if item is None:
                        return
                    attempt = 0
                    yield item
                    if isinstance(item, EventView):
                        after = item.id
                        if item.type in protocol.TERMINAL:
                            return
            except RetryableError:
                if attempt + 1 >= protocol.ATTEMPTS_MAX:
                    raise
            time.sleep(protocol.delay_before(attempt, None))
            attempt += 1

    def _stream(self, call: Call[None]) -> Generator[Followed | None, None, None]:
        """Yield what comes over one connection; None when nothing will ever follow."""
        event: dict[str, str] = {}
        try:
            with contextlib.closing(
                self._http.send(
                    protocol.request(self._http, call, protocol.STREAM_SILENCE_S), stream=True
                )
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


class AsyncFollowing(ABC):
    """The part of `AsyncClient` that follows runs; see `Following`."""

    url: str
    _http: httpx.AsyncClient

    @abstractmethod
    async def put_blob(self, data: bytes, media_type: str = "application/octet-stream") -> BlobRef:
        """Keep bytes."""

    async def follow(self, run_id: str, after: int = 0) -> AsyncGenerator[EventView, None]:
        """Yield a run's events as they happen, to its end; a broken connection is resumed."""
        followed = self._followed(lambda seen: protocol.follow(run_id, seen), after)
        async with contextlib.aclosing(followed) as items:
            async for item in items:
                if isinstance(item, EventView):
                    yield item

    async def stream(
        self,
        workflow: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncGenerator[Followed, None]:
        """Start a run; yield its events, and what its nodes say, as `Client.stream` does."""
        named = protocol.named(run_id, idempotency_key)
        wire = await self._wire(inputs)
        followed = self._followed(protocol.stream(workflow, wire, named), 0)
        async with contextlib.aclosing(followed) as items:
            async for item in items:
                yield item

    async def _wire(self, inputs: Mapping[str, Any] | None) -> Wire:
        """Return inputs as they are sent; large ones are uploaded."""
        wire, uploads = await asyncio.to_thread(prepare, inputs or {})
        for upload in uploads:
            wire[upload.name] = to_wire(await self.put_blob(upload.data, upload.media_type))
        return wire

    async def _followed(self, ask: _Next, after: int) -> AsyncGenerator[Followed, None]:
        attempt = 0
        while True:
            try:
                async with contextlib.aclosing(self._stream(ask(after))) as items:
                    async for item in items:
                        if item is None:
                            return
                        attempt = 0
                        yield item
                        if isinstance(item, EventView):
                            after = item.id
                            if item.type in protocol.TERMINAL:
                                return
            except RetryableError:
                if attempt + 1 >= protocol.ATTEMPTS_MAX:
                    raise
            await asyncio.sleep(protocol.delay_before(attempt, None))
            attempt += 1

    async def _stream(self, call: Call[None]) -> AsyncGenerator[Followed | None, None]:
        """Yield what comes over one connection; None when nothing will ever follow."""
        event: dict[str, str] = {}
        try:
            request = protocol.request(self._http, call, protocol.STREAM_SILENCE_S)
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

"""Following a run: its events as server-sent events, and what its nodes say between them."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Annotated

from fastapi import Header, Request
from starlette.responses import StreamingResponse

from events.subjects import RunKey
from events.tape import Recorded, Tape, event_view
from schemas.api import NodePart, RunView
from schemas.errors import ClawdbotError, InvalidArgument
from services.gateway.listening import between, listening
from services.gateway.routes import Parts
from services.gateway.silence import ALIVE, with_silence
from services.gateway.waiters import Feed, Landed
from services.telemetry import get_logger


log = get_logger()
EVENT_STREAM = "text/event-stream"
ID_DIGITS_MAX = 15
LastEventId = Annotated[str | None, Header()]


@dataclass(frozen=True)
class Wish:
    """What a client wants of a run."""

    after: int = 0
    """The event after which it begins."""
    with_parts: bool = False
    """Whether it wants what nodes say while they compute."""


def wants_stream(request: Request) -> bool:
    """Tell whether a client asks for events as they happen."""
    return EVENT_STREAM in request.headers.get("accept", "")


def after_of(last_event_id: str | None) -> int:
    """Return the event after which a client wants to go on.

    Raises:
        InvalidArgument: It is none.
    """
    after = last_event_id or "0"
    if not after.isdecimal() or len(after) > ID_DIGITS_MAX:
        raise InvalidArgument("send the id of the last event you saw", field="Last-Event-ID")
    return int(after)


async def streamed(
    parts: Parts, key: RunKey, wish: Wish, begin: Callable[[], Awaitable[RunView]] | None = None
) -> StreamingResponse:
    """Answer with a run's events.

    Args:
        parts: What the routes stand on.
        key: The run.
        wish: What is wanted of it.
        begin: Starts it, once its nodes are listened to.

    Raises:
        ClawdbotError: It could not be started, or too many are followed.
    """
    stream = _stream(parts, key, wish, begin)
    try:
        first = await anext(stream)  # what goes wrong before it has a status of its own
    except BaseException:
        await stream.aclose()
        raise
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    if begin is not None:
        headers["Location"] = f"/v1/runs/{key.run_id}"
    return StreamingResponse(_behind(first, stream), media_type=EVENT_STREAM, headers=headers)


async def _behind(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


async def _stream(
    parts: Parts, key: RunKey, wish: Wish, begin: Callable[[], Awaitable[RunView]] | None
) -> AsyncGenerator[bytes, None]:
    """Yield a run's events as server-sent events, and a comment when nothing happens.

    Source: HTML Standard, section 9.2.
    """
    with parts.waiters.feed(key) as feed:
        async with AsyncExitStack() as stack:
            source = await _source(parts, feed, wish, stack)
            if begin is not None:
                await begin()
            yield b"retry: 1000\n\n"
            tape = Tape()
            try:
                async for item in source:
                    if item is None:
                        yield ALIVE
                    elif isinstance(item, list):
                        yield b"".join(map(_part_bytes, item))
                    else:
                        yield _fresh(tape, item, wish.after)
                    if tape.terminal:
                        return
            except ClawdbotError as error:
                log.warning("stream_broken", run_id=key.run_id, error=error.message)


async def _source(
    parts: Parts, feed: Feed, wish: Wish, stack: AsyncExitStack
) -> AsyncIterator[Landed | list[NodePart] | None]:
    """Return commits, parts where they are wanted, and None for a silence."""
    source: AsyncGenerator[Landed | list[NodePart], None]
    source = await stack.enter_async_context(aclosing(parts.waiters.follow(feed)))
    if wish.with_parts:
        listener = await stack.enter_async_context(listening(parts.bus, feed.key))
        source = await stack.enter_async_context(aclosing(between(source, listener)))
    alive = with_silence(source, parts.settings.heartbeat_s)
    return await stack.enter_async_context(aclosing(alive))


def _fresh(tape: Tape, landed: Landed, after: int) -> bytes:
    """Put a commit on the tape; return its events that the client has not seen."""
    records = tape.add(landed.commit, landed.sequence)
    return b"".join(_event_bytes(record) for record in records if record.ordinal > after)


def _event_bytes(record: Recorded) -> bytes:
    view = event_view(record)
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (
        record.ordinal,
        record.type.encode(),
        view.model_dump_json().encode(),
    )


def _part_bytes(part: NodePart) -> bytes:
    """Return a part, without an id: it is not what a client goes on after."""
    return b"event: part\ndata: %s\n\n" % part.model_dump_json().encode()

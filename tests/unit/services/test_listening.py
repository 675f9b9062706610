"""What steps say: by workers, in order and bounded; to followers, between the events."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from events.express import Frame
from schemas.api import NodePart
from schemas.messages import Task
from schemas.values import Binary
from services.gateway import listening
from services.gateway.listening import Listener, between
from services.workers import chunks
from services.workers.chunks import Chunks


def task() -> Task:
    """Return an attempt."""
    return Task(
        tenant="default", run_id="r", node_id="each[0]/a", attempt=2, model="m", inputs={},
        scheduled_at=0.0, deadline=1.0,
    )  # fmt: skip


def part(number: int) -> NodePart:
    """Return a part."""
    return NodePart(node="a", attempt=1, part=number, outputs={"text": str(number)})


def hear(listener: Listener, *numbers: int) -> None:
    """Have parts heard."""
    for number in numbers:
        listener.hear(Frame("s", "", b"", part(number).model_dump_json().encode()))


async def test_an_engine_says_parts_from_its_thread() -> None:
    """They are published on the loop, in order, each with its number."""
    said: list[tuple[str, NodePart]] = []

    def say(subject: str, data: bytes) -> None:
        said.append((subject, NodePart.model_validate_json(data)))

    emit = Chunks(say).of(task())

    def compute() -> None:
        assert threading.current_thread() is not threading.main_thread()
        emit({"text": "a"})
        emit({"audio": Binary(media_type="audio/wav", data=b"x")})

    await asyncio.to_thread(compute)
    audio = {"$binary": {"media_type": "audio/wav", "data": "eA=="}}
    assert ["clawdbot.v1.default.chunk.r.each=5b0=5d=2fa"] * 2 == [subject for subject, _ in said]
    assert [
        NodePart(node="each[0]/a", attempt=2, part=1, outputs={"text": "a"}),
        NodePart(node="each[0]/a", attempt=2, part=2, outputs={"audio": audio}),
    ] == [found for _, found in said]


async def test_more_than_can_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is left out, and the numbers show it; what comes later is said again."""
    monkeypatch.setattr(chunks, "CHUNKS_MAX", 2)
    said: list[int] = []
    emit = Chunks(lambda _, data: said.append(NodePart.model_validate_json(data).part)).of(task())
    for _ in range(4):
        emit({"text": "a"})
    await asyncio.sleep(0)
    emit({"text": "a"})
    await asyncio.sleep(0)
    assert [1, 2, 5] == said


async def test_a_listener_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a slow client does not take is left out; what is no part is passed over."""
    monkeypatch.setattr(listening, "HEARD_MAX", 2)
    listener = Listener()
    listener.hear(Frame("s", "", b"", b"{}"))
    hear(listener, 1, 2, 3)
    assert [part(1), part(2)] == listener.take()
    assert [] == listener.take()
    hear(listener, 4)
    assert [part(4)] == listener.take()


async def test_parts_come_between_events() -> None:
    """Nothing before the first event; what was said before an event comes before it."""
    listener, events = Listener(), asyncio.Queue[Any]()

    async def source() -> AsyncGenerator[str, None]:
        while (event := await events.get()) is not None:
            yield event

    hear(listener, 1)
    async with aclosing(source()) as inner, aclosing(between(inner, listener)) as merged:
        events.put_nowait("started")
        assert "started" == await anext(merged)
        assert [part(1)] == await anext(merged)
        hear(listener, 2, 3)
        events.put_nowait("completed")
        assert [part(2), part(3)] == await anext(merged)
        assert "completed" == await anext(merged)
        events.put_nowait(None)
        assert [] == [item async for item in merged]


async def test_a_follower_that_leaves() -> None:
    """Leaves nothing behind, wherever it was."""

    async def source() -> AsyncGenerator[str, None]:
        yield "started"
        await asyncio.Event().wait()

    async with aclosing(source()) as inner, aclosing(between(inner, Listener())) as merged:
        assert "started" == await anext(merged)
        waiting = asyncio.ensure_future(anext(merged))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
    assert [asyncio.current_task()] == list(asyncio.all_tasks())

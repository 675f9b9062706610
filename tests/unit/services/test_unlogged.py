"""Unlogged inferences: withdrawn before or while they run, and sent in parts."""

import asyncio
from collections.abc import Mapping

import pytest

from schemas.errors import Cancelled, DeadlineExceeded, EngineFailed, ResourceExhausted
from schemas.values import Value
from services.workers import unlogged
from services.workers.unlogged import Parts, Unlogged


async def test_one_that_runs_is_stopped() -> None:
    """The sign is set for the engine's thread, and the error says why."""
    known, begun = Unlogged(), asyncio.Event()
    signs = []

    async def work() -> None:
        with known.under_way("a", 10, "m") as sign:
            signs.append(sign)
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await begun.wait()
    known.withdraw("b")
    known.withdraw("a")
    with pytest.raises(Cancelled, match="withdrew"):
        await task
    assert signs[0].is_stopped()
    assert {} == known._running


async def test_one_that_is_still_to_come_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it is remembered; others are not touched, nor those without a name."""
    monkeypatch.setattr(unlogged, "WITHDRAWN_MAX", 2)
    known = Unlogged()
    for request_id in ("a", "b", "c"):
        known.withdraw(request_id)
    with pytest.raises(Cancelled), known.under_way("c", None, "m"):
        raise AssertionError("it began")
    for request_id in ("a", "d", ""):
        with known.under_way(request_id, None, "m"):
            pass


async def test_too_late_is_another_error() -> None:
    """Withdrawn it was not."""
    known = Unlogged()
    text = r"'m' did not answer within 0\.001 seconds"
    with pytest.raises(DeadlineExceeded, match=text), known.under_way("a", 0.001, "m"):
        await asyncio.Event().wait()
    assert {} == known._running


async def test_parts_leave_in_order_from_a_thread() -> None:
    """All that the engine gave is sent before the block ends."""
    heard: list[tuple[Value, str]] = []

    async def send(outputs: Mapping[str, Value], headers: dict[str, str]) -> None:
        await asyncio.sleep(0)
        heard.append((outputs["n"], headers["Clawdbot-Part"]))

    parts = Parts(send)

    def engine() -> None:
        for number in range(100):
            parts.emit({"n": number})

    async with parts.sending():
        await asyncio.to_thread(engine)
    assert [(number, str(number + 1)) for number in range(100)] == heard
    assert 100 == parts.sent


async def test_too_many_parts_and_an_engine_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine hears it; its own error is the block's, and nothing is left running."""
    monkeypatch.setattr(unlogged, "PARTS_MAX", 3)

    async def never(_: Mapping[str, Value], __: dict[str, str]) -> None:
        await asyncio.Event().wait()

    parts = Parts(never)

    async def engine() -> None:
        async with parts.sending():
            for number in range(4):
                parts.emit({"n": number})
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            with pytest.raises(ResourceExhausted, match="3 parts"):
                parts.emit({"n": 5})
            raise EngineFailed("no")

    with pytest.raises(EngineFailed):
        await engine()

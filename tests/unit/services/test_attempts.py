"""Attempts in a worker: what stops them, and when an engine is free again."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from typing_extensions import override

from events.subjects import RunKey
from schemas import catalogue
from schemas.errors import Cancelled
from schemas.messages import Abandoned, Task
from schemas.values import Value
from services.workers.attempts import Attempts, Stopped
from services.workers.engine import Engine, Request
from services.workers.models import Capacity, Models
from tests.support.clock import ManualClock


KEY = RunKey("default", "r")


def task(node_id: str = "n", attempt: int = 1, *, deadline: float = 1000.0) -> Task:
    """Return a task."""
    return Task(
        tenant=KEY.tenant,
        run_id=KEY.run_id,
        node_id=node_id,
        attempt=attempt,
        model="echo",
        inputs={},
        scheduled_at=0.0,
        deadline=deadline,
    )


async def test_an_attempt_that_is_abandoned_stops() -> None:
    """Only the one that was named; its thread is told as well."""
    attempts = Attempts(ManualClock(0.0))
    signs: list[threading.Event] = []

    async def work(number: int) -> str:
        try:
            async with attempts.under_way(task(attempt=number)) as sign:
                signs.append(sign)
                await asyncio.sleep(0.05 if number == 2 else 60)
        except Stopped as stop:
            return stop.reason
        return "done"

    async with asyncio.TaskGroup() as group:
        first, second = (group.create_task(work(number)) for number in (1, 2))
        await asyncio.sleep(0)
        attempts.abandon(KEY, Abandoned(attempts=(("n", 1),)))
    assert ("cancelled", "done") == (first.result(), second.result())
    assert signs[0].is_set()


async def test_what_was_abandoned_or_is_late_does_not_begin() -> None:
    """Nor what is late by the clock."""
    clock = ManualClock(0.0)
    attempts = Attempts(clock)
    attempts.abandon(KEY, Abandoned(attempts=(("n", 1),)))
    for number, later, reason in ((1, 0.0, "cancelled"), (2, 1000.0, "late")):
        clock.advance(later)
        with pytest.raises(Stopped, match=reason):
            async with attempts.under_way(task(attempt=number)):
                pytest.fail("it began")


async def test_an_error_of_the_work_is_its_own() -> None:
    """A timeout inside is not taken for the attempt's."""
    attempts = Attempts(ManualClock(0.0))
    with pytest.raises(TimeoutError):
        async with attempts.under_way(task()):
            raise TimeoutError


class Slow(Engine):
    """Computes until it is told to stop, or let go."""

    def __init__(self) -> None:
        super().__init__(catalogue.load().models["echo"], Path())
        self.begun, self.let_go = threading.Event(), threading.Event()
        self.inside = 0

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        self.inside += 1
        assert 1 == self.inside, "two threads in one engine"
        self.begun.set()
        try:
            while not self.let_go.wait(0.005):
                if batch[0].is_stopped():
                    raise Cancelled("nobody waits")
            return [{}]
        finally:
            self.inside -= 1


@pytest.mark.parametrize("cooperates", [True, False])
async def test_an_engine_is_free_when_its_thread_is(cooperates: bool) -> None:
    """Its answer is discarded; the next request begins once the thread is over."""
    engine = Slow()
    models = Models(catalogue.load(), "text", Path(), allow_fallback=True, capacity=Capacity(2))
    models._cache.put(models.hold("slow", engine))
    sign = threading.Event()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(models.infer("slow", Request({}, is_stopped=sign.is_set)))
        await asyncio.to_thread(engine.begun.wait)
        engine.begun.clear()
        first.cancel()
        second = group.create_task(models.infer("slow", Request({})))
        await asyncio.sleep(0.05)
        assert (1, False) == (engine.inside, engine.begun.is_set())
        if cooperates:
            sign.set()
            assert await asyncio.to_thread(engine.begun.wait, 5)
        engine.let_go.set()
        await second
    models.close()

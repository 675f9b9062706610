"""A worker that goes on with what is quick."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from events.blobs import MemoryBlobStore
from events.chains import following
from events.memo import MemoryMemoStore
from events.subjects import task as task_subject
from schemas import catalogue
from schemas.messages import Task, TaskResult, pack, unpack
from services.runtime import Delivery
from services.workers.attempts import Attempts
from services.workers.engine import Request
from services.workers.handlers import Handlers, Means
from services.workers.models import Capacity, Models
from services.workers.remembered import Remembered
from services.workers.tally import Tally
from tests.support.clock import ManualClock
from tests.support.play import Play, graph, model
from tests.support.wait import until


CHAIN = graph(
    model("a"), model("b", "a.text + '!'"), model("c", "b.text + input.text"), edges="a>b b>c"
)


@pytest.fixture
async def models(tmp_path: Path) -> AsyncIterator[Models]:
    """The models of the text workers."""
    models = Models(catalogue.load(), "text", tmp_path, allow_fallback=True, capacity=Capacity(1))
    yield models
    models.close()


def task() -> Task:
    """Return the task of the chain's first node."""
    play = Play(CHAIN).start(text="hi")
    assert play.state is not None
    then, seen = following(play.state, "a")
    return Task(
        tenant="default",
        run_id="r",
        node_id="a",
        attempt=1,
        model="echo",
        inputs={"text": "hi"},
        scheduled_at=0.0,
        deadline=1000.0,
        then=then,
        seen=seen,
    )


def hands(models: Models, chain_s: float) -> Handlers:
    """Return the handlers of a worker."""
    clock = ManualClock(0.0)
    blobs = MemoryBlobStore()
    remembered = Remembered(MemoryMemoStore(), blobs, models, clock)
    means = Means(
        "w", models, remembered, blobs, Attempts(clock), Tally("w", clock), clock, chain_s=chain_s
    )
    return Handlers(means)


async def handed_in(
    models: Models, chain_s: float, count: int = 1, given: Task | None = None
) -> list[TaskResult]:
    """Hand a task to a worker; return what it sends."""
    subject = task_subject("default", "text", "default", "normal", "echo")
    body = pack(given or task())
    sent = await hands(models, chain_s).task(Delivery(subject, body, {}, sequence=1, count=count))
    return [unpack(TaskResult, out.data) for out in sent]


async def done(
    models: Models, chain_s: float, count: int = 1, given: Task | None = None
) -> TaskResult:
    """Hand the task to a worker; return its result."""
    [result] = await handed_in(models, chain_s, count, given)
    return result


async def test_it_goes_on_with_what_is_known_to_be_quick(models: Models) -> None:
    """Each result is computed from those before it, in one message."""
    result = await done(models, 1.0)
    assert {"text": "hi"} == result.outputs
    assert ["hi!", "hi!hi"] == [step.outputs["text"] for step in result.then if step.outputs]
    assert ["b", "c"] == [step.node_id for step in result.then]


@pytest.mark.parametrize(("chain_s", "count"), [(0.0, 1), (1.0, 2)], ids=["off", "again"])
async def test_it_does_the_task_alone(models: Models, chain_s: float, count: int) -> None:
    """When told to, and when one of what follows may have ended a worker."""
    assert () == (await done(models, chain_s, count)).then


async def test_a_model_whose_pace_is_unknown_or_slow_is_not_gone_on_with(models: Models) -> None:
    """It would keep the result of the node before."""
    await done(models, 1.0)
    models._cache.residents["echo"].pace_s = 2.0
    assert () == (await done(models, 1.0)).then
    assert models.pace_s("intent-small") is None


async def test_the_next_model_is_loaded_while_a_task_is_done(models: Models) -> None:
    """Although the worker does not go on with it by itself."""
    first = task()
    following_ = first.then[0].model_copy(update={"model": "intent-small"})
    await done(models, 0.0, given=first.model_copy(update={"then": (following_,)}))
    async with asyncio.timeout(10):
        while models._cache.get("intent-small") is None:  # noqa: ASYNC110 - a thread loads it
            await asyncio.sleep(0.005)


async def test_what_is_too_late_in_line_is_answered_by_the_logs_clock(models: Models) -> None:
    """No result is sent: the attempt counts as one that took too long, and may be tried again."""
    hurried = task().model_copy(update={"model": "intent-small", "deadline": 5.0, "then": ()})
    await models.infer("intent-small", Request({"text": "hi"}))
    line = models._cache.residents["intent-small"].line
    assert line is not None
    line._expected_s = 60.0
    assert [] == await handed_in(models, 0.0, given=hurried)


class Hint:
    """A message of core NATS."""

    data = b""

    def __init__(self, token: str) -> None:
        self.subject = f"clawdbot.v1.default.warm.text.default.{token}"


async def test_a_hint_loads_a_model(models: Models) -> None:
    """One that is here; what is not, or cannot be read, changes nothing."""
    handlers = hands(models, 0.0)
    for token in ("nobody", "=ff", "intent-small"):
        await handlers.warm(Hint(token))

    async def is_loaded() -> bool:
        return models._cache.get("intent-small") is not None

    await until(is_loaded, what="the load", timeout_s=30)
    assert ["intent-small"] == list(models._cache.residents)

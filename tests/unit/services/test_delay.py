"""A free engine waits for company where an entry allows it and the measured times say it pays.

All of it in virtual time: a call takes exactly what the test says, beside everything else.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typing_extensions import override

from schemas import catalogue
from schemas.catalogue import ModelSpec
from schemas.values import Value
from services.gateway.inference.config import model_config
from services.workers.batches import Computed, Crew, Line, Outcome
from services.workers.curve import Curve
from services.workers.delay import RECENT
from services.workers.engine import BatchEngine, Request
from tests.support import onnx_models
from tests.support.virtual import VirtualLoop, run


DELAY_S = 0.004
CALL_S = 0.001


class Same(BatchEngine):
    """Gives back what it gets, and remembers who was computed together."""

    def __init__(self, delay_s: float) -> None:
        spec = catalogue.load().models["echo"]
        update = {"max_batch_size": 64, "max_queue_delay_us": round(delay_s * 1e6)}
        super().__init__(spec.model_copy(update=update), Path())
        self.calls: list[list[int]] = []

    @override
    def batch_key(self, request: Request) -> Hashable | None:
        return request.params.get("key", "same")  # type: ignore[no-any-return]

    @override
    def rows(self, request: Request) -> int:
        return 1

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        self.calls.append([request.inputs["n"] for request in batch])
        return [request.inputs for request in batch]


class Play:
    """A line in virtual time.

    Args:
        delay_s: How long it may wait.
        call_s: What a call of so many rows takes.
    """

    def __init__(
        self, delay_s: float = DELAY_S, call_s: Callable[[int], float] = lambda _: CALL_S
    ) -> None:
        self.loop = VirtualLoop()
        self.call_s = call_s
        self.engine = Same(delay_s)
        crew = Crew(self.submit, 1)
        self.line = Line("m", self.engine, crew, 64, now=self.loop.time)
        for rows in self.line.sizes:
            self.line.learn(rows, call_s(rows))

    def submit(self, compute: Callable[..., list[Outcome]], *args: Any) -> "Future[list[Outcome]]":
        """Compute as a thread does, in as much time as a call takes."""
        job: Future[list[Outcome]] = Future()
        rows: Sequence[int] = args[2]
        self.loop.call_later(self.call_s(sum(rows)), job.set_result, compute(*args))
        return job

    def run(self, work: Coroutine[Any, Any, None]) -> float:
        """Do it, and return how long it took."""
        run(self.loop, work)
        return self.loop.time()

    async def ask(
        self, number: int, at: float = 0.0, timeout_s: float = math.inf, **params: object
    ) -> tuple[Computed, float]:
        """Return the answer to a request, and how long it stood in line."""
        await asyncio.sleep(at - self.loop.time())
        came = self.loop.time()
        request = Request({"n": number}, params)
        done = await self.line.infer(request, deadline=came + timeout_s)
        return done, done.started - came

    async def meet(self, count: int, at: float = 0.0) -> None:
        """Have so many at the same time, so that as many are expected from then on."""
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(self.ask(-number, at))
        self.engine.calls.clear()


def test_who_is_alone_waits_for_nobody() -> None:
    """One client after another: a request takes what its call takes, whatever may be waited."""
    play = Play(delay_s=10.0)

    async def work() -> None:
        for number in range(20):
            await play.ask(number)

    assert 20 * CALL_S == pytest.approx(play.run(work()))


def test_those_who_were_there_together_go_together() -> None:
    """The first of four waits until the last one is there, and no longer."""
    play = Play()

    async def work() -> None:
        await play.meet(4)
        begun = play.loop.time()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(play.ask(n, begun + 0.0007 * n)) for n in range(4)]
        assert [[0, 1, 2, 3]] == play.engine.calls
        assert [0.0021, 0.0014, 0.0007, 0.0] == [pytest.approx(task.result()[1]) for task in tasks]

    play.run(work())


def test_the_first_waits_no_longer_than_it_may() -> None:
    """Counted from its own arrival; who comes later goes with it."""
    play = Play()

    async def work() -> None:
        await play.meet(4)
        begun = play.loop.time()
        async with asyncio.TaskGroup() as group:
            first = group.create_task(play.ask(0, begun))
            second = group.create_task(play.ask(1, begun + 0.003))
        assert [[0, 1]] == play.engine.calls
        assert [pytest.approx(DELAY_S), pytest.approx(0.001)] == [
            first.result()[1],
            second.result()[1],
        ]

    play.run(work())


def test_by_default_nobody_waits() -> None:
    """A free engine begins at once, with whoever is there."""
    play = Play(delay_s=0.0)

    async def work() -> None:
        await play.meet(4)
        begun = play.loop.time()
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(play.ask(number, begun + 1.5 * CALL_S * number))
        assert [[0], [1], [2]] == play.engine.calls

    play.run(work())


def test_rows_that_cost_the_same_in_any_call_wait_for_nobody() -> None:
    """Nothing would be gained by it."""
    play = Play(call_s=lambda rows: 0.0001 * rows)

    async def work() -> None:
        await play.meet(4)
        _, waited_s = await play.ask(0)
        assert 0.0 == waited_s

    play.run(work())


def test_fewer_clients_are_noticed() -> None:
    """Who has become alone waits in vain for some calls, then no more."""
    play = Play()

    async def work() -> None:
        await play.meet(4)
        waits = [(await play.ask(number))[1] for number in range(RECENT + 1)]
        assert [pytest.approx(DELAY_S)] * RECENT == waits[:RECENT]
        assert 0.0 == waits[RECENT]

    play.run(work())


def test_nobody_waits_away_more_than_half_of_the_time_it_has() -> None:
    """A deadline is for computing, not for company."""
    play = Play(delay_s=10.0)

    async def work() -> None:
        await play.meet(4)
        _, waited_s = await play.ask(0, timeout_s=1.0)
        assert pytest.approx(0.5, abs=CALL_S) == waited_s

    play.run(work())


def test_others_do_not_wait_with_those_who_do() -> None:
    """Who cannot be computed with others goes at once, and so does a shape that is complete."""
    play = Play()

    async def work() -> None:
        await play.meet(2)
        begun = play.loop.time()
        async with asyncio.TaskGroup() as group:
            lone = group.create_task(play.ask(0, begun, key="a"))
            group.create_task(play.ask(1, begun, key=None))
            for number in (2, 3):
                group.create_task(play.ask(number, begun + 0.0005, key="b"))
        assert [[1], [2, 3], [0]] == play.engine.calls
        assert pytest.approx(DELAY_S) == lone.result()[1]

    play.run(work())


def test_who_gave_up_is_waited_for_no_more() -> None:
    """The line goes on with who comes next."""
    play = Play()

    async def work() -> None:
        await play.meet(2)
        gone = asyncio.ensure_future(play.ask(0))
        await asyncio.sleep(DELAY_S / 2)
        gone.cancel()
        _, waited_s = await play.ask(1)
        assert [[1]] == play.engine.calls
        assert pytest.approx(DELAY_S) == waited_s

    play.run(work())


def calls_of(delay_s: float, *, clients: int, requests: int) -> tuple[float, int]:
    """Return rows of a mean call, and the longest wait in ns, of clients that ask again and again.

    What each does between an answer and its next request takes between 0.5 and 2.5 ms.
    """
    play, longest = Play(delay_s, lambda rows: 0.0008 + 0.00001 * rows), [0.0]

    async def client(number: int) -> None:
        for turn in range(requests):
            way_s = 0.0005 + 0.0001 * ((number * 7 + turn * 13) % 21)
            await asyncio.sleep(way_s)
            _, waited_s = await play.ask(number, play.loop.time())
            longest.append(waited_s)

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(client(number))

    play.run(work())
    calls = [len(call) for call in play.engine.calls]
    return sum(calls) / len(calls), round(max(longest) * 1e9)


def test_calls_under_load_are_larger_and_waits_are_bounded() -> None:
    """Clients whose ways differ: most go in one call, and nobody waits longer than is set."""
    without, _ = calls_of(0.0, clients=16, requests=60)
    with_delay, longest_ns = calls_of(DELAY_S, clients=16, requests=60)
    assert with_delay > 1.5 * without
    # the first wait in line, then for a call that is under way
    assert longest_ns / 1e9 <= DELAY_S + 0.0008 + 0.00001 * 16 + 1e-9


@pytest.mark.parametrize(
    ("rows", "there", "is_worth"), [(1, 1, False), (8, 8, False), (8, 16, True)]
)
def test_short_calls_wait_for_all_who_may_come(rows: int, there: int, is_worth: bool) -> None:
    """A millisecond for a call, nothing for a row."""
    curve = Curve(64)
    for size in curve.sizes:
        curve.learn(size, 0.001)
    assert is_worth is curve.is_worth_waiting(rows, there)


@pytest.mark.parametrize(("rows", "is_worth"), [(15, True), (16, False), (31, False)])
def test_long_calls_wait_for_half_of_them(rows: int, is_worth: bool) -> None:
    """Two calls by turns keep the engine busy (ADR-0049)."""
    curve = Curve(64)
    for size in curve.sizes:
        curve.learn(size, 0.02)
    assert is_worth is curve.is_worth_waiting(rows, 32)


def test_what_was_never_measured_is_no_reason_to_wait() -> None:
    """Neither with nothing known, nor with what is there alone."""
    curve = Curve(64)
    assert not curve.is_worth_waiting(1, 16)
    curve.note(1, 0.001)
    assert not curve.is_worth_waiting(1, 16)
    curve.note(16, 0.001)
    assert curve.is_worth_waiting(1, 16)


def test_what_was_measured_holds_when_all_is_learned_anew() -> None:
    """Until then it is the best that is known."""
    curve = Curve(64)
    for size in curve.sizes:
        curve.learn(size, 0.001)
    for _ in range(600):
        curve.note(1, 0.001)
    assert curve.is_worth_waiting(1, 16)


def entry(**more: Any) -> dict[str, Any]:
    """Return an entry of a model whose rows are batched."""
    ports = ([onnx_models.port(name, "FP32", [-1, 4])] for name in "XY")
    return onnx_models.entry("m.onnx", *ports, **({"max_batch_size": 8} | more))


def test_the_configuration_says_how_long() -> None:
    """In Triton's words."""
    for delay_us in (0, 4000):
        spec = ModelSpec.model_validate(entry(max_queue_delay_us=delay_us))
        batching = model_config("m", spec)["dynamic_batching"]
        assert delay_us == batching["max_queue_delay_microseconds"]


@pytest.mark.parametrize(
    "more", [{"max_queue_delay_us": -1}, {"max_queue_delay_us": 10**8}, {"max_batch_size": 0}]
)
def test_a_delay_that_means_nothing_is_refused(more: dict[str, int]) -> None:
    """And the complaint names it."""
    with pytest.raises(ValidationError, match="max_queue_delay_us"):
        ModelSpec.model_validate(entry(**{"max_queue_delay_us": 4000, **more}))

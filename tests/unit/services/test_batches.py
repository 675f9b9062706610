"""The line before an engine: who is computed together, in which order, and whose error is whose."""

import asyncio
import math
import threading
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import override

from schemas import catalogue
from schemas.errors import InvalidArgument, ModelUnavailable
from schemas.values import Value
from services.errors import status_of
from services.workers.batches import Computed, Crew, Line, TooLate
from services.workers.engine import BatchEngine, Request


class Doubling(BatchEngine):
    """Doubles `n`; refuses batches with a negative one; waits in each call until it is let go."""

    def __init__(self, rows_max: int = 4) -> None:
        spec = catalogue.load().models["echo"]
        super().__init__(spec.model_copy(update={"max_batch_size": rows_max}), Path())
        self.calls: list[list[int]] = []
        self.begun, self.let_go = threading.Semaphore(0), threading.Semaphore(0)
        self.held = True

    @override
    def batch_key(self, request: Request) -> Hashable | None:
        return request.params.get("key", "same")  # type: ignore[no-any-return]

    @override
    def rows(self, request: Request) -> int:
        return int(request.params.get("rows", 1))

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        numbers = [request.inputs["n"] for request in batch]
        self.calls.append(numbers)
        if self.held:
            self.begun.release()
            assert self.let_go.acquire(timeout=10)
        if any(number < 0 for number in numbers):
            raise InvalidArgument(f"one of {len(batch)} is negative", field="inputs.n")
        return [{"n": 2 * number} for number in numbers]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Two threads."""
    with ThreadPoolExecutor(2) as pool:
        yield pool


class Play:
    """A line, and those who stand in it."""

    def __init__(self, engine: Doubling, pool: ThreadPoolExecutor, threads: int = 2) -> None:
        self.engine = engine
        self.line = Line("m", engine, Crew(pool.submit, threads), 64)
        self.asked: list[asyncio.Task[Computed]] = []

    def ask(self, group: asyncio.TaskGroup, number: int, rank: int = 0, **params: object) -> None:
        """Stand in line."""

        async def wait() -> Computed:
            return await self.line.infer(Request({"n": number}, params), rank)

        self.asked.append(group.create_task(wait()))

    async def busy(self) -> None:
        """Wait until a call has begun and all that asked stand in line."""
        assert await asyncio.to_thread(self.engine.begun.acquire, timeout=10)
        await asyncio.sleep(0)

    def finish(self) -> None:
        """Let every call go."""
        self.engine.held = False
        self.engine.let_go.release(100)


async def test_one_alone_does_not_wait_and_the_rest_go_together(pool: ThreadPoolExecutor) -> None:
    """The first call has one; what came meanwhile is the next call, up to the limit."""
    play = Play(Doubling(), pool)
    async with asyncio.TaskGroup() as group:
        play.ask(group, 1)
        await play.busy()
        for number in range(2, 9):
            play.ask(group, number)
        await asyncio.sleep(0)
        play.finish()
    assert [[1], [2, 3, 4, 5], [6, 7, 8]] == play.engine.calls
    results = [task.result() for task in play.asked]
    assert [2 * n for n in range(1, 9)] == [result.outputs["n"] for result in results]
    assert [1, 4, 4, 4, 4, 3, 3, 3] == [result.batch_size for result in results]


async def test_what_comes_in_one_turn_goes_together(pool: ThreadPoolExecutor) -> None:
    """The requests of one message do not wait behind the first of them."""
    play = Play(Doubling(), pool)
    play.engine.held = False
    async with asyncio.TaskGroup() as group:
        for number in (1, 2, 3):
            play.ask(group, number)
    assert [[1, 2, 3]] == play.engine.calls


async def test_rows_count_and_not_requests(pool: ThreadPoolExecutor) -> None:
    """A call has at most `max_batch_size` rows; who alone has more is alone."""
    play = Play(Doubling(), pool)
    async with asyncio.TaskGroup() as group:
        play.ask(group, 0)
        await play.busy()
        for number, rows in ((1, 3), (2, 2), (3, 2), (4, 9), (5, 1)):
            play.ask(group, number, rows=rows)
        await asyncio.sleep(0)
        play.finish()
    assert [[0], [1], [2, 3], [4], [5]] == play.engine.calls


async def test_the_most_urgent_is_next_with_its_like(pool: ThreadPoolExecutor) -> None:
    """Rank, then arrival; who gave up is passed over, and one without a key is alone."""
    play = Play(Doubling(), pool)
    async with asyncio.TaskGroup() as group:
        play.ask(group, 0)
        await play.busy()
        asks = [(1, 1, "a"), (2, 1, "b"), (3, 0, "b"), (4, 0, "b"), (5, 2, "a"), (6, 1, None)]
        for number, rank, key in [*asks, (7, 0, None)]:
            play.ask(group, number, rank, key=key)
        await asyncio.sleep(0)
        play.asked[4].cancel()
        await asyncio.sleep(0)
        play.finish()
    assert [[0], [3, 2], [7], [1, 5], [6]] == play.engine.calls


async def test_a_poisoned_request_fails_alone(pool: ThreadPoolExecutor) -> None:
    """Its mates get their answers."""
    play = Play(Doubling(8), pool)

    async def outcome(number: int) -> object:
        try:
            return (await play.line.infer(Request({"n": number}))).outputs["n"]
        except InvalidArgument as error:
            return error.message

    async with asyncio.TaskGroup() as group:
        play.ask(group, 0)
        await play.busy()
        asked = [group.create_task(outcome(number)) for number in (1, 2, -3, 4, 5, 6)]
        await asyncio.sleep(0)
        play.finish()
    assert [2, 4, "one of 1 is negative", 8, 10, 12] == [task.result() for task in asked]
    calls = [[0], [1, 2, -3, 4, 5, 6], [1, 2, -3], [1], [2, -3], [2], [-3], [4, 5, 6]]
    assert calls == play.engine.calls


async def test_what_is_too_late_is_not_computed(pool: ThreadPoolExecutor) -> None:
    """A deadline that passes in line takes the request out of it."""
    play = Play(Doubling(), pool)

    async def late() -> None:
        async with asyncio.timeout(0.02):
            await play.line.infer(Request({"n": 2}))

    async with asyncio.TaskGroup() as group:
        play.ask(group, 1)
        await play.busy()
        with pytest.raises(TimeoutError):
            await late()
        play.ask(group, 3)
        await asyncio.sleep(0)
        play.finish()
    assert [[1], [3]] == play.engine.calls


async def test_the_earliest_deadline_is_next_within_a_rank(pool: ThreadPoolExecutor) -> None:
    """Whoever has none comes after those who have; a rank goes before any deadline."""
    play = Play(Doubling(1), pool)
    now = time.perf_counter()

    async def ask(number: int, rank: int, left_s: float) -> Computed:
        return await play.line.infer(Request({"n": number}), rank, now + left_s)

    async with asyncio.TaskGroup() as group:
        play.ask(group, 0)
        await play.busy()
        for number, rank, left_s in ((1, 1, math.inf), (2, 1, 90), (3, 1, 60), (4, 0, math.inf)):
            group.create_task(ask(number, rank, left_s))
        await asyncio.sleep(0)
        play.finish()
    assert [[0], [4], [3], [2], [1]] == play.engine.calls


async def test_what_cannot_be_in_time_is_told_so_at_once(pool: ThreadPoolExecutor) -> None:
    """As first in line and as a mate; and one is tried now and then, as things may have changed."""
    play = Play(Doubling(), pool)
    play.engine.held = False
    await play.line.infer(Request({"n": 0}))
    play.line._expected_s = 10.0
    with pytest.raises(TooLate, match="'m' takes about 1e\\+04 ms, and there is less time left"):
        await play.line.infer(Request({"n": 1}), 0, time.perf_counter() + 5)
    assert 504 == status_of(TooLate("x"))
    refused = 0
    while refused < 100:
        try:
            await play.line.infer(Request({"n": 2}), 0, time.perf_counter() + 5)
            break
        except TooLate:
            refused += 1
    assert 0 < refused < 20
    assert [[0], [2]] == play.engine.calls
    assert 1.0 > play.line._expected_s


async def test_a_mate_that_is_too_late_is_left_out(pool: ThreadPoolExecutor) -> None:
    """The others of its batch are computed, and know their call by its number."""
    play = Play(Doubling(), pool)
    async with asyncio.TaskGroup() as group:
        play.ask(group, 0)
        await play.busy()
        play.ask(group, 1)
        await asyncio.sleep(0)

        async def late() -> None:
            with pytest.raises(TooLate):
                await play.line.infer(Request({"n": 2}), 1, time.perf_counter() + 0.01)

        group.create_task(late())
        play.ask(group, 3)
        await asyncio.sleep(0.02)
        play.finish()
    assert [[0], [1, 3]] == play.engine.calls
    assert [0, 2, 2] == [task.result().batch for task in play.asked]


async def test_a_batch_is_formed_when_a_thread_is_free(pool: ThreadPoolExecutor) -> None:
    """While another model has the only thread, the line grows, and goes in one call."""
    crew = Crew(pool.submit, 1)
    first, second = Play(Doubling(), pool), Play(Doubling(), pool)
    first.line = Line("first", first.engine, crew, 64)
    second.line = Line("second", second.engine, crew, 64)
    async with asyncio.TaskGroup() as group:
        first.ask(group, 1)
        await first.busy()
        for number in (1, 2, 3):
            second.ask(group, number)
        await asyncio.sleep(0)
        assert [] == second.engine.calls
        second.finish()
        first.finish()
    assert [[1, 2, 3]] == second.engine.calls


async def test_a_worker_that_stops_says_so(pool: ThreadPoolExecutor) -> None:
    """Nobody is left waiting for threads that are no more."""
    play = Play(Doubling(), pool)
    pool.shutdown()
    with pytest.raises(ModelUnavailable, match="stopping"):
        await play.line.infer(Request({"n": 1}))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.integers(-1, 50),
            st.integers(0, 2),
            st.sampled_from(["a", "b", None]),
            st.integers(1, 3),
            st.booleans(),
        ),
        max_size=60,
    )
)
async def test_everybody_gets_their_own(asks: list[tuple[int, int, str | None, int, bool]]) -> None:
    """Whatever is asked, in whatever order and company: one's own answer or error."""
    with ThreadPoolExecutor(2) as pool:
        engine = Doubling()
        engine.held = False
        line = Line("m", engine, Crew(pool.submit, 2), 64)

        async def ask(number: int, rank: int, key: str | None, rows: int) -> object:
            try:
                done = await line.infer(Request({"n": number}, {"key": key, "rows": rows}), rank)
            except InvalidArgument as error:
                return error.message
            return done.outputs["n"]

        async with asyncio.TaskGroup() as group:
            tasks = []
            for index, (number, rank, key, rows, leaves) in enumerate(asks):
                tasks.append(group.create_task(ask(number, rank, key, rows)))
                if index % 7 == 0:
                    await asyncio.sleep(0)
                if leaves:
                    tasks[-1].cancel()
    for task, (number, _, _, _, leaves) in zip(tasks, asks, strict=True):
        if leaves and task.cancelled():
            continue
        assert ("one of 1 is negative" if number < 0 else 2 * number) == task.result()
    assert all(len(call) <= 4 for call in engine.calls)

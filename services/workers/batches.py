"""The line before an engine: the most urgent first, and together what one call may compute.

Urgent is who has the lower rank, among those whose deadline is earlier, then who came first. What
cannot be answered in time any more is told so at once, and not computed.

Nothing waits for company, unless a model's entry says so (`services.workers.delay`): a free engine
begins with all that is there in this turn of the loop, so what came in one message is not torn
apart, and what comes while it computes is the next call. So batches grow with the load by
themselves, and one request alone is as quick as without them.

Source: work-conserving batching as in Clipper (NSDI 2017) and ORCA (OSDI 2022), without a delay.
"""

import asyncio
import contextlib
import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from schemas.errors import Cancelled, DeadlineExceeded, EngineFailed, ModelUnavailable
from schemas.values import Value
from services.telemetry import BATCH_SIZE
from services.workers.counters import Counters
from services.workers.curve import Curve
from services.workers.delay import Delay
from services.workers.engine import BatchEngine, Engine, Request


Submit = Callable[..., "Future[list[Outcome]]"]
"""Has a function called in a thread."""


class Computed(NamedTuple):
    """What an engine gave for one request."""

    outputs: Mapping[str, Value]
    batch_size: int
    """Requests that were computed in the same call."""
    started: float = 0.0
    """By `time.perf_counter`."""
    batch: int = 0
    """Number of the call, of this line; 0 where it had only this request."""


class TooLate(DeadlineExceeded):
    """There is not enough time left to compute it."""


SLOWER_WEIGHT = 0.1
"""Of a call that took longer than expected, in what is expected; a quicker one counts whole."""
TICK_S = 0.001
"""What the loop's timers can tell apart; a wait is as much longer at most."""
REFUSAL_WEIGHT = 0.9
"""What is expected shrinks so much with each refusal: in the end one is tried."""

Outcome = Computed | Exception


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request in line."""

    request: Request
    rows: int
    deadline: float
    answer: "asyncio.Future[Computed]"
    came: float = 0.0
    """By `time.perf_counter`; only told where one may wait for company."""


_Place = tuple[int, float, int, _Waiting]
"""Rank, deadline, order of arrival, and who."""


class Crew:
    """The threads that all engines share; a line whose turn it is forms its batch only then.

    Args:
        submit: Has a function called in a thread.
        threads: How many there are.
    """

    def __init__(self, submit: Submit, threads: int) -> None:
        self.submit = submit
        self._free = threads
        self._lines: deque[Line] = deque()

    def take(self, line: "Line") -> bool:
        """Take a thread, or be called when one is free."""
        if self._free:
            self._free -= 1
            return True
        if line not in self._lines:
            self._lines.append(line)
        return False

    def give(self) -> None:
        """Give a thread back, to the line that waits longest."""
        self._free += 1
        while self._free and self._lines:
            self._lines.popleft().begin()


class Line:
    """Those who wait for one engine.

    Args:
        model: Its name, for the metric.
        engine: Computes; one call at a time.
        crew: Has the threads.
        rows_max: Most rows of one call.
        counters: Take note of every call that works.
        now: Tells the time, seconds.
    """

    def __init__(
        self,
        model: str,
        engine: Engine,
        crew: Crew,
        rows_max: int,
        counters: Counters | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine = engine
        self._crew = crew
        self._now = now
        self._curve = Curve(
            min(rows_max, engine.rows_max() if isinstance(engine, BatchEngine) else 1)
        )
        self._delay = Delay(engine.spec.max_queue_delay_us / 1e6, self._curve)
        self._key: Hashable = None
        """Of the newest call."""
        self._timer: asyncio.TimerHandle | None = None
        """Of the next time that one has waited long enough."""
        self._sizes = BATCH_SIZE.labels(model)
        self.busy = False
        """Whether a thread computes, even if nobody waits for it any more."""
        self.idle: Callable[[], None] = lambda: None
        """Called when a call is over."""
        self._model = model
        self._expected_s = 0.0
        """How long a call takes, rather too little than too much."""
        self._calls = 0
        self._counters = counters or Counters()
        self._serial = count()
        self._roused = False
        """Whether the next call is looked for at the end of this turn."""
        self._ended = 0.0
        """When the newest call was over, by `time.perf_counter`."""
        self._lines: dict[Hashable, list[_Place]] = {}
        """By batch key, each a heap."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The rows of calls that are told apart, ascending."""
        return self._curve.sizes

    def learn(self, rows: int, took_s: float) -> None:
        """Take note of how long calls take, measured before anybody waits."""
        self._curve.learn(rows, took_s)

    async def infer(self, request: Request, rank: int = 0, deadline: float = math.inf) -> Computed:
        """Return what the engine gives for a request; cancelled while it waits, it is left out.

        Args:
            request: Inputs and parameters.
            rank: The lower, the sooner.
            deadline: By `time.perf_counter`; the earlier, the sooner within a rank.

        Raises:
            ClawdbotError: The engine's word on this request, whoever shared its batch.
            TooLate: It cannot be computed before the deadline.
        """
        key, rows = None, 1
        if isinstance(self._engine, BatchEngine):
            key = self._engine.batch_key(request)
            rows = 1 if key is None else self._engine.rows(request)
        waiting = _Waiting(request, rows, deadline, asyncio.get_running_loop().create_future())
        if self._delay.is_on:
            waiting.came = self._now()
        line = self._lines.setdefault(key, [])
        heapq.heappush(line, (rank, deadline, next(self._serial), waiting))
        if not self._roused:
            self._roused = True
            asyncio.get_running_loop().call_soon(self._rouse)
        return await waiting.answer

    def _rouse(self) -> None:
        """Begin the next call with those who came in this turn."""
        self._roused = False
        self.begin(idle_s=self._now() - self._ended)

    def begin(self, idle_s: float = 0.0) -> None:
        """Begin the next call, if the engine is free, and a thread, and somebody waits.

        Args:
            idle_s: How long nobody waited.
        """
        self._forget()
        if self.busy or not self._lines:
            return
        ripe = self._ripe() if self._delay.is_on else self._lines
        if not ripe or not self._crew.take(self):
            return
        batch, loop = self._next(ripe, idle_s), asyncio.get_running_loop()
        self.busy, started = True, self._now()
        self._calls += 1
        self._sizes.observe(len(batch))

        def over(job: "Future[list[Outcome]]") -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and everybody with it
                loop.call_soon_threadsafe(self._over, batch, started, job)

        try:
            rows = [item.rows for item in batch]
            asked = [item.request for item in batch]
            job = self._crew.submit(compute, self._engine, asked, rows, self._counters)
        except RuntimeError:  # the threads are shut down
            job = Future()
            job.cancel()
        job.add_done_callback(over)

    def _forget(self) -> None:
        """Leave out those who gave up or are too late, as far as they are first."""
        for key, line in list(self._lines.items()):
            while line and not self._is_worth(line[0][3]):
                heapq.heappop(line)
            if not line:
                del self._lines[key]

    def _is_worth(self, item: _Waiting) -> bool:
        """Tell whether somebody waits for it who may still be answered in time."""
        if item.answer.done():
            return False
        if item.deadline == math.inf or self._now() + self._expected_s < item.deadline:
            return True
        takes_ms = self._expected_s * 1000
        text = f"'{self._model}' takes about {takes_ms:.3g} ms, and there is less time left"
        item.answer.set_exception(TooLate(text))
        self._expected_s *= REFUSAL_WEIGHT
        return False

    def _ripe(self) -> dict[Hashable, list[_Place]]:
        """Return the lines that wait for no company; of the others the first one has a timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._now()
        left_s = {key: self._left_s(key, line, now) for key, line in self._lines.items()}
        ripe = {key: self._lines[key] for key in left_s if not left_s[key]}
        if not ripe:
            wait_s = max(TICK_S, min(left_s.values()))
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._rouse)
        return ripe

    def _left_s(self, key: Hashable, line: Sequence[_Place], now: float) -> float:
        """Return how much longer those of a key wait for company, half of their time at most."""
        there = [item for *_, item in line if not item.answer.done()]
        if key is None or not there:
            return 0.0
        left_s = self._delay.left_s(_rows(there), now - min(item.came for item in there))
        until = min(
            item.came + (item.deadline - self._expected_s - item.came) / 2 for item in there
        )
        return min(left_s, max(0.0, until - now))

    def _next(self, ripe: Mapping[Hashable, list[_Place]], idle_s: float) -> list[_Waiting]:
        """Take the most urgent request, and those that one call may compute with it."""
        key = min(ripe, key=lambda key: ripe[key][0][:3])
        line, self._key = ripe[key], key
        most = self._most(line, idle_s) if len(line) > 1 else 1
        batch = [heapq.heappop(line)[3]]
        left = most - batch[0].rows
        while key is not None and line and line[0][3].rows <= left:
            item = heapq.heappop(line)[3]
            if self._is_worth(item):
                batch.append(item)
                left -= item.rows
        return batch

    def _most(self, line: Sequence[_Place], idle_s: float) -> int:
        """Return how many rows of a line the next call may have."""
        waiting = _rows(item[3] for item in line)
        most = self._curve.most(waiting)
        if len(self._lines) > 1:
            return most  # there are calls of others to be made by turns
        return min(most, self._curve.half(waiting, idle_s))

    def _over(
        self, batch: Sequence[_Waiting], started: float, job: "Future[list[Outcome]]"
    ) -> None:
        """Begin the next call, then hand out the answers."""
        self._ended = self._now()
        took_s = self._ended - started
        self._curve.note(_rows(batch), took_s)
        slower_s = took_s - self._expected_s
        self._expected_s += slower_s * (SLOWER_WEIGHT if slower_s > 0 else 1.0)
        number = self._calls if len(batch) > 1 else 0
        if self._delay.is_on:
            waiting = self._lines.get(self._key, ())
            self._delay.note(_rows(batch) + _rows(item[3] for item in waiting))
        self.busy = False
        self._crew.give()
        self.begin()
        try:
            outcomes = job.result()
        except CancelledError:
            outcomes = [ModelUnavailable("this worker is stopping; try again") for _ in batch]
        for item, outcome in zip(batch, outcomes, strict=True):
            if item.answer.done():
                continue  # nobody waits any more
            if isinstance(outcome, Exception):
                item.answer.set_exception(outcome)
            else:
                done = Computed(outcome.outputs, outcome.batch_size, started, number)
                item.answer.set_result(done)
        self.idle()


def _rows(items: Iterable[_Waiting]) -> int:
    return sum(item.rows for item in items)


def compute(
    engine: Engine, requests: Sequence[Request], rows: Sequence[int], counters: Counters
) -> list[Outcome]:
    """Compute a batch in this thread; where it fails, halve it until it is clear who is to blame.

    Args:
        engine: Computes.
        requests: What is asked.
        rows: How many rows each has.
        counters: Take note of calls that worked.

    Returns:
        For each request, in order, its outputs or its error.
    """
    if all(request.is_stopped() for request in requests):
        return [Cancelled("nobody waits for the answer any more") for _ in requests]
    begun = time.perf_counter()
    outputs = None
    try:
        outputs = engine.infer(requests)
    except Exception as error:  # noqa: BLE001 - handed to the one who asked
        if len(requests) == 1:
            return [error]
    if outputs is None:  # and what the call held, tensors of a GPU too, is free again
        middle = len(requests) // 2
        return [
            *compute(engine, requests[:middle], rows[:middle], counters),
            *compute(engine, requests[middle:], rows[middle:], counters),
        ]
    if len(outputs) != len(requests):
        wrong = f"the engine gave {len(outputs)} answers to {len(requests)} requests"
        return [EngineFailed(wrong) for _ in requests]
    counters.computed(sum(rows), time.perf_counter() - begun)
    return [Computed(found, len(requests)) for found in outputs]

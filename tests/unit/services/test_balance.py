"""Choosing a worker: by what was seen of it, which fades."""

import contextlib
import random
from collections import Counter

import pytest

from events.models import ModelDirectory
from schemas.errors import DeadlineExceeded, InvalidArgument
from services.gateway.inference.balance import Balance, Worker
from tests.support.clock import ManualClock


def balance(clock: ManualClock, *names: str, wanted: bool = True) -> Balance:
    """Return a gateway's choice among workers of the model `m`."""
    made = Balance(
        ModelDirectory(None),  # type: ignore[arg-type] # nobody looks
        clock,
        random.Random(1),
        wanted=wanted,
    )
    made.learn({"m": names, "lonely": names[:1]})
    for worker in made._workers["m"]:
        worker.now = clock.now
    return made


def answer(worker: Worker, clock: ManualClock, took_s: float) -> None:
    """Have a worker answer."""
    with worker.asked():
        clock.advance(took_s)


def test_a_slow_worker_gets_little_and_is_not_forgotten() -> None:
    """Of a thousand requests, one after the other; it is looked at again now and then."""
    clock = ManualClock()
    choice = balance(clock, "quick", "slow", "other")
    asked: Counter[str] = Counter()
    for _ in range(1000):
        worker = choice.choose("m")
        assert worker is not None
        asked[worker.name] += 1
        answer(worker, clock, 0.2 if worker.name == "slow" else 0.005)
    assert 1 <= asked["slow"] < 30
    assert min(asked["quick"], asked["other"]) > 200


def test_requests_under_way_count() -> None:
    """Of two that are as quick, the one with fewer of them is asked: a frozen one is avoided."""
    clock = ManualClock()
    choice = balance(clock, "a", "frozen")
    for known in choice._workers["m"]:
        answer(known, clock, 0.01)
    held = 0
    for _ in range(100):
        worker = choice.choose("m")
        assert worker is not None
        if worker.name == "frozen":
            worker.in_flight += 1
            held += 1
        else:
            answer(worker, clock, 0.01)
    assert held <= 2


def test_it_recovers() -> None:
    """A worker that was slow once is asked as the other one after a while."""
    clock = ManualClock()
    choice = balance(clock, "a", "b")
    first, second = choice._workers["m"]
    answer(first, clock, 1.0)
    answer(second, clock, 0.01)
    assert first.cost() > 50 * second.cost()
    for _ in range(60):
        clock.advance(1)
        answer(second, clock, 0.01)
    assert choice.choose("m") is first
    for _ in range(60):
        answer(first, clock, 0.01)
    assert first.cost() < 2 * second.cost()


def test_errors_say_nothing_but_when_late() -> None:
    """A refusal is quick; one that gave up after a second was slow."""
    clock = ManualClock()
    worker = Worker("a", clock.now)
    with pytest.raises(InvalidArgument), worker.asked():
        raise InvalidArgument("no")
    assert (0, 0.0) == (worker.in_flight, worker.pace_s)
    with contextlib.suppress(DeadlineExceeded), worker.asked():
        clock.advance(1)
        raise DeadlineExceeded("late")
    assert pytest.approx(1.0) == worker.pace_s


def test_where_there_is_no_choice() -> None:
    """One worker, an unknown model, one that is gone, or nobody wants it: NATS has it."""
    clock = ManualClock()
    choice = balance(clock, "a", "b")
    assert choice.choose("lonely") is None
    assert choice.choose("nobody") is None
    worker = choice.choose("m")
    assert worker is not None
    choice.gone(worker)
    assert choice.choose("m") is None
    choice.learn({"m": ["a", "b"]})
    assert choice.choose("m") is not None
    first, second = choice._workers["m"]
    assert second is choice.other("m", first)
    assert choice.other("lonely", Worker("a")) is None
    assert balance(clock, "a", "b", wanted=False).choose("m") is None

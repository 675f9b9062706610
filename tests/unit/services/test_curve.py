"""A call has as many rows as make a row cheaper, and no more."""

from collections.abc import Callable

import pytest

from services.workers.curve import AGAIN, LONG_S, TRIES, Curve


def settled(cost_s: Callable[[int], float], waiting: int, rows_max: int = 64) -> int:
    """Return how many rows a call has in the end, where always so many wait."""
    curve = Curve(rows_max)
    rows = 0
    for _ in range(20 * TRIES):
        rows = min(waiting, curve.most(waiting))
        curve.note(rows, cost_s(rows))
    return rows


@pytest.mark.parametrize("waiting", [1, 2, 5, 16, 63, 64, 200])
def test_a_row_that_costs_the_same_in_any_call_is_computed_alone(waiting: int) -> None:
    """Nobody gains from company, and each would wait for all."""
    assert settled(lambda rows: 0.005 * rows, waiting) == 1


@pytest.mark.parametrize("waiting", [1, 2, 5, 16, 63, 64])
def test_a_call_that_costs_the_same_with_any_rows_takes_all(waiting: int) -> None:
    """As where weights are read once for all rows."""
    assert settled(lambda _: 0.005, waiting) == waiting


def test_it_stops_where_a_row_becomes_hardly_cheaper() -> None:
    """4 ms for a call and 0.4 for a row: 32 rows cost 0.525 each, 64 rows 0.4625, 16 rows 0.65."""
    assert settled(lambda rows: 0.004 + 0.0004 * rows, 64) == 64
    assert settled(lambda rows: 0.002 + 0.0007 * rows, 64) == 32
    assert settled(lambda rows: 0.001 + 0.001 * rows, 64) == 16


def test_short_calls_are_left_alone() -> None:
    """What surrounds a call costs more than could be gained."""
    assert settled(lambda rows: LONG_S / 100 * rows, 64) == 64


def test_what_changed_is_found_out() -> None:
    """A model that became quick for few rows is asked for few rows, some hundred calls later."""
    curve = Curve(64)
    for _ in range(AGAIN - 1):
        rows = min(64, curve.most(64))
        curve.note(rows, 0.05)
    assert curve.most(64) == 64
    for _ in range(20 * TRIES):
        rows = min(64, curve.most(64))
        curve.note(rows, 0.005 * rows)
    assert curve.most(64) == 1


@pytest.mark.parametrize("rows_max", [1, 2, 3, 7, 24, 100, 65536])
def test_no_call_is_larger_than_it_may_be(rows_max: int) -> None:
    """Nor empty, whatever waits."""
    curve = Curve(rows_max)
    for waiting in (1, 2, 3, rows_max, rows_max + 1, 10 * rows_max):
        for _ in range(10):
            rows = curve.most(waiting)
            assert 1 <= rows <= rows_max
            curve.note(min(rows, waiting), 0.01)


def test_what_was_measured_need_not_be_tried() -> None:
    """The first call already has as many rows as pay; calls that are made go on teaching."""
    curve = Curve(64)
    for rows in curve.sizes:
        curve.learn(rows, 0.001 + 0.001 * rows)
    assert 16 == curve.most(64)
    for _ in range(40):
        curve.note(16, 0.016 * 4)
    assert 32 == curve.most(64)

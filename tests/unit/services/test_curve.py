"""A call has as many rows as make a row cheaper, no more, and never those of everybody."""

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
    """2 ms for a call, 1 for a row: 64 rows cost 1.031 each, 32 rows 1.0625, which is too much."""
    assert settled(lambda rows: 0.002 + 0.001 * rows, 64) == 64
    assert settled(lambda rows: 0.001 + 0.001 * rows, 64) == 32
    assert settled(lambda rows: 0.0005 + 0.001 * rows, 64) == 16


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


@pytest.mark.parametrize(
    ("cost_s", "rows"), [(lambda rows: 0.005 * rows, 1), (lambda _: 0.005, 64)]
)
def test_what_was_measured_need_not_be_tried(cost_s: Callable[[int], float], rows: int) -> None:
    """The first call already has as many rows as pay."""
    curve = Curve(64)
    for size in curve.sizes:
        curve.learn(size, cost_s(size))
    assert rows == curve.most(64)


def take_all(_: Curve, waiting: int, __: float) -> int:
    """Compute whoever waits."""
    return waiting


def take_what_pays(curve: Curve, waiting: int, idle_s: float) -> int:
    """Compute as a line does."""
    return min(waiting, curve.most(waiting), curve.half(waiting, idle_s))


def rows_per_s(
    take: Callable[[Curve, int, float], int],
    cost_s: Callable[[int], float],
    *,
    clients: int,
    each_s: float,
    calls: int = 800,
) -> float:
    """Return how many rows are computed a second for clients that ask again when answered.

    Args:
        take: How many rows the next call has.
        cost_s: How long it takes.
        clients: How many there are.
        each_s: What the way from an answer to the next request takes for each; it goes for all
            together that are answered in the meantime, beside the engine.
        calls: Until when; the first half is not counted.
    """
    curve, now, ended, waiting, back, done = Curve(64), 0.0, 0.0, 0, clients, [0.0]
    way: tuple[float, int] | None = None
    engine: tuple[float, int] | None = None
    rows_done = 0
    while len(done) < calls:
        if way is None and back:
            way, back = (now + each_s * back, back), 0
        if engine is None and waiting:
            rows = take(curve, waiting, now - ended)
            engine, waiting = (now + cost_s(rows), rows), waiting - rows
            curve.note(rows, cost_s(rows))
        now = min(busy[0] for busy in (way, engine) if busy is not None)
        if way is not None and way[0] == now:
            waiting, way = waiting + way[1], None
        if engine is not None and engine[0] == now:
            done.append(now)
            rows_done += engine[1] if len(done) > calls // 2 else 0
            back, engine, ended = back + engine[1], None, now
    return rows_done / (done[-1] - done[calls // 2 - 1])


@pytest.mark.parametrize("clients", [5, 8, 20, 48, 63, 64])
@pytest.mark.parametrize(("call_s", "row_s"), [(0.0023, 0.0002), (0.0006, 0.0035), (0.001, 0.0004)])
def test_two_calls_by_turns_keep_the_engine_busy(clients: int, call_s: float, row_s: float) -> None:
    """Half of the clients are computed while the other half is answered and asks again."""

    def cost_s(rows: int) -> float:
        return call_s + row_s * rows

    reachable = clients / (cost_s(clients // 2) + cost_s(-(-clients // 2)))
    found = rows_per_s(take_what_pays, cost_s, clients=clients, each_s=0.00018)
    assert found > 0.96 * reachable


def test_all_that_wait_at_once_leave_the_engine_idle() -> None:
    """What the rule is for: everybody in one call, then everybody on their way."""

    def cost_s(rows: int) -> float:
        return 0.0023 + 0.0002 * rows

    in_step = rows_per_s(take_all, cost_s, clients=64, each_s=0.00018)
    by_turns = rows_per_s(take_what_pays, cost_s, clients=64, each_s=0.00018)
    assert by_turns > 1.25 * in_step

"""Several ways to do a node: the choice follows the figures, and both are in the log."""

from typing import Any

from events.catalog import Figures, NodeScheduled, RouteChosen
from events.commands import Advice, CheckClock, RecordResult, StartRun
from events.evolve import fold
from events.run import decide
from events.state import RunState
from schemas.catalogue import load
from schemas.compiler import compile_plan
from schemas.messages import Fault, TaskResult
from schemas.workflow import parse_definition
from tests.support.play import graph, model
from tests.support.runs import AWAY


def begun(advice: Advice, **rest: Any) -> tuple[RunState, RouteChosen]:
    """Start a run of one node with an alternative; return its state and the choice."""
    node = model("a", alternatives=[{"model": "echo", "pool": "cloud"}], **rest)
    plan = compile_plan(parse_definition(graph(node)), load())
    command = StartRun("w", 1, "d", plan, {"text": "x"}, "i", "c", 0.0)
    events = decide(None, command, advice)
    state = fold(events)
    [scheduled] = [event for event in events if isinstance(event, NodeScheduled)]
    assert state is not None
    assert scheduled.route is not None
    return state, scheduled.route


def ways(edge: dict[str, Any], cloud: dict[str, Any]) -> Advice:
    """Return advice with figures of both ways."""
    known = {"default/echo": edge, "cloud/echo": cloud}
    return Advice(health={name: Figures(route=name, **item) for name, item in known.items()})


WELL = {"answers": 50, "latency_ms": 100.0}


def result(attempt: int, error: Fault | None = None) -> TaskResult:
    """Return a worker's answer for node a."""
    return TaskResult(
        tenant="default",
        run_id="r",
        node_id="a",
        attempt=attempt,
        error=error,
        outputs=None if error else {"text": "x"},
        model="echo",
        worker="w",
    )


def test_the_first_way_is_taken_while_it_is_well() -> None:
    """Even if another is somewhat faster; without figures too."""
    for advice in (Advice(), ways(WELL, {"answers": 50, "latency_ms": 60.0})):
        _, route = begun(advice)
        assert (0, "first in order") == (route.index, route.reason)


def test_a_way_that_fails_or_is_an_outlier_is_left_alone() -> None:
    """The reason and the figures are recorded."""
    for edge, word in (
        ({**WELL, "state": "open", "error_rate": 0.9}, "fails (90%)"),
        ({**WELL, "latency_ms": 900.0}, "slow (900 ms)"),
    ):
        _, route = begun(ways(edge, WELL))
        assert 1 == route.index
        assert word in route.reason
        assert ["default/echo", "cloud/echo"] == [item.route for item in route.figures]


def test_the_fastest_may_be_preferred() -> None:
    """Where the node says so."""
    _, route = begun(ways(WELL, {"answers": 50, "latency_ms": 60.0}), prefer="fastest")
    assert (1, "the fastest") == (route.index, route.reason)


def test_a_half_open_way_is_probed() -> None:
    """It stands where it stood before, as a probe."""
    _, route = begun(ways({**WELL, "state": "half_open"}, WELL))
    assert (0, True) == (route.index, "probe" in route.reason)


def test_a_retry_takes_another_way() -> None:
    """What was tried comes last."""
    state, _ = begun(Advice(), retry={"initial_delay_s": 1})
    state = fold(decide(state, RecordResult(result(1, AWAY), 0.0)), state) or state
    [again] = decide(state, CheckClock(1.0))
    assert isinstance(again, NodeScheduled)
    assert again.route is not None
    assert (1, "default/echo was tried") == (again.route.index, again.route.reason)


def test_a_hedge_asks_another_way_and_the_first_answer_counts() -> None:
    """Either may answer; a rival's failure is nothing; there is one result."""
    for winner in (1, 2):
        state, _ = begun(Advice(), hedge_after_s=0.5)
        assert 0.5 == state.wake_at()
        assert [] == decide(state, CheckClock(0.4))
        [hedge] = decide(state, CheckClock(0.5))
        assert isinstance(hedge, NodeScheduled)
        assert hedge.route is not None
        assert (True, 2, 1) == (hedge.hedge, hedge.attempt, hedge.route.index)
        state = fold([hedge], state) or state
        assert [] == decide(state, CheckClock(0.6))
        assert [] == decide(state, RecordResult(result(1, AWAY), 0.7))
        events = decide(state, RecordResult(result(winner), 0.8))
        state = fold(events, state) or state
        assert "completed" == state.status
        assert [] == decide(state, RecordResult(result(3 - winner), 0.9))

"""The Run aggregate: given events, when a command comes, then these events follow."""

import pytest

from events.catalog import NodeFailed, NodeScheduled, RunCompleted, RunRejected
from events.commands import CancelRun, RejectRun
from events.evolve import evolve, fold
from events.paths import ROOT
from events.run import decide
from events.state import NodeState
from events.view import node_inputs
from schemas.messages import Fault
from schemas.plan import Binding
from schemas.workflow import RetryPolicy
from tests.support.runs import AWAY, BROKEN, answer, brief, given, node, plan, start, tick


ONE = plan(node("a"))
CHAIN = plan(node("a"), node("b", "a"))
DIAMOND = plan(node("a"), node("b", "a"), node("c", "a"), node("d", "b", "c"))


def test_start_schedules_every_root() -> None:
    """A run begins with RunStarted and all nodes that wait for nobody."""
    _, events = given(start(plan(node("a"), node("b"), node("c", "a")), at=5.0))
    assert ["RunStarted", "NodeScheduled a 1", "NodeScheduled b 1"] == brief(events)
    assert NodeScheduled(at=5.0, node_id="a", attempt=1, deadline=15.0) == events[1]


def test_second_start_is_nothing() -> None:
    """A redelivered submission changes nothing."""
    state, _ = given(start(ONE))
    assert [] == decide(state, start(ONE, at=1.0))


def test_commands_before_the_start_are_nothing() -> None:
    """Results, ticks and cancellations of a run nobody started are stale."""
    assert [] == decide(None, answer("a", at=1.0))
    assert [] == decide(None, tick(1.0))
    assert [] == decide(None, CancelRun("", 1.0))


def test_chain_ends_with_the_last_node() -> None:
    """Each completion schedules its successor; the last one completes the run."""
    state, events = given(start(CHAIN), answer("a", at=1.0), answer("b", at=2.0))
    expected = [
        "RunStarted",
        "NodeScheduled a 1",
        "NodeCompleted a 1",
        "NodeScheduled b 1",
        "NodeCompleted b 1",
        "RunCompleted",
    ]
    assert expected == brief(events)
    assert RunCompleted(at=2.0) == events[-1]
    assert "completed" == state.status
    assert {"b": {"text": "b"}} == state.outputs


@pytest.mark.parametrize("order", ["bc", "cb"])
def test_join_waits_for_all_branches(order: str) -> None:
    """Branches run side by side; the join starts with the last, whichever it is."""
    state, _ = given(start(DIAMOND), answer("a", at=1.0), answer(order[0], at=2.0))
    assert [order[1]] == state.open_nodes()
    last = decide(state, answer(order[1], at=3.0))
    assert [f"NodeCompleted {order[1]} 1", "NodeScheduled d 1"] == brief(last)


def test_run_with_two_sinks_waits_for_both() -> None:
    """A run is complete when every node is, not when the first sink is."""
    both = plan(node("a"), node("b"))
    state, _ = given(start(both), answer("b", at=1.0))
    assert not state.terminal
    state, events = given(start(both), answer("b", at=1.0), answer("a", at=2.0))
    assert RunCompleted(at=2.0) == events[-1]
    assert {"a": {"text": "a"}, "b": {"text": "b"}} == state.outputs


def test_retryable_failure_waits_and_tries_again() -> None:
    """After the delay, and not before, the next attempt is scheduled."""
    state, events = given(start(ONE), answer("a", at=2.0, error=AWAY))
    assert NodeFailed(at=2.0, node_id="a", attempt=1, error=AWAY, retry_at=3.0) == events[-1]
    assert [] == state.open_nodes()
    assert 3.0 == state.wake_at()
    assert [] == decide(state, tick(2.9))
    expected = [NodeScheduled(at=3.0, node_id="a", attempt=2, deadline=13.0)]
    assert expected == decide(state, tick(3.0))


def test_backoff_doubles_up_to_its_limit() -> None:
    """The delays of an eager policy grow by two and stop at `max_delay_s`."""
    retry = RetryPolicy(max_attempts=6, initial_delay_s=1.0, max_delay_s=5.0)
    state, _ = given(start(plan(node("a", retry=retry))))
    delays, at = [], 0.0
    for attempt in range(1, 6):
        (failed,) = decide(state, answer("a", attempt, at=at, error=AWAY))
        assert isinstance(failed, NodeFailed)
        assert failed.retry_at is not None
        delays.append(failed.retry_at - at)
        at = failed.retry_at
        state = evolve(state, failed)
        state = fold(decide(state, tick(at)), state) or state
    assert [1.0, 2.0, 4.0, 5.0, 5.0] == delays


def test_last_attempt_fails_the_run() -> None:
    """When the attempts are used up the node's error is the run's."""
    once = plan(node("a", retry=RetryPolicy(max_attempts=1)))
    state, events = given(start(once), answer("a", at=1.0, error=AWAY))
    assert ["NodeFailed a 1", "RunFailed a"] == brief(events[-2:])
    assert ("failed", AWAY) == (state.status, state.error)


def test_terminal_error_is_not_retried() -> None:
    """What cannot succeed is not tried again."""
    state, events = given(start(ONE), answer("a", at=1.0, error=BROKEN))
    assert ["NodeFailed a 1", "RunFailed a"] == brief(events[-2:])
    assert ("failed", BROKEN) == (state.status, state.error)


def test_timeout_is_a_retryable_failure() -> None:
    """An attempt that is silent past its deadline is given up, then tried again."""
    state, _ = given(start(ONE))
    assert 10.0 == state.wake_at()
    assert [] == decide(state, tick(9.99))
    (failed,) = decide(state, tick(10.0))
    assert isinstance(failed, NodeFailed)
    assert ("DEADLINE_EXCEEDED", 11.0) == (failed.error.code, failed.retry_at)


def test_timeouts_end_the_run_at_last() -> None:
    """Silence through every attempt fails the run with DEADLINE_EXCEEDED."""
    state, events = given(start(ONE), *[tick(float(at)) for at in range(60)])
    assert 3 == sum(isinstance(event, NodeFailed) for event in events)
    assert state.error is not None
    assert ("failed", "DEADLINE_EXCEEDED") == (state.status, state.error.code)


def test_one_failure_stops_a_tick() -> None:
    """When two nodes are late for good, the run fails once."""
    once = RetryPolicy(max_attempts=1)
    both = plan(node("a", retry=once), node("b", retry=once))
    _, events = given(start(both), tick(10.0))
    assert ["NodeFailed a 1", "RunFailed a"] == brief(events[3:])


@pytest.mark.parametrize("attempt", [0, 1, 3])
def test_other_attempts_are_ignored(attempt: int) -> None:
    """While attempt 2 runs, an answer of any other one is nothing."""
    state, _ = given(start(ONE), answer("a", 1, at=1.0, error=AWAY), tick(2.0))
    assert [] == decide(state, answer("a", attempt, at=3.0))
    assert ["NodeCompleted a 2", "RunCompleted"] == brief(decide(state, answer("a", 2, at=3.0)))


def test_answer_while_waiting_is_ignored() -> None:
    """An attempt that was given up cannot come back before the next one begins."""
    state, _ = given(start(ONE), tick(10.0))
    assert [] == decide(state, answer("a", 1, at=10.5))


def test_duplicate_answers_are_ignored() -> None:
    """A redelivered result changes nothing."""
    state, _ = given(start(CHAIN), answer("a", at=1.0))
    assert [] == decide(state, answer("a", at=1.5))


@pytest.mark.parametrize("node_id", ["b", "nobody"])
def test_answers_for_nodes_not_scheduled_are_ignored(node_id: str) -> None:
    """Nobody can answer for a node that has not begun or does not exist."""
    state, _ = given(start(CHAIN))
    assert [] == decide(state, answer(node_id, at=1.0))


def test_cancel_ends_the_run() -> None:
    """A cancelled run says why and has nothing open."""
    state, events = given(start(DIAMOND), CancelRun("changed my mind", 1.0))
    assert ["RunStarted", "NodeScheduled a 1", "RunCancelled"] == brief(events)
    assert Fault(code="CANCELLED", message="changed my mind") == state.error
    assert ([], None) == (state.open_nodes(), state.wake_at())


@pytest.mark.parametrize(
    "ending",
    [answer("a", at=1.0), answer("a", at=1.0, error=BROKEN), CancelRun("", 1.0)],
    ids=["completed", "failed", "cancelled"],
)
def test_nothing_follows_the_end(ending: CancelRun) -> None:
    """Once terminal, no command makes an event."""
    state, _ = given(start(ONE), ending)
    assert state.terminal
    for late in (
        start(ONE, at=2.0),
        answer("a", at=2.0),
        answer("a", at=2.0, error=AWAY),
        tick(99.0),
        CancelRun("", 2.0),
    ):
        assert [] == decide(state, late)


def test_rejected_run_is_terminal() -> None:
    """A refused submission is a whole log of one event."""
    error = Fault(code="INVALID_ARGUMENT", message="no input 'audio'")
    state, events = given(RejectRun("w", "i", error, 1.0))
    assert [RunRejected(at=1.0, workflow="w", inputs_digest="i", error=error)] == events
    assert ("rejected", error, True) == (state.status, state.error, state.terminal)
    assert [] == decide(state, start(ONE, at=2.0))


def test_running_run_cannot_be_rejected() -> None:
    """A refusal that comes after the start is stale."""
    state, _ = given(start(ONE))
    assert [] == decide(state, RejectRun("w", "i", BROKEN, 1.0))


def test_log_must_begin_at_the_beginning() -> None:
    """An event in the middle folds into nothing."""
    with pytest.raises(AssertionError, match="first event"):
        evolve(None, NodeScheduled(at=1.0, node_id="a", attempt=1, deadline=2.0))


def test_states_are_values() -> None:
    """Folding never changes an earlier state."""
    before, _ = given(start(ONE))
    nodes = dict(before.nodes)
    after = fold(decide(before, answer("a", at=1.0)), before)
    assert nodes == before.nodes == {"a": NodeState("scheduled", 1, 0.0, 10.0)}
    assert before != after


def test_node_inputs_follow_the_bindings() -> None:
    """A node gets what its bindings name: run inputs, outputs, whole contexts, never nothing."""
    context = node("c", "a").model_copy(
        update={
            "bindings": {
                "said": Binding(node="a", output="text"),
                "missing": Binding(node="a", output="nothing"),
                "absent": Binding(node="input", output="optional"),
                "input": Binding(node="input", output=""),
                "a": Binding(node="a", output=""),
            }
        }
    )
    state, _ = given(start(plan(node("a"), context)), answer("a", at=1.0))
    expected = {"said": "a", "input": {"text": "hi"}, "a": {"text": "a"}}
    assert expected == node_inputs(state, ROOT, context)

"""Concurrency keys: who may be inside a gate, and what a run does at it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.commands import CancelRun, GrantNode, PauseRun, ResumeRun, RetryNode
from events.gates import WAITING_MAX, Gate, Place
from schemas.errors import ResourceExhausted
from tests.support.play import Play, control, graph, model
from tests.support.runs import BROKEN


def place(name: str, since: float = 0.0) -> Place:
    """Return a place of node `n` of a run."""
    return Place(run_id=name, path="n", since=since)


def test_first_come_first_served() -> None:
    """So many are inside, the others move up in order; coming twice is coming once."""
    gate = Gate()
    for name in "abcab":
        gate = gate.entered(place(name), 2)
    assert ("a", "b") == tuple(item.run_id for item in gate.inside)
    assert ("c",) == tuple(item.run_id for item in gate.waiting)
    gate = gate.left("a", "n", 5.0)
    assert [("b", 0.0), ("c", 5.0)] == [(item.run_id, item.since) for item in gate.inside]
    assert gate == gate.left("a", "n", 9.0)
    assert Gate(limit=2) == gate.left("b", "n", 6.0).left("c", "n", 6.0)


def test_a_higher_limit_lets_more_inside() -> None:
    """The newest definition says how many; a lower one throws nobody out."""
    gate = Gate().entered(place("a"), 1).entered(place("b"), 1).entered(place("c"), 3)
    assert 3 == len(gate.inside)
    assert ("d",) == tuple(item.run_id for item in gate.entered(place("d"), 1).waiting)


def test_so_many_wait_and_no_more() -> None:
    """The next one is told to come later."""
    waiting = tuple(place(str(number)) for number in range(WAITING_MAX))
    gate = Gate(inside=(place("x"),), waiting=waiting)
    with pytest.raises(ResourceExhausted):
        gate.entered(place("y"), 1)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=60), st.integers(1, 3))
def test_never_more_inside_than_the_limit(steps: list[tuple[bool, int]], limit: int) -> None:
    """Whoever comes and goes; nobody waits while there is room."""
    gate, there = Gate(), set()
    for comes, who in steps:
        if comes:
            gate = gate.entered(place(str(who)), limit)
            there.add(str(who))
        else:
            gate = gate.left(str(who), "n", 1.0)
            there.discard(str(who))
        inside = [item.run_id for item in gate.inside]
        waiting = [item.run_id for item in gate.waiting]
        assert sorted(there) == sorted([*inside, *waiting])
        assert len(inside) == min(limit, len(there)) or not waiting


GATED = graph(model("n", "input.who", concurrency={"key": "input.who"}))


def test_a_node_waits_for_its_turn() -> None:
    """It is queued under its key, and scheduled when it is granted; once."""
    play = Play(GATED).start(who="eve")
    assert ["RunStarted", "NodeQueued n"] == play.brief()
    assert play.state is not None
    assert ("eve", 1, None) == (
        play.state.nodes["n"].gate,
        play.state.nodes["n"].limit,
        play.state.wake_at(),
    )
    play.obey(GrantNode("n", 1.0))
    assert [] == play.obey(GrantNode("n", 1.0))
    assert {"n": {"text": "eve"}} == play.run().outputs
    assert ["NodeScheduled n 1", "NodeCompleted n 1", "RunCompleted"] == play.brief()[2:]


def test_a_control_node_waits_as_a_whole() -> None:
    """So a key may be for whole graphs."""
    guarded = control("g", "foreach", items="[1, 2]", body=graph(model("n", '"x"')))
    play = Play(graph({**guarded, "concurrency": {"key": '"all"', "limit": 3}})).start()
    assert ["RunStarted", "NodeQueued g"] == play.brief()
    play.obey(GrantNode("g", 1.0))
    assert "completed" == play.run().status


def test_nothing_is_granted_to_a_paused_or_ended_run() -> None:
    """After it is resumed, the turn is there still."""
    play = Play(GATED).start(who="eve")
    play.obey(PauseRun("", 1.0))
    assert [] == play.obey(GrantNode("n", 1.0))
    play.obey(ResumeRun(2.0))
    play.obey(CancelRun("", 3.0))
    assert [] == play.obey(GrantNode("n", 3.0))


def test_a_queued_node_is_forgotten_when_its_scope_fails() -> None:
    """Its turn, should it come, begins nothing."""
    body = graph(model("bad"), model("n", '"x"', concurrency={"key": '"k"'}))
    guard = control("g", "try", body=body, catch=graph(model("c", '"caught"')))
    play = Play(graph(guard), worker=lambda path, inputs: BROKEN if "bad" in path else inputs)
    state = play.run(text="x")
    assert ("completed", "caught") == (state.status, state.outputs["g"]["text"])  # type: ignore[index]
    assert [] == play.obey(GrantNode("g[body]/n", 9.0))


def test_a_failed_node_waits_again_when_it_is_tried_again() -> None:
    """It left the gate when it failed."""
    definition = {**GATED, "on_failure": "pause"}
    play = Play(definition, worker=lambda path, inputs: BROKEN).start(who="eve")
    play.obey(GrantNode("n", 1.0))
    play.work()
    assert play.state is not None
    assert "paused" == play.state.status
    play.obey(RetryNode("n", 2.0))
    assert "queued" == play.state.nodes["n"].status
    play.obey(GrantNode("n", 3.0))
    assert 2 == play.state.nodes["n"].attempt


def test_a_key_that_is_none_fails_its_node() -> None:
    """A text or a number names a gate, nothing else does."""
    state = Play(GATED).run(who=["a"])
    assert state.error is not None
    assert ("failed", "INVALID_ARGUMENT") == (state.status, state.error.code)

"""Workers are told which models will be wanted, once in a while."""

from dataclasses import replace

from events.subjects import RunKey
from services.orchestrator.hints import HINT_S, HINTED_MAX, Hints
from tests.support.clock import ManualClock
from tests.support.play import Play, graph, model


def test_a_node_is_hinted_at_once_and_then_not_for_a_while() -> None:
    """However many runs of its workflow begin; as a message that no stream keeps."""
    play = Play(graph(model("a"), model("b", "a.text", pool="far"), edges="a>b")).start(text="hi")
    assert play.state is not None
    clock = ManualClock()
    hints, key = Hints(clock), RunKey("default", "r")
    assert [] == hints.of(key, play.state, "b")
    here = {"id": "b", "params": {"model": "repeat"}, "pool": "far"}
    play = Play(graph(model("a"), {**model("b", "a.text"), **here}, edges="a>b")).start(text="hi")
    assert play.state is not None
    [hint] = hints.of(key, play.state, "a")
    assert ("clawdbot.v1.default.warm.text.far.repeat", b"", False) == (
        hint.subject,
        hint.data,
        hint.stored,
    )
    assert [] == hints.of(RunKey("default", "s"), play.state, "a")
    assert 1 == len(hints.of(RunKey("other", "s"), play.state, "a"))
    clock.advance(HINT_S)
    assert 1 == len(hints.of(key, play.state, "a"))
    for number in range(HINTED_MAX):
        hints.of(key, replace(play.state, workflow=f"w{number}"), "a")
    assert 1 == len(hints.of(key, play.state, "a"))

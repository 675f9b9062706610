"""What may be done to a run, told by its log."""

import pytest

from events.commands import CancelRun, SignalRun
from events.run import SIGNALS_MAX
from events.state import RunState
from schemas.errors import ClawdbotError, InvalidArgument, NotFound, ResourceExhausted
from schemas.messages import Control
from services.errors import WrongState, status_of
from services.gateway.controls import check, is_done, with_id
from tests.support.play import Play, graph, model
from tests.support.runs import BROKEN


def order(action: str, **details: object) -> Control:
    """Return what a client asks for."""
    return Control.model_validate({"action": action, **details})


def paused() -> RunState:
    """Return a run with a node that failed, one that is done and one that has not begun."""
    definition = graph(model("a"), model("b"), model("c"), edges="a>b b>c", on_failure="pause")
    play = Play(definition, worker=lambda path, inputs: BROKEN if path == "b" else inputs)
    return play.run(text="x")


@pytest.mark.parametrize(
    ("command", "kind", "field"),
    [
        (order("skip", node="a"), WrongState, "node"),
        (order("retry", node="a"), WrongState, "node"),
        (order("retry", node="c"), WrongState, "node"),
        (order("retry", node="d"), NotFound, "node"),
        (order("skip", node="a[0]/b"), NotFound, "node"),
        (order("skip", node="/"), NotFound, "node"),
        (order("retry", node="b"), None, None),
        (order("skip", node="b"), None, None),
        (order("skip", node="c"), None, None),
        (order("resume"), None, None),
        (order("signal", name="x"), None, None),
    ],
)
def test_mistakes_are_told_before_anything_is_stored(
    command: Control, kind: type[ClawdbotError] | None, field: str | None
) -> None:
    """With the field; what can be done passes."""
    if kind is None:
        check(paused(), command)
        return
    with pytest.raises(kind) as refused:
        check(paused(), command)
    assert field == refused.value.field


def test_a_run_that_is_over_takes_nothing_more() -> None:
    """409, but for a cancel that was sent again."""
    play = Play(graph(model("a")), worker=lambda _p, _i: None).start(text="x")
    play.obey(CancelRun("", 1.0))
    assert play.state is not None
    with pytest.raises(WrongState) as refused:
        check(play.state, order("pause"))
    assert (409, "FAILED_PRECONDITION") == (status_of(refused.value), refused.value.code)
    assert is_done(play.state, order("cancel"))
    assert not is_done(play.state, order("pause"))


def test_every_signal_has_an_id() -> None:
    """Its own, the key it came with, or a new one; what comes again is done already."""
    assert "s1" == with_id(order("signal", name="x", id="s1"), None).id
    assert "k1" == with_id(order("signal", name="x"), "k1").id
    assert "s1" == with_id(order("signal", name="x", id="s1"), "s1").id
    assert (
        with_id(order("signal", name="x"), None).id != with_id(order("signal", name="x"), None).id
    )
    assert 64 == len(with_id(order("signal", name="x"), "k" * 200).id)
    assert "" == with_id(order("pause"), "k1").id
    with pytest.raises(InvalidArgument):
        with_id(order("signal", name="x", id="s1"), "k1")
    play = Play(graph(model("a")), worker=lambda _p, _i: None).start(text="x")
    play.obey(SignalRun("x", "s1", None, 1.0))
    assert play.state is not None
    assert is_done(play.state, order("signal", name="x", id="s1"))


def test_a_run_keeps_so_many_signals_and_no_more() -> None:
    """The sender is told to come back later."""
    play = Play(graph(model("a")), worker=lambda _p, _i: None).start(text="x")
    for number in range(SIGNALS_MAX):
        play.obey(SignalRun("x", str(number), None, 1.0))
    assert play.state is not None
    with pytest.raises(ResourceExhausted):
        check(play.state, order("signal", name="x"))

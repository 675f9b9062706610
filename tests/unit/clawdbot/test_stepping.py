"""Walking through a run: steps, breakpoints, and the way back."""

import pytest

from clawdbot.stepping import Breakpoint, Stepper
from events.codec import Commit
from events.subjects import RunKey
from events.tape import Tape
from schemas.errors import InvalidArgument, NotFound
from tests.conformance.golden.make import histories


def stepper(name: str = "retried_then_completed") -> Stepper:
    """Return a golden run, before its first event."""
    commit = Commit(
        originator_id="default.r",
        originator_version=1,
        commit_id="c",
        events=tuple(histories()[name]),
    )
    return Stepper(RunKey("default", "r"), Tape().add(commit, 1))


def test_every_step_shows_the_run_as_it_was() -> None:
    """Forwards and back; the end is the end."""
    walk = stepper()
    with pytest.raises(NotFound):
        walk.view()
    assert ["RunStarted"] == [record.type for record in walk.step()]
    assert "running" == walk.view().status
    assert 2 == len(walk.step(2))
    assert {"scheduled"} == {node.status for node in walk.view().nodes if node.status != "pending"}
    walk.resume()
    assert (True, "completed") == (walk.over, walk.view().status)
    assert () == tuple(walk.step())
    walk.back()
    assert "running" == walk.view().status
    walk.back(1000)
    assert 1 == walk.position


def test_breakpoints_stop_after_what_they_name() -> None:
    """By node and by type; each time again."""
    walk = stepper()
    walk.breakpoints = [Breakpoint.of("event=NodeFailed"), Breakpoint.of("node=join")]
    assert "NodeFailed" == walk.resume()[-1].type
    stops = []
    while not walk.over:
        stops.append(walk.resume()[-1].type)
    assert ["NodeScheduled", "NodeCompleted", "RunCompleted"] == stops


@pytest.mark.parametrize("text", ["", "node=", "event=Ghost", "colour=red", "join"])
def test_a_breakpoint_that_is_none_is_refused(text: str) -> None:
    """Says what there is."""
    with pytest.raises(InvalidArgument):
        Breakpoint.of(text)

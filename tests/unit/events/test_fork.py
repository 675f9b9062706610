"""Forks: what is kept, what runs again, and that a fork of nothing changed is the same run."""

from typing import Any

import pytest

from events.catalog import ForkedFrom, NodeKept, NodeScheduled
from events.commands import CancelRun, SignalRun, StartRun
from events.fork import kept
from schemas.catalogue import load
from schemas.compiler import compile_plan
from schemas.errors import InvalidArgument
from schemas.forks import Fork, changed_definition, changed_inputs
from schemas.workflow import parse_definition
from tests.support.play import Play, control, graph, model


def template(node_id: str, text: str) -> dict[str, Any]:
    """Return a template node."""
    return {"id": node_id, "type": "template", "params": {"template": text}}


def fork(play: Play, at: int | None = None, *, clock: bool = True, **changes: Any) -> Play:
    """Return a fork of a run, with its worker; `a__text` changes `a.text`."""
    assert play.state is not None
    named = {path.replace("__", "."): value for path, value in changes.items()}
    definition = changed_definition(parse_definition(play.definition), named)
    plan = compile_plan(definition, load(), play._workflows())
    inputs = changed_inputs(play.state.inputs, named)
    events = play.log[:at]
    origin = ForkedFrom(run_id="r", at=len(events), changes=named)
    taken = kept("r", events, plan, inputs, 100.0)
    again = Play(play.definition, play.worker, play.workflows, at=100.0)
    again.obey(StartRun("w", 1, "d", plan, inputs, "i", "c", 100.0, forked_from=origin, kept=taken))
    again.work(clock=clock)
    return again


def ran(play: Play) -> list[str]:
    """Return the nodes that workers were asked for."""
    return [event.node_id for event in play.log if isinstance(event, NodeScheduled)]


def kept_by(play: Play) -> list[str]:
    """Return the nodes that were taken over."""
    return [event.node_id for event in play.log if isinstance(event, NodeKept)]


DIAMOND = graph(
    model("a", "input.text"),
    model("b", "a.text + input.more"),
    model("c", "a.text"),
    model("d", "b.text + c.text"),
    edges="a>b a>c b>d c>d",
)


def diamond() -> Play:
    """Return a finished run of the diamond."""
    play = Play(DIAMOND)
    play.run(text="x", more="y")
    return play


def test_a_fork_of_a_finished_run_with_nothing_changed_is_the_same() -> None:
    """Everything is kept; the outputs are those of the run."""
    play = diamond()
    again = fork(play)
    assert [] == ran(again)
    assert play.state is not None
    assert again.state is not None
    assert play.state.outputs == again.state.outputs
    assert "completed" == again.state.status


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"a__inputs__text": "= upper(input.text)"}, ["a", "b", "c", "d"]),
        ({"b__inputs__text": "= a.text"}, ["b", "d"]),
        ({"d__inputs__text": "= c.text"}, ["d"]),
        ({"inputs__more": "z"}, ["b", "d"]),
        ({"inputs__text": "z"}, ["a", "b", "c", "d"]),
        ({"inputs__more": "y"}, []),
        ({"c__timeout_s": 5}, ["c", "d"]),
    ],
)
def test_what_is_downstream_of_a_change_runs(changes: dict[str, Any], expected: list[str]) -> None:
    """And nothing else."""
    again = fork(diamond(), **changes)
    assert expected == ran(again)
    assert sorted({"a", "b", "c", "d"} - set(expected)) == sorted(kept_by(again))


def test_the_outputs_are_those_of_a_run_that_was_so_from_the_start() -> None:
    """A fork gives what the changed workflow gives."""
    again = fork(diamond(), inputs__more="z")
    fresh = Play(DIAMOND)
    fresh.run(text="x", more="z")
    assert again.state is not None
    assert fresh.state is not None
    assert fresh.state.outputs == again.state.outputs


def test_at_every_event_a_fork_ends_like_the_run() -> None:
    """Wherever it begins, it comes to the same outputs; what was over by then is kept."""
    play = diamond()
    for at in range(1, len(play.log) + 1):
        again = fork(play, at)
        assert again.state is not None
        assert play.state is not None
        assert play.state.outputs == again.state.outputs, at
        assert len(ran(again)) + len(kept_by(again)) == 4


def test_a_kept_node_cites_where_it_really_ran() -> None:
    """A fork of a fork cites the first run."""
    play = diamond()
    first = fork(play, inputs__more="z")
    cited = next(event for event in first.log if isinstance(event, NodeKept))
    original = play.log[cited.event - 1]
    assert ("a", "r") == (cited.node_id, cited.run_id)
    assert cited.outputs == getattr(original, "outputs", None)
    second = fork(first)
    again = next(event for event in second.log if isinstance(event, NodeKept))
    assert (cited.run_id, cited.event) == (again.run_id, again.event)


EACH = graph(
    model("first", "input.text"),
    control(
        "each", "foreach", items="first.text", as_="word", body=graph(model("say", "input.word"))
    ),
    model("last", "str(each.count)"),
    edges="first>each each>last",
)


def test_control_nodes_are_kept_whole_or_run_whole() -> None:
    """A change inside runs every iteration, a fork from the middle too."""
    play = Play(EACH)
    play.run(text=["a", "b"])
    changes: dict[str, Any] = {"each/say__timeout_s": 5}
    inside = fork(play, **changes)
    assert ["each[0]/say", "each[1]/say", "last"] == ran(inside)
    assert ["first"] == kept_by(inside)
    behind = fork(play, last__timeout_s=5)
    assert (["last"], ["first", "each"]) == (ran(behind), kept_by(behind))
    middle = play.brief().index("NodeCompleted each[0]/say 1") + 1
    assert ["each[0]/say", "each[1]/say", "last"] == ran(fork(play, middle))


def test_skipped_branches_stay_skipped_unless_the_switch_changes() -> None:
    """A changed case opens the other branch."""
    definition = graph(
        control("route", "switch", cases={"big": "input.n > 10"}),
        model("big", '"big"'),
        model("small", '"small"'),
    )
    definition["edges"] = [
        {"source": "route", "target": "big", "case": "big"},
        {"source": "route", "target": "small", "case": "default"},
    ]
    play = Play(definition)
    play.run(n=5)
    assert [] == ran(fork(play))
    assert ["big"] == ran(fork(play, route__cases__big="input.n > 1"))
    assert ["big"] == ran(fork(play, inputs__n=50))


def test_templates_use_the_inputs_they_name() -> None:
    """By name, through `input`, or all of them."""
    definition = graph(
        template("one", "{{topic}}"),
        template("two", "{{input.name}}"),
        template("three", "{{#input}}{{topic}}{{/input}}"),
        template("four", "fixed"),
    )
    play = Play(definition, worker=lambda path, _: {"text": path})
    play.run(topic="rain", name="Ada")
    assert {"one", "three"} == set(ran(fork(play, inputs__topic="sun")))
    assert {"two", "three"} == set(ran(fork(play, inputs__name="Eve")))


def test_what_was_undone_runs_again() -> None:
    """A node whose compensation began does not count as done."""
    pay = {**model("pay", "input.text"), "compensate": graph(model("refund", '"back"'))}
    play = Play(
        graph(pay, model("ship", "pay.text"), edges="pay>ship"),
        worker=lambda path, inputs: None if path == "ship" else inputs,
    )
    play.run(clock=False, text="x")
    play.obey(CancelRun("no", 1.0))
    play.work()
    play.worker = lambda _, inputs: inputs
    assert ["pay", "ship"] == ran(fork(play))


def test_signals_are_taken_over_unless_a_node_took_them() -> None:
    """The one that waits is delivered in the fork; consent is not used twice."""
    definition = graph(
        model("a", "input.text"),
        control("ok", "signal", name="ok"),
        control("more", "signal", name="more"),
        edges="a>ok ok>more",
    )
    play = Play(definition)
    play.run(clock=False, text="x")
    play.obey(SignalRun("ok", "s1", "yes", 1.0))
    play.obey(SignalRun("other", "s2", 5, 2.0))
    play.obey(SignalRun("other", "s3", 6, 3.0))
    later = fork(play, clock=False)
    assert later.state is not None
    assert (["a", "ok"], ["other", "other"]) == (
        kept_by(later),
        [signal.name for signal in later.state.signals],
    )
    assert ("s2", "s3") == later.state.signal_ids
    earlier = fork(play, clock=False, a__inputs__text="= upper(input.text)")
    assert ["a", "ok"] == ran(earlier)
    assert earlier.state is not None
    assert "scheduled" == earlier.state.nodes["ok"].status


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("ghost.model", "no node 'ghost'"),
        ("each/ghost.model", "no node 'ghost'"),
        ("first/say.model", "no graph 'body'"),
        ("first", "is no path"),
        (".model", "is no path"),
        ("first.params.x.y", "no 'params'"),
    ],
)
def test_a_change_that_fits_nothing_is_named(path: str, text: str) -> None:
    """Unknown nodes, graphs and paths; the field is the change."""
    with pytest.raises(InvalidArgument, match=text) as told:
        changed_definition(parse_definition(EACH), {path: 1})
    assert f"changes.{path}" == told.value.field


def test_the_same_fork_has_the_same_digest() -> None:
    """And another one another."""
    one = Fork(at=3, changes={"a.model": "x"})
    assert one.digest("r", "w") == Fork(at=3, changes={"a.model": "x"}).digest("r", "w")
    assert one.digest("r", "w") != Fork(at=4, changes={"a.model": "x"}).digest("r", "w")
    assert one.digest("r", "w") != one.digest("r2", "w")

"""Control structures: what a definition says is what happens, whatever workers do."""

from collections.abc import Mapping
from typing import Any

import pytest

from events.catalog import NodeFailed, NodeScheduled, NodeSkipped
from events.commands import (
    CancelRun,
    CheckClock,
    PauseRun,
    ResumeRun,
    RetryNode,
    SignalRun,
    SkipNode,
)
from events.evolve import fold
from events.turn import EVENTS_MAX
from schemas.messages import Fault
from tests.support.play import Play, control, graph, model
from tests.support.runs import AWAY, BROKEN


def failing(*paths: str) -> Any:
    """Return a worker that cannot do the nodes of these ids."""

    def work(path: str, inputs: dict[str, Any]) -> Mapping[str, Any] | Fault:
        return BROKEN if path.rpartition("/")[2] in paths else inputs

    return work


def test_a_switch_takes_one_edge_and_the_join_goes_on() -> None:
    """Untaken branches are skipped events; the merge gets the branch that was taken."""
    definition = graph(
        control("route", "switch", cases={"hot": "input.t > 30", "cold": "input.t < 5"}),
        model("fan", '"fan"'),
        model("coat", '"coat"'),
        model("shirt", '"shirt"'),
        model("say"),
    )
    definition["edges"] = [
        {"source": "route", "target": "fan", "case": "hot"},
        {"source": "route", "target": "coat", "case": "cold"},
        {"source": "route", "target": "shirt", "case": "default"},
        *({"source": name, "target": "say"} for name in ("fan", "coat", "shirt")),
    ]
    for t, worn in ((40, "fan"), (0, "coat"), (20, "shirt")):
        play = Play(definition)
        assert {"say": {"text": worn}} == play.run(t=t).outputs
        skipped = {event.node_id for event in play.log if isinstance(event, NodeSkipped)}
        assert {"fan", "coat", "shirt"} - {worn} == skipped


def test_an_edge_with_a_condition_skips_all_that_hangs_on_it() -> None:
    """`when` is over inputs and outputs; a chain behind an untaken edge is skipped whole."""
    definition = graph(model("a"), model("b"), model("c"))
    definition["edges"] = [
        {"source": "a", "target": "b", "when": 'a.text == "yes"'},
        {"source": "b", "target": "c"},
    ]
    assert {"c": {"text": "yes"}} == Play(definition).run(text="yes").outputs
    play = Play(definition)
    assert {} == play.run(text="no").outputs
    assert ["NodeSkipped b", "NodeSkipped c", "RunCompleted"] == play.brief()[-3:]


@pytest.mark.parametrize(
    ("join", "yes", "outcome"),
    [
        ("all", 0, "skipped"),
        ("all", 1, "completed"),
        ("any", 1, "completed"),
        ("any", 0, "skipped"),
        (2, 1, "skipped"),
        (2, 2, "completed"),
        (3, 3, "completed"),
    ],
)
def test_joins_know_all_any_and_a_number(join: Any, yes: int, outcome: str) -> None:
    """A join counts taken edges and is skipped as soon as they cannot be enough."""
    names = ["a", "b", "c"]
    definition = graph(
        *(control(name, "set", values={"text": f'"{name}"'}) for name in names),
        {**model("z"), "join": join},
    )
    definition["edges"] = [
        {"source": name, "target": "z", "when": f"{place} < input.yes"}
        for place, name in enumerate(names)
    ]
    state = Play(definition).run(yes=yes)
    assert ("completed", outcome) == (state.status, state.nodes["z"].status)


def test_any_begins_with_the_first() -> None:
    """The other branch goes on, and the run waits for it."""
    definition = graph(model("a"), model("b"), {**model("z"), "join": "any"}, edges="a>z b>z")
    play = Play(definition, worker=lambda path, inputs: None if path == "b" else inputs)
    state = play.run(clock=False, text="x")
    assert ("running", "completed") == (state.status, state.nodes["z"].status)


def test_a_loop_runs_until_its_condition() -> None:
    """Variables flow from iteration to iteration; `while` is checked before, `until` after."""
    body = graph(model("grow", 'input.text + "!"'))
    loop = control(
        "loop",
        "loop",
        init={"text": "input.text"},
        while_="input.index < 3",
        next={"text": "grow.text"},
        body=body,
    )
    state = Play(graph(loop)).run(text="hi")
    assert {"loop": {"text": "hi!!!", "iterations": 3}} == state.outputs
    early = control(
        "loop",
        "loop",
        init={"text": "input.text", "wanted": '"hi!!"'},
        until="grow.text == input.wanted",
        next={"text": "grow.text"},
        body=body,
    )
    found = Play(graph(early)).run(text="hi").outputs
    assert {"loop": {"text": "hi!!", "wanted": "hi!!", "iterations": 2}} == found


def test_a_loop_without_end_fails_at_its_bound() -> None:
    """Or stops there, when it says so."""
    body = graph(control("n", "set", values={"n": "input.index"}))
    params = {"while_": "true", "max_iterations": 5, "body": body}
    state = Play(graph(control("l", "loop", **params))).run()
    assert "failed" == state.status
    assert state.error is not None
    assert "5 iterations" in state.error.message
    state = Play(graph(control("l", "loop", on_limit="stop", **params))).run()
    assert {"l": {"n": 4, "iterations": 5}} == state.outputs


def test_ten_thousand_iterations_keep_the_state_small() -> None:
    """What is over is forgotten, turns stay short, and the log folds to the same state."""
    body = graph(control("n", "set", values={"n": "input.n + 1"}))
    loop = control("l", "loop", init={"n": "0"}, while_="input.n < 10000", next={"n": "n.n"},
                   max_iterations=20_000, body=body)  # fmt: skip
    play = Play(graph(loop)).start()
    longest = 0
    while play.state is not None and not play.state.terminal:
        assert len(play.state.scopes) <= 1
        wake = play.state.wake_at()
        assert wake is not None
        assert wake <= play.at
        longest = max(longest, len(play.obey(CheckClock(play.at))))
    assert play.state is not None
    assert {"l": {"n": 10_000, "iterations": 10_000}} == play.state.outputs
    assert longest < EVENTS_MAX + 10
    assert fold(play.log) == play.state


def test_foreach_keeps_order_and_bounds_what_runs_at_once() -> None:
    """Results stand in the order of the items, however workers answer."""
    each = control("each", "foreach", items="input.words", as_="text", max_parallel=2,
                   collect="echo.text", body=graph(model("echo")))  # fmt: skip
    play = Play(graph(each)).start(words=["a", "b", "c", "d", "e"])
    assert play.state is not None
    assert ["each[0]/echo", "each[1]/echo"] == play.state.open_nodes()
    order: list[str] = []
    while play.state.open_nodes():
        assert len(play.state.open_nodes()) <= 2
        order.append(play.state.open_nodes()[-1])
        play._answer(order[-1])
    assert {"each": {"items": ["a", "b", "c", "d", "e"], "count": 5}} == play.state.outputs
    assert order != sorted(order)
    assert fold(play.log) == play.state


def test_foreach_over_nothing_and_with_an_early_exit() -> None:
    """No item is no iteration; `until` begins no further one."""
    body = graph(model("m"))
    none = Play(graph(control("each", "foreach", items="[]", as_="text", body=body))).run()
    assert {"each": {"items": [], "count": 0}} == none.outputs
    some = control("each", "foreach", items='["a", "b", "c", "d"]', as_="text", max_parallel=1,
                   until='m.text == "b"', body=body)  # fmt: skip
    found = Play(graph(some)).run().outputs
    assert {"each": {"items": [{"text": "a"}, {"text": "b"}], "count": 2}} == found


def test_loops_nest_without_mixing() -> None:
    """The inner body sees its own item as `input` and the outer nodes by name."""
    pair = model("pair", 'str(row.value[0]) + "-" + str(input.x)')
    cells = control(
        "cells", "foreach", items="row.value", as_="x", collect="pair.text", body=graph(pair)
    )
    row = control("row", "set", values={"value": "input.row"})
    inside = graph(row, cells, edges="row>cells")
    outer = control(
        "out", "foreach", items="input.rows", as_="row", collect="cells.items", body=inside
    )
    found = Play(graph(outer)).run(rows=[[1, 2], [3, 4]]).outputs
    assert {"out": {"items": [["1-1", "1-2"], ["3-3", "3-4"]], "count": 2}} == found


def test_a_failure_inside_fails_the_run_and_leaves_nothing_open() -> None:
    """An iteration's failure is the loop's, and the loop's is the run's."""
    each = control("each", "foreach", items="[1, 2, 3]", body=graph(model("m", '"x"')))
    state = Play(graph(each), worker=failing("m")).run()
    assert ("failed", BROKEN) == (state.status, state.error)
    assert {} == state.scopes


def test_a_caught_failure_is_no_failure() -> None:
    """The catch sees the error, the finally runs, and the run goes on."""
    guard = control(
        "guard", "try",
        body=graph(model("risky", '"r"')),
        catch=graph(model("say", 'input.error.code + ":" + input.name')),
        finally_=graph(model("tidy", '"t"')),
    )  # fmt: skip
    play = Play(graph(guard, model("after", "guard.text"), edges="guard>after"),
                worker=failing("risky"))  # fmt: skip
    assert {"after": {"text": "INTERNAL:bob"}} == play.run(name="bob").outputs
    assert "ScopeClosed guard[finally]" in play.brief()
    fine = Play(graph(guard)).run(name="bob").outputs
    assert {"guard": {"text": "r"}} == fine


def test_finally_runs_when_the_catch_fails_too_and_when_there_is_none() -> None:
    """The error that ends the run is the last one nobody caught."""
    for bad, catch in ((("risky", "say"), graph(model("say", '"s"'))), (("risky",), None)):
        params: dict[str, Any] = {"body": graph(model("risky", '"r"'))}
        if catch is not None:
            params["catch"] = catch
        guard = control("guard", "try", finally_=graph(model("tidy", '"t"')), **params)
        play = Play(graph(guard), worker=failing(*bad))
        assert "failed" == play.run().status
        assert 1 == sum("NodeCompleted guard[finally]/tidy" in line for line in play.brief())


def saga(*, failing_id: str) -> Play:
    """Return a play of two bookings and a payment, each booking with its compensation."""

    def booking(name: str) -> dict[str, Any]:
        undo = graph(model("undo", f'"un-{name} " + input.outputs.text'))
        return model(name, f'"{name}"', compensate=undo)

    definition = graph(booking("car"), booking("hotel"), model("pay", '"p"'),
                       edges="car>hotel hotel>pay")  # fmt: skip
    return Play(definition, worker=failing(failing_id))


def test_a_failed_run_undoes_what_was_done_backwards() -> None:
    """Compensations see what their node gave, run newest first, and the error stays the run's."""
    play = saga(failing_id="pay")
    state = play.run()
    assert ("failed", BROKEN) == (state.status, state.error)
    done = [line for line in play.brief() if line.startswith("NodeCompleted")]
    expected = ["car", "hotel", "hotel[compensate]/undo", "car[compensate]/undo"]
    assert [f"NodeCompleted {path} 1" for path in expected] == done
    assert fold(play.log) == state


def test_a_cancelled_run_undoes_too() -> None:
    """Cancelling waits for the compensations, and cancelling again changes nothing."""
    play = saga(failing_id="none")
    play.worker = lambda path, inputs: None if path == "pay" else inputs
    play.run(clock=False)
    assert play.obey(CancelRun("enough", 1.0))
    assert [] == play.obey(CancelRun("really", 1.0))
    play.work()
    assert play.state is not None
    assert "cancelled" == play.state.status
    assert "NodeCompleted car[compensate]/undo 1" in play.brief()


def test_a_failing_compensation_does_not_stop_the_others() -> None:
    """It is recorded, and the next one runs."""
    play = saga(failing_id="pay")
    play.worker = failing("pay", "undo")
    assert "failed" == play.run().status
    assert 2 == sum("NodeFailed" in line and "undo" in line for line in play.brief())


def test_a_workflow_is_a_part_of_another() -> None:
    """Its inputs are bound like a model's; its `run` is its own; its only sink is its output."""
    called = graph(model("m", 'run.text + "!"'))
    outer = graph(model("a"), control("sub", "workflow", workflow="shout"), model("z"),
                  edges="a>sub sub>z")  # fmt: skip
    found = Play(outer, workflows={"shout": called}).run(text="hey").outputs
    assert {"z": {"text": "hey!"}} == found


def test_a_graph_made_by_a_node_runs_like_any_other() -> None:
    """One that does not work fails the node and says why."""
    inner = graph(model("m", 'input.text + "?"'))
    outer = graph(control("d", "dynamic", graph="input.graph"))
    assert {"d": {"text": "hi?"}} == Play(outer).run(graph=inner, text="hi").outputs
    cycle = graph(model("a"), model("b"), edges="a>b b>a")
    state = Play(outer).run(graph=cycle)
    assert state.error is not None
    assert ("failed", "cycle" in state.error.message) == (state.status, True)


def test_a_delay_ends_at_its_time_and_not_before() -> None:
    """Seconds or a time, fixed or computed."""
    for params, ends in (({"seconds": 60}, 60.0), ({"seconds": "input.s"}, 7.0),
                         ({"until": "1000"}, 1000.0)):  # fmt: skip
        play = Play(graph(control("d", "delay", **params))).start(s=7)
        assert [] == play.obey(CheckClock(ends - 0.01))
        play.obey(CheckClock(ends))
        assert play.state is not None
        assert "completed" == play.state.status


def test_a_signal_is_waited_for_or_kept() -> None:
    """It may come before its node, comes once however often it is sent, and carries a payload."""
    ask = graph(model("first"), control("ok", "signal"), edges="first>ok")
    for early in (True, False):
        play = Play(ask)
        play.worker = (lambda _p, _i: None) if early else (lambda _p, inputs: inputs)
        play.run(clock=False, text="x")
        assert play.obey(SignalRun("ok", "s1", {"by": "eve"}, 1.0))
        assert [] == play.obey(SignalRun("ok", "s1", {"by": "eve"}, 2.0))
        play.worker, play.silent = (lambda _p, inputs: inputs), set()
        state = play.run()
        assert {"ok": {"payload": {"by": "eve"}, "timed_out": False}} == state.outputs
        assert () == state.signals


def test_a_signal_that_does_not_come() -> None:
    """A default takes its place; without one the node fails."""
    with_default = {**control("ok", "signal", default="no"), "timeout_s": 5}
    play = Play(graph(with_default))
    assert {"ok": {"payload": "no", "timed_out": True}} == play.run().outputs
    assert 5.0 == play.at
    state = Play(graph({**control("ok", "signal"), "timeout_s": 5})).run()
    assert ("failed", "DEADLINE_EXCEEDED") == (state.status, state.error and state.error.code)


def test_an_emission_is_work_for_somebody_else() -> None:
    """It carries its payload or all its inputs."""
    say = {**control("out", "emit", subject="orders.done"), "inputs": {"payload": "= m.text"}}
    play = Play(graph(model("m"), say, edges="m>out"))
    assert "completed" == play.run(text="x").status
    assert [("orders.done", {"payload": "x"})] == play.emitted


def test_a_paused_run_takes_results_and_begins_nothing() -> None:
    """Resumed, it goes on where it was."""
    play = Play(graph(model("a"), model("b"), edges="a>b")).start(text="x")
    play.obey(PauseRun("look", 0.0))
    assert play.state is not None
    assert ("paused", None) == (play.state.status, play.state.wake_at())
    play._answer("a")
    assert [] == play.state.open_nodes()
    play.obey(ResumeRun(1.0))
    assert ["b"] == play.state.open_nodes()
    assert {"b": {"text": "x"}} == play.run().outputs


def test_a_run_that_pauses_on_failure_can_be_mended() -> None:
    """Retry the node, or do without it, or put outputs in its place."""
    definition = graph(model("a"), model("b"), edges="a>b", on_failure="pause")
    for mend, outputs in (
        (RetryNode("a", 1.0), {"b": {"text": "x"}}),
        (SkipNode("a", {"text": "by hand"}, "", 1.0), {"b": {"text": "by hand"}}),
        (SkipNode("a", None, "", 1.0), {}),
    ):
        play = Play(definition, worker=failing("a"))
        assert "paused" == play.run(text="x").status
        play.worker = lambda _, inputs: inputs
        play.obey(mend)
        state = play.run()
        assert ("completed", outputs) == (state.status, state.outputs)


def test_a_run_past_its_time_fails() -> None:
    """No node's deadline is later than the run's."""
    play = Play(graph(model("a"), timeout_s=3), worker=lambda _p, _i: None)
    state = play.run(text="x")
    assert ("failed", "DEADLINE_EXCEEDED") == (state.status, state.error and state.error.code)
    assert 3.0 == play.at
    [scheduled] = [event for event in play.log if isinstance(event, NodeScheduled)]
    assert 3.0 == scheduled.deadline


def test_retries_follow_their_policy() -> None:
    """Waits grow as they should, and only the codes that are named are worth one."""
    for backoff, waits in (("fixed", [1.0, 1.0]), ("linear", [1.0, 2.0])):
        retry = {"initial_delay_s": 1, "backoff": backoff, "codes": ["INTERNAL"]}
        play = Play(graph(model("a", retry=retry)), worker=failing("a"))
        play.run(text="x")
        failed = [event for event in play.log if isinstance(event, NodeFailed)]
        assert waits == [event.retry_at - event.at for event in failed if event.retry_at]
    play = Play(graph(model("a", retry={"codes": ["NOT_FOUND"]})), worker=lambda _p, _i: AWAY)
    play.run(text="x")
    assert 1 == sum(isinstance(event, NodeFailed) for event in play.log)


def test_an_expression_that_cannot_be_computed_fails_its_node() -> None:
    """With the expression and the reason."""
    state = Play(graph(control("s", "set", values={"x": "input.text + 1"}))).run(text="a")
    assert state.error is not None
    assert ("INVALID_ARGUMENT", True) == (state.error.code, "input.text + 1" in state.error.message)


def test_a_control_node_has_its_own_time_for_all_of_it() -> None:
    """A graph made by a node too: its limit is for running it, not only for compiling it."""
    made = graph(control("nap", "delay", seconds=60))
    for node in (
        control("n", "dynamic", graph="input.graph"),
        control("n", "try", body=made, finally_=graph(control("s", "set", values={"x": "1"}))),
        control("n", "foreach", items="[1, 2]", body=made),
    ):
        play = Play(graph({**node, "timeout_s": 5}))
        state = play.run(graph=made)
        assert ("failed", "DEADLINE_EXCEEDED") == (state.status, state.error and state.error.code)
        assert 5.0 == play.at
        assert "completed" == Play(graph({**node, "timeout_s": 4000})).run(graph=made).status

"""Runs that go through every control structure, played from definition to end."""

from collections.abc import Mapping
from typing import Any

from events.catalog import ForkedFrom
from events.commands import (
    CancelRun,
    CheckClock,
    GrantNode,
    PauseRun,
    ResumeRun,
    RetryNode,
    SignalRun,
    SkipNode,
    StartRun,
)
from events.fork import kept
from schemas.catalogue import load
from schemas.compiler import compile_plan
from schemas.forks import changed_definition
from schemas.messages import Fault
from schemas.workflow import parse_definition
from tests.support.play import Play, control, graph, model
from tests.support.runs import BROKEN


AT = 1_764_000_000.0


def scenarios() -> dict[str, Play]:
    """Return a finished run of each kind, by name."""
    return {
        "switch_skips_and_joins": _switch(),
        "foreach_around_a_loop": _iterations(),
        "try_catch_finally": _caught(),
        "saga_compensates_on_cancel": _saga(),
        "signals_pauses_and_waits": _signals(),
        "mended_by_hand": _mended(),
        "dynamic_graph_and_sub_workflow": _graphs(),
        "routes_and_a_hedge": _routes(),
        "fork_keeps_and_runs": _fork(),
        "queued_by_its_key": _queued(),
    }


def _switch() -> Play:
    definition = graph(
        control("facts", "set", values={"n": "len(input.text)"}),
        control("route", "switch", cases={"long": "facts.n > 3"}),
        model("long", '"long"'),
        model("short", '"short"'),
        model("say"),
        edges="facts>route long>say short>say",
    )
    definition["edges"] += [
        {"source": "route", "target": "long", "case": "long"},
        {"source": "route", "target": "short", "case": "default"},
    ]
    play = Play(definition, at=AT)
    play.run(text="Grüße, 世界")
    return play


def _iterations() -> Play:
    loop = control(
        "grow",
        "loop",
        init={"text": "input.word"},
        while_="input.index < 2",
        next={"text": "add.text"},
        body=graph(model("add", 'input.text + "!"')),
    )
    each = control(
        "each",
        "foreach",
        items="input.words",
        as_="word",
        max_parallel=2,
        collect="grow.text",
        body=graph(loop),
    )
    play = Play(graph(each), at=AT)
    play.run(words=["a", "b", "c"])
    return play


def _caught() -> Play:
    guard = control(
        "guard",
        "try",
        body=graph(model("risky", "input.text")),
        catch=graph(model("instead", "input.error.message")),
        **{"finally": graph(model("tidy", '"tidied"'))},
    )

    def work(path: str, inputs: dict[str, Any]) -> Mapping[str, Any] | Fault:
        return BROKEN if path.endswith("risky") else inputs

    play = Play(graph(guard), worker=work, at=AT)
    play.run(text="x")
    return play


def _saga() -> Play:
    def step(name: str) -> dict[str, Any]:
        undo = graph(model("undo", f'"{name} undone: " + input.outputs.text'))
        return {**model(name, "input.text"), "compensate": undo}

    play = Play(
        graph(step("book"), step("pay"), model("ship", "input.text"), edges="book>pay pay>ship"),
        worker=lambda path, inputs: None if path == "ship" else inputs,
        at=AT,
    )
    play.run(clock=False, text="x")
    play.obey(CancelRun("the customer left", AT + 9))
    play.work()
    return play


def _signals() -> Play:
    play = Play(
        graph(
            control("wait", "delay", seconds=5),
            control("ok", "signal", name="approved"),
            control("late", "signal", name="never", default={"by": "nobody"}),
            control("tell", "emit", subject="orders.done"),
            edges="wait>ok ok>late late>tell",
        ),
        at=AT,
    )
    play.start()
    play.obey(SignalRun("approved", "s1", {"by": "eve"}, AT + 1))
    play.obey(PauseRun("lunch", AT + 2))
    play.obey(ResumeRun(AT + 4))
    play.at = AT + 4
    play.work()
    return play


def _mended() -> Play:
    definition = graph(
        {**model("a", "input.text"), "retry": {"max_attempts": 1}},
        model("b", "input.text"),
        edges="a>b",
        on_failure="pause",
    )
    play = Play(definition, worker=lambda _, __: BROKEN, at=AT)
    play.run(text="x")
    play.obey(RetryNode("a", AT + 1))
    play.work()
    play.obey(SkipNode("a", {"text": "by hand"}, "", AT + 2))
    play.work()
    play.obey(SkipNode("b", None, "not needed", AT + 3))
    return play


def _graphs() -> Play:
    inner = graph(model("inner", "input.text"))
    play = Play(
        graph(
            control("plan", "dynamic", graph="input.graph"),
            control("sub", "workflow", workflow="called"),
            edges="plan>sub",
        ),
        workflows={"called": inner},
        at=AT,
    )
    play.run(graph=inner, text="x")
    return play


def _routes() -> Play:
    node = model("a", "input.text", alternatives=[{"model": "echo", "pool": "cloud"}])
    silent = {**node, "hedge_after_s": 2.0}
    play = Play(
        graph(silent),
        worker=lambda _, inputs: None if play.state is None or _fresh(play) else inputs,
        at=AT,
    )
    play.start(text="x")
    play.work(clock=False)
    play.at = AT + 2
    play.obey(CheckClock(play.at))
    play.work()
    return play


def _fresh(play: Play) -> bool:
    node = None if play.state is None else play.state.node("a")
    return node is None or node.attempt == 1


def _fork() -> Play:
    first = Play(graph(model("a", "input.text"), model("b", "a.text"), edges="a>b"), at=AT)
    first.run(text="x")
    changes = {"b.inputs.text": "= upper(a.text)"}
    definition = changed_definition(parse_definition(first.definition), changes)
    plan = compile_plan(definition, load())
    at = AT + 60
    taken = kept("golden", first.log, plan, {"text": "x"}, at)
    origin = ForkedFrom(run_id="golden", at=len(first.log), changes=changes)
    fork = Play(first.definition, at=at)
    fork.obey(
        StartRun("w", 1, "d", plan, {"text": "x"}, "i", "c", at, forked_from=origin, kept=taken)
    )
    fork.work()
    return fork


def _queued() -> Play:
    key = {"concurrency": {"key": "input.text", "limit": 1}}
    play = Play(graph(model("a", "input.text", **key)), at=AT).start(text="x")
    play.obey(GrantNode("a", AT + 1))
    play.at = AT + 2
    play.work()
    return play

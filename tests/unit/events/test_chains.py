"""What a worker may go on with, and how its results are recorded."""

from itertools import pairwise
from typing import Any

import pytest

from events.chains import AHEAD_MAX, FOLLOWING_MAX, ahead, following
from events.commands import PauseRun, RecordResult
from schemas.messages import Fault, TaskResult
from tests.support.play import Play, control, graph, model
from tests.support.runs import brief


def template(node_id: str, text: str) -> dict[str, Any]:
    """Return a template node."""
    return {"id": node_id, "type": "template", "params": {"template": text}}


def ids(definition: dict[str, Any], first: str = "a") -> list[str]:
    """Return what may follow the first node of a run."""
    play = Play(definition).start(text="hi")
    assert play.state is not None
    return [node.node_id for node in following(play.state, first)[0]]


def done(node_id: str, *then: TaskResult, error: Fault | None = None) -> TaskResult:
    """Return a worker's result."""
    return TaskResult(
        tenant="default",
        run_id="r",
        node_id=node_id,
        attempt=1,
        outputs=None if error else {"text": node_id},
        error=error,
        model="echo",
        worker="w",
        then=then,
    )


CHAIN = graph(model("a"), model("b", "a.text"), model("c", "b.text"), edges="a>b b>c")


def test_a_chain_follows_to_its_end() -> None:
    """Templates too; up to a limit."""
    assert ["b", "c"] == ids(CHAIN)
    assert ["b"] == ids(graph(model("a"), template("b", "{{a.text}}"), edges="a>b"))
    names = [f"n{number}" for number in range(20)]
    long = graph(
        *(model(name) for name in names),
        edges=" ".join(f"{left}>{right}" for left, right in pairwise(names)),
    )
    assert names[1 : FOLLOWING_MAX + 1] == ids(long, "n0")


@pytest.mark.parametrize(
    "definition",
    [
        graph(model("a"), model("b"), model("c", "b.text"), edges="a>c b>c"),
        graph(model("a"), model("b", "a.text"), model("c", "a.text"), edges="a>b a>c"),
        graph(model("a"), model("b", "a.text", pool="edge"), edges="a>b"),
        graph(model("a"), model("b", "a.text", priority="high"), edges="a>b"),
        graph(model("a"), model("b", "a.text", alternatives=[{"model": "echo"}]), edges="a>b"),
        {
            **graph(model("a"), model("b", "a.text")),
            "edges": [{"source": "a", "target": "b", "when": "a.text == 'hi'"}],
        },
    ],
    ids=["two_sources", "two_followers", "pool", "lane", "alternatives", "condition"],
)
def test_what_needs_a_decision_does_not_follow(definition: dict[str, Any]) -> None:
    """Only what would come next in any case, in the same place."""
    assert [] == ids(definition)


def test_what_the_chain_needs_besides_goes_along() -> None:
    """The run's inputs, and nodes that were done before."""
    definition = graph(
        model("a"),
        model("b", "a.text"),
        model("c", "b.text + a.text + input.text"),
        edges="a>b b>c",
    )
    play = Play(definition, worker=lambda path, _: {"text": "A"} if path == "a" else None)
    play.run(clock=False, text="hi")
    assert play.state is not None
    then, seen = following(play.state, "b")
    assert ["c"] == [node.node_id for node in then]
    assert {"a": {"text": "A"}, "input": {"text": "hi"}} == seen


def test_results_of_one_message_are_recorded_as_if_they_came_one_by_one() -> None:
    """The same events in the same order."""
    together, apart = Play(CHAIN).start(text="hi"), Play(CHAIN).start(text="hi")
    together.obey(RecordResult(done("a", done("b"), done("c")), 1.0))
    for node_id in "abc":
        apart.obey(RecordResult(done(node_id), 1.0))
    assert together.log == apart.log
    assert together.state == apart.state
    assert together.brief()[-1] == "RunCompleted"


def test_a_node_that_fails_on_the_way_failed_its_first_attempt() -> None:
    """What was done before stays done; the node is tried again by itself."""
    away = Fault(code="UNAVAILABLE", message="away", retryable=True)
    play = Play(CHAIN).start(text="hi")
    happened = play.obey(RecordResult(done("a", done("b", error=away)), 1.0))
    assert ["NodeCompleted a 1", "NodeScheduled b 1", "NodeFailed b 1"] == brief(happened)


def test_a_pause_makes_the_rest_stale() -> None:
    """The first was under way; what would have followed did not begin."""
    play = Play(CHAIN).start(text="hi")
    play.obey(PauseRun("", 0.5))
    happened = play.obey(RecordResult(done("a", done("b")), 1.0))
    assert ["NodeCompleted a 1"] == brief(happened)


def routes(definition: dict[str, Any], first: str = "a") -> list[tuple[str, str, str]]:
    """Return whose workers are told of which models when a node begins."""
    play = Play(definition).start(text="hi")
    assert play.state is not None
    return [(item.modality, item.pool, item.model) for item in ahead(play.state, first)]


def speak(node_id: str = "z", source: str = "a", **rest: Any) -> dict[str, Any]:
    """Return a node of another modality."""
    params = {"model": "espeak-ng"}
    inputs = {"text": f"= {source}.text"}
    return {"id": node_id, "type": "model", "params": params, "inputs": inputs, **rest}


SPEAKS = ("audio", "default", "espeak-ng")


@pytest.mark.parametrize(
    "definition",
    [
        graph(model("a"), speak(), edges="a>z"),
        graph(model("a"), model("b"), speak(), edges="a>z b>z"),
        graph(model("a"), model("b", "a.text"), speak(source="b"), edges="a>b b>z"),
        {
            **graph(model("a"), speak()),
            "edges": [{"source": "a", "target": "z", "when": "a.text == 'no'"}],
        },
        graph(
            model("a"),
            control("l", "loop", while_="false", body=graph(speak(source="run"))),
            edges="a>l",
        ),
    ],
    ids=["next", "join", "behind_a_chain", "condition", "inside_a_loop"],
)
def test_workers_are_told_what_they_will_be_asked_for(definition: dict[str, Any]) -> None:
    """The models after a node, wherever they run; not those that its own worker goes on with."""
    assert [SPEAKS] == routes(definition)


def test_nobody_is_told_what_is_known() -> None:
    """The end of a run, a chain of the same worker, what has begun, calls outside."""
    call = {"id": "z", "type": "http", "params": {"url": "http://example.com"}}
    assert [] == routes(graph(model("a"), speak(), edges="a>z"), "z")
    assert [] == routes(CHAIN)
    assert [] == routes(graph(model("a"), call, edges="a>z"))
    many = graph(
        model("a"),
        *(speak(f"z{number}", pool=f"p{number}") for number in range(20)),
        edges=" ".join(f"a>z{number}" for number in range(20)),
    )
    assert AHEAD_MAX == len(routes(many))

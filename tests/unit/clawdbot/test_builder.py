"""WorkflowBuilder: the brief's chain, and errors at the line that causes them."""

from collections.abc import Callable

import pytest

from clawdbot import WorkflowBuilder
from schemas.catalogue import load
from schemas.compiler import compile_plan
from schemas.errors import InvalidArgument
from schemas.workflow import RetryPolicy


def test_the_chain_of_the_brief() -> None:
    """Word for word."""
    wf = (
        WorkflowBuilder()
        .add_node("asr", model="whisper-tiny")
        .add_node("nlu", model="distilbert-base")
        .add_node("tts", model="fastspeech2")
        .connect("asr", "nlu")
        .connect("nlu", "tts")
    )
    assert wf.definition().model_dump(exclude_defaults=True) == {
        "nodes": (
            {"id": "asr", "type": "model", "params": {"model": "whisper-tiny"}},
            {"id": "nlu", "type": "model", "params": {"model": "distilbert-base"}},
            {"id": "tts", "type": "model", "params": {"model": "fastspeech2"}},
        ),
        "edges": ({"source": "asr", "target": "nlu"}, {"source": "nlu", "target": "tts"}),
    }


def test_templates_params_and_sources() -> None:
    """Everything a node may have."""
    wf = (
        WorkflowBuilder()
        .add_node("asr", model="pocketsphinx", grammar="#JSGF", timeout_s=5)
        .add_node("say", template="{{asr.text}}", inputs={"x": "asr.text"})
    )
    asr, say = wf.definition().nodes
    assert (asr.params["grammar"], asr.timeout_s) == ("#JSGF", 5)
    assert (say.type, say.inputs) == ("template", {"x": "asr.text"})


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda wf: wf.add_node("a", model="m").add_node("a", model="m"), "twice"),
        (lambda wf: wf.add_node("a.b", model="m"), "id"),
        (lambda wf: wf.add_node("a"), "exactly one"),
        (lambda wf: wf.add_node("a", model="m", template="t"), "exactly one"),
        (lambda wf: wf.connect("a", "b"), "no node 'a'"),
        (lambda wf: wf.add_node("a", model="m", timeout_s=-1), "greater"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    build: Callable[[WorkflowBuilder], object], word: str
) -> None:
    """At the line that says it."""
    with pytest.raises(InvalidArgument) as refused:
        build(WorkflowBuilder())
    assert word in f"{refused.value.message} {refused.value.field}"


def test_cycles_and_emptiness_show_when_it_is_done() -> None:
    """Deploying would say the same."""
    wf = WorkflowBuilder().add_node("a", model="m").add_node("b", model="m")
    with pytest.raises(InvalidArgument, match="cycle"):
        wf.connect("a", "b").connect("b", "a").definition()
    with pytest.raises(InvalidArgument):
        WorkflowBuilder().definition()


def body(text: str = '"x"') -> WorkflowBuilder:
    """Return a graph of one node."""
    return WorkflowBuilder().add_node("m", model="echo", inputs={"text": f"= {text}"})


INNER = {
    "nodes": [
        {"id": "m", "type": "model", "params": {"model": "echo"}, "inputs": {"text": '= "x"'}}
    ]
}


@pytest.mark.parametrize(
    ("build", "kind", "params"),
    [
        (
            lambda wf: wf.set("n", {"total": "input.net * 1.2"}),
            "set",
            {"values": {"total": "input.net * 1.2"}},
        ),
        (
            lambda wf: wf.switch("n", cases={"hot": "input.t > 30"}, default="mild"),
            "switch",
            {"cases": {"hot": "input.t > 30"}, "default": "mild"},
        ),
        (lambda wf: wf.switch("n", on="input.kind"), "switch", {"on": "input.kind"}),
        (
            lambda wf: wf.loop(
                "n",
                body(),
                init={"text": "input.text"},
                while_="input.index < 3",
                until='m.text == "y"',
                next_={"text": "m.text"},
                max_iterations=5,
                on_limit="stop",
            ),
            "loop",
            {
                "body": INNER,
                "init": {"text": "input.text"},
                "while": "input.index < 3",
                "until": 'm.text == "y"',
                "next": {"text": "m.text"},
                "max_iterations": 5,
                "on_limit": "stop",
            },
        ),
        (
            lambda wf: wf.foreach("n", "input.words", body(), as_="word", collect="m.text"),
            "foreach",
            {"items": "input.words", "body": INNER, "as": "word", "collect": "m.text"},
        ),
        (
            lambda wf: wf.foreach("n", "[1]", body(), until="true", max_parallel=2, max_items=9),
            "foreach",
            {"items": "[1]", "body": INNER, "until": "true", "max_parallel": 2, "max_items": 9},
        ),
        (
            lambda wf: wf.try_("n", body(), catch=body().definition(), finally_=INNER),
            "try",
            {"body": INNER, "catch": INNER, "finally": INNER},
        ),
        (
            lambda wf: wf.workflow("n", "shout", version=2),
            "workflow",
            {"workflow": "shout", "version": 2},
        ),
        (
            lambda wf: wf.dynamic("n", "input.graph", max_nodes=5),
            "dynamic",
            {"graph": "input.graph", "max_nodes": 5},
        ),
        (lambda wf: wf.delay("n", 1.5), "delay", {"seconds": 1.5}),
        (lambda wf: wf.delay("n", "input.s"), "delay", {"seconds": "input.s"}),
        (lambda wf: wf.delay("n", until="input.at"), "delay", {"until": "input.at"}),
        (lambda wf: wf.signal("n"), "signal", {"name": "n"}),
        (
            lambda wf: wf.signal("n", name="ok", default=None),
            "signal",
            {"name": "ok", "default": None},
        ),
        (lambda wf: wf.emit("n", "orders.done"), "emit", {"subject": "orders.done"}),
        (
            lambda wf: wf.http("n", "https://example.org", method="POST", headers={"a": "b"}),
            "http",
            {"url": "https://example.org", "method": "POST", "headers": {"a": "b"}},
        ),
    ],
)
def test_every_kind_of_control_node(
    build: Callable[[WorkflowBuilder], WorkflowBuilder], kind: str, params: dict[str, object]
) -> None:
    """What is given stands in `params` under its name in the definition, and nothing else."""
    [node] = build(WorkflowBuilder()).definition().nodes
    assert (kind, params) == (node.type, node.params)


def test_what_every_node_may_have() -> None:
    """Sources, time, retries, join, compensation; conditions of edges; limits of the workflow."""
    undo = body("input.outputs.text")
    wf = (
        WorkflowBuilder(timeout_s=60, on_failure="pause")
        .switch("route", on="input.kind")
        .add_node("a", model="echo", compensate=undo)
        .add_node("b", model="echo", retry=RetryPolicy(max_attempts=1), pool="edge")
        .emit("out", "done", payload="a.text", timeout_s=5, join="any")
        .connect("route", "a", case="x")
        .connect("route", "b", when='route.case == "y"')
        .connect("a", "out")
        .connect("b", "out")
    )
    made = wf.definition()
    a, b, out = made.nodes[1:]
    assert (60, "pause") == (made.timeout_s, made.on_failure)
    assert undo.definition().model_dump(mode="json", exclude_defaults=True) == a.compensate
    assert (1, "edge") == (b.retry.max_attempts, b.pool)
    assert ({"payload": "a.text"}, 5, "any") == (out.inputs, out.timeout_s, out.join)
    assert [("x", None), (None, 'route.case == "y"')] == [
        (edge.case, edge.when) for edge in made.edges[:2]
    ]
    assert compile_plan(made, load()).pause_on_failure


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda wf: wf.switch("n"), "n.params"),
        (lambda wf: wf.switch("n", on="a", cases={"x": "true"}), "n.params"),
        (lambda wf: wf.loop("n", body()), "n.params"),
        (
            lambda wf: wf.loop("n", body(), until="true", max_iterations=0),
            "n.params.max_iterations",
        ),
        (lambda wf: wf.try_("n", body()), "n.params"),
        (lambda wf: wf.delay("n"), "n.params"),
        (lambda wf: wf.delay("n", -1), "n.params.seconds"),
        (lambda wf: wf.emit("n", "a b"), "n.params.subject"),
        (lambda wf: wf.signal("n", name="a b"), "n.params.name"),
        (lambda wf: wf.set("n", {}), "n.params.values"),
        (lambda wf: wf.foreach("n", "", body()), "n.params.items"),
        (lambda wf: wf.set("n", {"x": "1"}, join=0), "join"),
    ],
)
def test_control_nodes_that_cannot_work_are_refused_at_once(
    build: Callable[[WorkflowBuilder], object], field: str
) -> None:
    """With the parameter's place."""
    with pytest.raises(InvalidArgument) as refused:
        build(WorkflowBuilder())
    assert field == refused.value.field

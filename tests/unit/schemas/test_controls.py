"""Control nodes from definition to plan: every mistake is named with its place."""

from typing import Any

import pytest

from schemas.bindings import DEPTH_MAX
from schemas.catalogue import load
from schemas.compiler import compile_plan
from schemas.errors import ClawdbotError, InvalidArgument
from schemas.inputs import input_ports
from schemas.plan import Plan
from schemas.submission import check_inputs
from schemas.workflow import parse_definition
from services.gateway.deployments import _worked_on
from tests.support.play import control, graph, model


BODY = graph(model("m", '"x"'))
SWITCH = control("s", "switch", cases={"hot": "input.t > 30"})


def compiled(document: dict[str, Any], **workflows: dict[str, Any]) -> Plan:
    """Return a definition's plan."""
    called = {name.replace("__", "@"): parse_definition(item) for name, item in workflows.items()}
    return compile_plan(parse_definition(document), load(), called)


def with_edge(*nodes: dict[str, Any], **edge: str) -> dict[str, Any]:
    """Return a graph whose first two nodes an edge connects."""
    ends = {"source": nodes[0]["id"], "target": nodes[1]["id"]}
    return {"nodes": list(nodes), "edges": [{**ends, **edge}]}


def deep(levels: int) -> dict[str, Any]:
    """Return loops inside loops."""
    inner = BODY
    for level in range(levels):
        inner = graph(control(f"l{level}", "loop", until="true", body=inner))
    return inner


@pytest.mark.parametrize(
    ("document", "field", "message"),
    [
        (graph(control("n", "set")), "params.values", "required"),
        (graph(control("n", "set", values={"x": "1 +"})), "params.values.x", "not an expression"),
        (graph(control("n", "set", values={"x": "a.b"})), "params.values.x", "cannot see 'a'"),
        (graph(control("n", "set", values={"x y": "1"})), "params.values.x y.[key]", "match"),
        (graph(control("n", "set", values={}, y=1)), "params.values", "at least 1"),
        (graph(control("n", "switch")), "params", 'either "on" or "cases"'),
        (graph(control("n", "switch", on="a")), "params.on", "cannot see 'a'"),
        (graph(control("n", "switch", cases={"x": "("})), "params.cases.x", "not an expression"),
        (graph(control("n", "loop", body=BODY)), "params", '"while" or "until"'),
        (graph(control("n", "loop", until="true")), "params.body", "required"),
        (
            graph(control("n", "loop", until="true", body=graph())),
            "params.body.nodes",
            "at least 1",
        ),
        (
            graph(control("n", "loop", until="true", body=graph(model("a"), edges="a>z"))),
            "params.body.edges[0].target",
            "no node 'z'",
        ),
        (
            graph(control("n", "loop", while_="m.text", body=BODY)),
            "params.while",
            "cannot see 'm'",
        ),
        (graph(control("n", "loop", while_="input.y", body=BODY)), "params.while", "not 'y'"),
        (graph(control("n", "loop", until="m.y", body=BODY)), "params.until", "gives text"),
        (
            graph(control("n", "loop", until="true", next={"x": "q"}, body=BODY)),
            "params.next.x",
            "cannot see 'q'",
        ),
        (
            graph(control("n", "loop", until="true", init={"x": "m.text"}, body=BODY)),
            "params.init.x",
            "cannot see 'm'",
        ),
        (
            graph(control("n", "loop", until="true", max_iterations=10**6, body=BODY)),
            "params.max_iterations",
            "100000",
        ),
        (
            graph(control("n", "loop", until="true", body=graph(model("a")))),
            "params.body.nodes[0].inputs.text",
            "nothing upstream",
        ),
        (graph(control("n", "foreach", body=BODY)), "params.items", "required"),
        (graph(control("n", "foreach", items="x", body=BODY)), "params.items", "cannot see 'x'"),
        (
            graph(control("n", "foreach", items="[]", body=graph(model("a")))),
            "params.body.nodes[0].inputs.text",
            "nothing upstream",
        ),
        (
            graph(control("n", "foreach", items="[]", as_="t", body=graph(model("a", "input.q")))),
            "params.body.nodes[0].inputs.text",
            "'input' holds index, t here, not 'q'",
        ),
        (
            graph(control("n", "foreach", items="[]", collect="m.z", body=BODY)),
            "params.collect",
            "not 'z'",
        ),
        (
            graph(control("n", "foreach", items="[]", max_parallel=0, body=BODY)),
            "params.max_parallel",
            "greater",
        ),
        (graph(control("n", "try", body=BODY)), "params", '"catch" or "finally"'),
        (
            graph(control("n", "try", body=BODY, catch=graph(model("a", "m.text")))),
            "params.catch.nodes[0].inputs.text",
            "cannot see 'm'",
        ),
        (
            graph(control("n", "try", body={**BODY, "timeout_s": 3}, catch=BODY)),
            "params.body",
            "outermost",
        ),
        (graph(control("n", "workflow", workflow="w")), "params.workflow", "no workflow 'w'"),
        (
            graph(control("n", "workflow", workflow="w", version=2)),
            "params.workflow",
            "no workflow 'w' version 2",
        ),
        (graph(control("n", "dynamic", graph="x")), "params.graph", "cannot see 'x'"),
        (
            graph(control("n", "dynamic", graph="input.g", max_nodes=0)),
            "params.max_nodes",
            "greater",
        ),
        (graph(control("n", "delay")), "params", 'either "seconds" or "until"'),
        (graph(control("n", "delay", seconds=-1)), "params.seconds", "number of seconds"),
        (graph(control("n", "delay", seconds="x")), "params.seconds", "cannot see 'x'"),
        (graph(control("n", "delay", until="x")), "params.until", "cannot see 'x'"),
        (graph(control("n", "signal", name="a b")), "params.name", "letters"),
        (graph(control("n", "http")), "params.url", "needs a url"),
        (graph(control("n", "http", url="ftp://a")), "params", "begins with http"),
        (graph(control("n", "http", url="http://u:p@a/")), "params", "no credentials"),
        (graph(control("n", "http", url="http://a", method="SPY")), "params.method", "GET"),
        (graph(control("n", "http", url="http://a", headers={"Host": "b"})), "params", "Host"),
        (graph(control("n", "http", url="http://a", headers={"X": "a\nb"})), "params", "X is no"),
        (graph(control("n", "http", url="http://a", accept=[99])), "params.accept[0]", "100"),
        (
            graph({**control("n", "http", url="http://a"), "inputs": {"text": "input.x"}}),
            "inputs.text",
            "it has url, query, headers, body",
        ),
        (
            graph({**control("n", "http", url="http://a"), "inputs": {"body": "z.text"}}),
            "inputs.body",
            "neither",
        ),
        (
            graph({**control("n", "http", url="http://a", method="POST"), "memo": True}),
            "memo",
            "only a GET",
        ),
        (graph({**control("n", "delay", seconds=1), "memo": True}), "memo", "no memo"),
        (graph(model("n", '"x"', memo=0)), "memo", "true, or a number"),
        (graph(model("n", '"x"', priority="urgent")), "priority", "high"),
        (
            graph(model("n", '"x"', concurrency={"key": "z.text"})),
            "concurrency.key",
            "cannot see 'z'",
        ),
        (graph(model("n", '"x"', concurrency={"key": "1", "limit": 0})), "concurrency.limit", "1"),
        (
            graph({"id": "n", "type": "model", "params": {"model": "http"}}),
            "params.model",
            "the type http",
        ),
        (
            graph(control("n", "loop", until="true", body={**BODY, "priority": "high"})),
            "params.body",
            "outermost graph",
        ),
        (graph(control("n", "emit")), "params.subject", "required"),
        (graph(control("n", "emit", subject="a.*")), "params.subject", "match"),
        (
            graph({**control("n", "emit", subject="a"), "inputs": {"payload": "z.text"}}),
            "inputs.payload",
            "neither",
        ),
        (
            graph({**control("n", "set", values={"x": "1"}), "inputs": {"x": "input.y"}}),
            "inputs",
            "no inputs",
        ),
        (
            graph({**control("n", "set", values={"x": "1"}), "pool": "edge"}),
            "type",
            "no pool",
        ),
        (graph({**control("n", "delay", seconds=1), "join": 2}), "join", "0 incoming"),
        (graph({**control("n", "delay", seconds=1), "join": "some"}), "join", "all, any or"),
        (
            graph({**model("n", '"x"'), "compensate": graph(model("a", "n.text"))}),
            "compensate.nodes[0].inputs.text",
            "cannot see 'n'",
        ),
        (
            graph({**model("n", '"x"'), "compensate": graph(model("a", "input.text"))}),
            "compensate.nodes[0].inputs.text",
            "'input' holds error, outputs here",
        ),
    ],
)
def test_mistakes_in_control_nodes_are_named(
    document: dict[str, Any], field: str, message: str
) -> None:
    """With the parameter's place, inside graphs too."""
    with pytest.raises(ClawdbotError, match=message.replace("(", r"\(")) as refused:
        compiled(document)
    assert f"nodes[0].{field}" == refused.value.field


@pytest.mark.parametrize(
    ("document", "field", "message"),
    [
        (with_edge(SWITCH, model("a"), case="cold"), "edges[0].case", "no case 'cold'"),
        (with_edge(model("b"), model("a"), case="hot"), "edges[0].case", "is no switch"),
        (with_edge(model("b"), model("a"), when="b.txt"), "edges[0].when", "not 'txt'"),
        (with_edge(model("b"), model("a"), when="a.text"), "edges[0].when", "cannot see 'a'"),
        (with_edge(model("b"), model("a"), when="b."), "edges[0].when", "not an expression"),
    ],
)
def test_mistakes_in_edges_are_named(document: dict[str, Any], field: str, message: str) -> None:
    """With the edge."""
    with pytest.raises(InvalidArgument, match=message) as refused:
        compiled(document)
    assert field == refused.value.field


def test_ids_are_unique_as_far_as_one_can_see() -> None:
    """A node inside may not hide one outside that it sees; beside it, it may."""
    inner = graph(model("a", '"x"'))
    twice = graph(model("a"), control("l", "loop", until="true", body=inner), edges="a>l")
    with pytest.raises(InvalidArgument, match="used outside"):
        compiled(twice)
    compiled(graph(model("a"), control("l", "loop", until="true", body=inner)))
    for name in ("input", "run"):
        with pytest.raises(InvalidArgument, match="names the inputs"):
            compiled(graph(model(name, '"x"')))


def test_graphs_nest_so_deep_and_no_deeper() -> None:
    """The place of the one too many is named."""
    compiled(deep(DEPTH_MAX))
    with pytest.raises(InvalidArgument, match=f"at most {DEPTH_MAX} deep"):
        compiled(deep(DEPTH_MAX + 1))


def test_workflows_may_not_call_each_other_in_a_circle() -> None:
    """The chain is in the error; a mistake inside the called one names it."""
    a = graph(control("n", "workflow", workflow="b"))
    b = graph(control("n", "workflow", workflow="a"))
    with pytest.raises(InvalidArgument, match="a -> b -> a"):
        compiled(graph(control("n", "workflow", workflow="a")), a=a, b=b)
    bad = graph(control("n", "delay", seconds="x"))
    with pytest.raises(InvalidArgument, match=r"workflow 'a', nodes\[0\]\.params\.seconds"):
        compiled(graph(control("n", "workflow", workflow="a")), a=bad)


def test_a_version_of_a_workflow_can_be_named() -> None:
    """Beside the newest."""
    old, new = graph(model("m", '"old"')), graph(model("m", '"new"'))
    plan = compiled(
        graph(
            control("o", "workflow", workflow="w", version=1),
            control("n", "workflow", workflow="w"),
        ),
        w=new,
        w__1=old,
    )
    found = [node.bodies["body"].node("m").bindings["text"].expression for node in plan.nodes]
    assert ['"old"', '"new"'] == found


@pytest.mark.parametrize(
    ("document", "inputs"),
    [
        (graph(control("s", "set", values={"x": "input.a"})), {"a": False}),
        (graph(control("s", "set", values={"x": 'input["a"]'})), {"a": False}),
        (with_edge(model("a"), model("b"), when="input.c"), {"text": True, "c": False}),
        (graph(control("t", "try", body=graph(model("a")), catch=BODY)), {"text": True}),
        (graph(control("t", "try", body=BODY, catch=graph(model("a")))), {"text": False}),
        (
            graph(control("e", "foreach", items="input.l", as_="text", body=graph(model("a")))),
            {"l": False},
        ),
        (
            graph(control("e", "foreach", items="[]", collect="run.c", body=BODY)),
            {"c": False},
        ),
        (
            graph(
                control(
                    "e",
                    "foreach",
                    items="[]",
                    body=graph({**model("a"), "inputs": {"text": "run.t"}}),
                )
            ),
            {"t": True},
        ),
        (
            graph(control("l", "loop", while_="run.go", body=BODY, next={"x": "run.n"})),
            {"go": False, "n": False},
        ),
        (
            graph({**model("a", '"x"'), "compensate": graph(model("u", "run.who"))}),
            {"who": False},
        ),
    ],
)
def test_a_run_may_bring_what_any_graph_inside_uses(
    document: dict[str, Any], inputs: dict[str, bool]
) -> None:
    """And nothing else; what a body must have is needed, what only a catch has is not."""
    plan = compiled(document)
    assert inputs == plan.run_inputs()
    check_inputs(dict.fromkeys(inputs, "x"), plan)
    with pytest.raises(InvalidArgument, match="no input 'other'"):
        check_inputs({**dict.fromkeys(inputs, "x"), "other": 1}, plan)


@pytest.mark.parametrize(
    "document",
    [
        graph(control("d", "dynamic", graph="input.g")),
        graph(control("s", "set", values={"x": "keys(input)"})),
        graph(control("s", "set", values={"x": "input[input.k]"})),
        graph(control("o", "emit", subject="a")),
        graph({"id": "t", "type": "template", "params": {"template": "{{input.x}}"}}),
    ],
)
def test_some_workflows_take_any_input(document: dict[str, Any]) -> None:
    """Where something uses the inputs as a whole, nobody can say what is of use."""
    check_inputs({"g": 1, "whatever": 2}, compiled(document))


def test_the_inputs_of_a_called_workflow_are_bound_like_a_models() -> None:
    """By name along the edges; what it needs and nobody gives is an error."""
    called = graph(model("m"))
    plan = compiled(
        graph(model("a"), control("w", "workflow", workflow="c"), edges="a>w"), c=called
    )
    assert ("a", "text") == (
        plan.node("w").bindings["text"].node,
        plan.node("w").bindings["text"].output,
    )
    source = control("a", "set", values={"other": "1"})
    with pytest.raises(InvalidArgument, match="nothing upstream gives its input 'text'"):
        compiled(graph(source, control("w", "workflow", workflow="c"), edges="a>w"), c=called)


def test_a_called_workflow_of_templates_takes_what_it_is_given() -> None:
    """Nobody can say which inputs a template uses, so the node's own are passed on."""
    called = graph({"id": "t", "type": "template", "params": {"template": "{{input.name}}"}})
    node = {**control("w", "workflow", workflow="c"), "inputs": {"name": "input.who"}}
    binding = compiled(graph(node), c=called).node("w").bindings["name"]
    assert ("input", "who") == (binding.node, binding.output)


def test_models_inside_are_known_by_their_place() -> None:
    """For warnings, and for the kind of file that a run's input wants."""
    ocr = {"id": "ocr", "type": "model", "params": {"model": "rapidocr"}}
    undo = graph(model("u", '"x"'))
    document = graph(
        control("t", "try", body=graph(ocr), catch=BODY),
        control("w", "workflow", workflow="c"),
        model("a", '"x"', compensate=undo),
    )
    plan = compiled(document, c=BODY)
    written = parse_definition(document).model_dump()
    found = {where: node.model for node, where in _worked_on(plan, written, "definition")}
    assert {
        "definition.nodes[0].params.body.nodes[0].params.model": "rapidocr",
        "definition.nodes[0].params.catch.nodes[0].params.model": "echo",
        "definition.nodes[1].params.workflow": "echo",
        "definition.nodes[2].params.model": "echo",
        "definition.nodes[2].compensate.nodes[0].params.model": "echo",
    } == found
    assert "image" == input_ports(plan, load())["image"].kind

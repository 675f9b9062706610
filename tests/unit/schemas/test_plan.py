"""From definition and catalogue to plan: how inputs find their sources."""

from typing import Any

import pytest

from schemas import catalogue
from schemas.compiler import compile_plan
from schemas.errors import InvalidArgument, NotFound
from schemas.plan import Binding, Plan, PlanNode
from schemas.workflow import RetryPolicy, parse_definition


CATALOGUE = catalogue.parse("""
models:
  asr:
    modality: audio
    engine: echo
    inputs: [{name: audio, kind: audio}]
    outputs: [{name: text, kind: text}, {name: language, kind: text}]
    params: {beam: 5, language: en}
    timeout_s: 60
  ocr:
    modality: vision
    engine: echo
    inputs: [{name: image, kind: image}]
    outputs: [{name: lines, kind: text}]
  nlu:
    modality: text
    engine: echo
    inputs: [{name: text, kind: text}, {name: hint, kind: json, required: false}]
    outputs: [{name: intent, kind: text}]
  tts:
    modality: audio
    engine: echo
    inputs: [{name: text, kind: text}]
    outputs: [{name: audio, kind: audio}]
templates:
  greeting: {text: "Hello {{intent}}"}
""")

ASSISTANT = {
    "nodes": [
        {"id": "asr", "type": "model", "params": {"model": "whisper-large"}},
        {"id": "nlu", "type": "model", "params": {"model": "bert-base"}},
        {"id": "response", "type": "template", "params": {"template_id": "greeting"}},
        {"id": "tts", "type": "model", "params": {"model": "fastspeech2"}},
    ],
    "edges": [
        {"source": "asr", "target": "nlu"},
        {"source": "nlu", "target": "response"},
        {"source": "response", "target": "tts"},
    ],
}


def model(node_id: str, name: str | None = None, **rest: Any) -> dict[str, Any]:
    """Return a model node named like its model."""
    return {"id": node_id, "type": "model", "params": {"model": name or node_id}, **rest}


def plan(*nodes: dict[str, Any], edges: str = "") -> Plan:
    """Compile nodes with edges written as `a>b b>c`."""
    pairs = [pair.split(">") for pair in edges.split()]
    document = {
        "nodes": list(nodes),
        "edges": [{"source": source, "target": target} for source, target in pairs],
    }
    return compile_plan(parse_definition(document), CATALOGUE)


def test_the_voice_assistant() -> None:
    """Speech to intent to template to speech compiles with the catalogue that ships."""
    compiled = compile_plan(parse_definition(ASSISTANT), catalogue.load())
    assert ["asr", "nlu", "response", "tts"] == [node.id for node in compiled.nodes]
    assert ("tts",) == compiled.outputs
    assert {"audio": True} == compiled.run_inputs()
    assert Binding(node="asr", output="text") == compiled.node("nlu").bindings["text"]
    assert Binding(node="response", output="text") == compiled.node("tts").bindings["text"]


def test_roots_take_the_runs_inputs() -> None:
    """Without a source an input comes from the run, under the same name."""
    compiled = plan(model("asr"), model("ocr"))
    assert Binding(node="input", output="audio") == compiled.node("asr").bindings["audio"]
    assert {"audio": True, "image": True} == compiled.run_inputs()


def test_same_name_wins_over_same_kind() -> None:
    """`text` feeds `text` although `lines` is text too and comes first."""
    compiled = plan(model("ocr"), model("asr"), model("nlu"), edges="ocr>nlu asr>nlu")
    assert Binding(node="asr", output="text") == compiled.node("nlu").bindings["text"]


def test_same_kind_is_the_second_choice() -> None:
    """A predecessor with another name but the right kind feeds the input."""
    compiled = plan(model("ocr"), model("nlu"), edges="ocr>nlu")
    assert Binding(node="ocr", output="lines") == compiled.node("nlu").bindings["text"]


def test_explicit_source_wins() -> None:
    """What the user says is what happens."""
    compiled = plan(model("asr"), model("nlu", inputs={"text": "asr.language"}), edges="asr>nlu")
    assert Binding(node="asr", output="language") == compiled.node("nlu").bindings["text"]


def test_explicit_source_may_be_an_ancestor_or_the_run() -> None:
    """An explicit source may lie further upstream, or be a run input of another name."""
    compiled = plan(
        model("asr"),
        model("nlu"),
        model("tts", inputs={"text": "asr.text"}),
        model("other", "nlu", inputs={"text": "input.words"}),
        edges="asr>nlu nlu>tts tts>other",
    )
    assert Binding(node="asr", output="text") == compiled.node("tts").bindings["text"]
    assert Binding(node="input", output="words") == compiled.node("other").bindings["text"]
    assert {"audio": True, "hint": False, "words": True} == compiled.run_inputs()


def test_optional_inputs_are_optional() -> None:
    """A run may leave an optional input out."""
    compiled = plan(model("nlu"))
    assert ("hint",) == compiled.node("nlu").optional
    assert {"text": True, "hint": False} == compiled.run_inputs()


def test_params_and_limits_override_the_catalogue() -> None:
    """A node's own parameters and limits win; the rest is the catalogue's."""
    asr = model("asr", timeout_s=7, retry={"max_attempts": 1})
    asr["params"]["beam"] = 1
    expected = PlanNode(
        id="asr",
        model="asr",
        modality="audio",
        params={"beam": 1, "language": "en"},
        bindings={"audio": Binding(node="input", output="audio")},
        timeout_s=7.0,
        retry=RetryPolicy(max_attempts=1),
    )
    assert expected == plan(asr).node("asr")


def test_template_sees_everything_upstream() -> None:
    """A template's context is the run's input and every ancestor."""
    compiled = plan(
        model("asr"),
        model("nlu"),
        {"id": "say", "type": "template", "params": {"template_id": "greeting"}},
        edges="asr>nlu nlu>say",
    )
    say = compiled.node("say")
    assert {"template": "Hello {{intent}}"} == say.params
    assert ["asr", "input", "nlu"] == sorted(say.bindings)
    assert ("nlu",) == say.sources
    assert {"audio": True, "hint": False} == compiled.run_inputs()


def test_every_sink_is_an_output() -> None:
    """The outputs of a run are those of its sinks, in topological order."""
    compiled = plan(model("asr"), model("nlu"), model("tts"), edges="asr>nlu asr>tts")
    assert ("nlu", "tts") == compiled.outputs


@pytest.mark.parametrize(
    ("kind", "field", "message", "nodes", "edges"),
    [
        (NotFound, "nodes[1].params.model", "bort", [model("asr"), model("nlu", "bort")], ""),
        (
            InvalidArgument,
            "nodes[0].params.model",
            "needs the name",
            [{"id": "a", "type": "model"}],
            "",
        ),
        (
            InvalidArgument,
            "nodes[1].inputs.text",
            "nothing upstream",
            [model("tts"), model("nlu")],
            "tts>nlu",
        ),
        (
            InvalidArgument,
            "nodes[0].inputs.txt",
            "no input 'txt'",
            [model("nlu", inputs={"txt": "input.a"})],
            "",
        ),
        (
            InvalidArgument,
            "nodes[0].inputs.text",
            "neither",
            [model("nlu", inputs={"text": "asr.text"}), model("asr")],
            "",
        ),
        (
            InvalidArgument,
            "nodes[0].inputs.text",
            "neither",
            [model("nlu", inputs={"text": "input"})],
            "",
        ),
        (
            InvalidArgument,
            "nodes[1].inputs.text",
            "gives language, text",
            [model("asr"), model("nlu", inputs={"text": "asr.words"})],
            "asr>nlu",
        ),
        (
            NotFound,
            "nodes[0].params.template_id",
            "greeting",
            [{"id": "t", "type": "template", "params": {"template_id": "x"}}],
            "",
        ),
        (InvalidArgument, "nodes[0].params", "exactly one", [{"id": "t", "type": "template"}], ""),
        (
            InvalidArgument,
            "nodes[0].params.tone",
            "exactly one",
            [{"id": "t", "type": "template", "params": {"template": "x", "tone": 1}}],
            "",
        ),
        (
            InvalidArgument,
            "nodes[0].params.template",
            "a text",
            [{"id": "t", "type": "template", "params": {"template": 1}}],
            "",
        ),
    ],
)
def test_mistakes_are_named(
    kind: type[Exception], field: str, message: str, nodes: list[dict[str, Any]], edges: str
) -> None:
    """What cannot be compiled names the node, the field and the way out."""
    with pytest.raises(kind, match=message) as caught:
        plan(*nodes, edges=edges)
    assert isinstance(caught.value, InvalidArgument | NotFound)
    assert field == caught.value.field

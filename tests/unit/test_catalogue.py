"""The catalogue that ships: everything in it fits together."""

from itertools import pairwise
from typing import Any

import pytest

from schemas import catalogue, mustache
from schemas.compiler import compile_plan
from schemas.errors import InvalidArgument
from schemas.plan import Plan
from schemas.workflow import parse_definition
from services.workers.engine import AnyEngine
from services.workers.engines import engine_class


CATALOGUE = catalogue.load()


def chain(*nodes: dict[str, Any]) -> Plan:
    """Compile nodes connected one after the other."""
    edges = [{"source": first["id"], "target": second["id"]} for first, second in pairwise(nodes)]
    return compile_plan(parse_definition({"nodes": list(nodes), "edges": edges}), CATALOGUE)


def model(node_id: str, name: str, **inputs: str) -> dict[str, Any]:
    """Return a model node."""
    return {"id": node_id, "type": "model", "params": {"model": name}, "inputs": inputs}


def template(node_id: str, template_id: str) -> dict[str, Any]:
    """Return a template node."""
    return {"id": node_id, "type": "template", "params": {"template_id": template_id}}


@pytest.mark.parametrize("name", sorted(CATALOGUE.models))
def test_every_model_has_an_engine(name: str) -> None:
    """Each model names an engine that exists."""
    assert issubclass(engine_class(CATALOGUE.models[name].engine), AnyEngine)


@pytest.mark.parametrize("name", sorted(CATALOGUE.templates))
def test_every_template_parses(name: str) -> None:
    """Each template is part of the subset."""
    mustache.check(CATALOGUE.templates[name].text)


@pytest.mark.parametrize("name", sorted(CATALOGUE.models))
def test_models_with_downloaded_weights_say_how_to_get_them(name: str) -> None:
    """A model has instructions and a stand-in exactly when it has a source."""
    spec = CATALOGUE.models[name]
    assert (spec.source is not None) == bool(spec.get) == (spec.fallback is not None)


@pytest.mark.parametrize(
    ("name", "param", "known"),
    [
        ("pocketsphinx", "gramar", "grammar, vad"),
        ("whisper-tiny", "langage", "grammar, language, vad"),
        ("echo", "voice", "none"),
    ],
)
def test_a_parameter_nobody_knows_is_refused(name: str, param: str, known: str) -> None:
    """A slip of the pen does not silently do nothing; what a stand-in knows may be given."""
    node = model("a", name)
    node["params"][param] = "x"
    with pytest.raises(InvalidArgument, match=f"'{param}'; known: {known}$") as refused:
        chain(node)
    assert refused.value.field == f"nodes[0].params.{param}"
    node = model("a", "whisper-tiny")
    node["params"]["grammar"] = ["yes"]
    assert chain(node).node("a").params == {"grammar": ["yes"]}


def test_speech_to_greeting_binds_by_itself() -> None:
    """Speech, understanding, greeting: no input needs to be written down."""
    plan = chain(
        model("asr", "whisper-large"), model("nlu", "bert-base"), template("reply", "greeting")
    )
    assert {"audio": True} == plan.run_inputs()
    assert ("asr", "text") == tuple(plan.node("nlu").bindings["text"].model_dump().values())


@pytest.mark.parametrize("reply", [[], [template("reply", "assistant_reply")]])
def test_speech_to_speech_binds_by_itself(reply: list[dict[str, Any]]) -> None:
    """Text to speech takes the text of the node before it: the understood one, or the reply."""
    plan = chain(
        model("asr", "whisper-large"),
        model("nlu", "bert-base"),
        *reply,
        model("tts", "fastspeech2"),
    )
    expected = ("reply" if reply else "nlu", "text")
    assert expected == tuple(plan.node("tts").bindings["text"].model_dump().values())
    assert ("tts",) == plan.outputs


def test_recommendation_binds() -> None:
    """Profile and items are embedded, ranked and told."""
    document = {
        "nodes": [
            model("profile", "embedding-small", text="input.profile"),
            model("items", "embedding-small", text="input.items"),
            model(
                "rank",
                "ranking",
                query="profile.embedding",
                items="items.embedding",
                names="input.items",
            ),
            template("tell", "recommendation"),
        ],
        "edges": [
            {"source": "profile", "target": "rank"},
            {"source": "items", "target": "rank"},
            {"source": "rank", "target": "tell"},
        ],
    }
    plan = compile_plan(parse_definition(document), CATALOGUE)
    assert {"profile": True, "items": True} == plan.run_inputs()


@pytest.mark.parametrize(
    ("expected", "intent"),
    [
        ("I am on my way: go left.", "movement"),
        ("I heard go left, but I do not know what to do with it.", "unknown"),
        ("You are welcome.", "thanks"),
    ],
)
def test_the_assistant_has_one_sentence_for_each_intent(expected: str, intent: str) -> None:
    """The reply branches on the `is` output of an intent."""
    context = {"text": "go left", "intent": intent, "is": {intent: True}}
    assert expected == mustache.render(CATALOGUE.templates["assistant_reply"].text, context)


@pytest.mark.parametrize(
    ("expected", "intent"),
    [
        ("Hello! I heard 'hi' and took it for greeting.", "greeting"),
        ("Hello! I heard 'hi', but I am not sure what you would like.", "unknown"),
    ],
)
def test_the_greeting_says_what_it_understood(expected: str, intent: str) -> None:
    """The greeting names the intent, or admits that there is none."""
    context = {"text": "hi", "intent": intent, "is": {intent: True}}
    assert expected == mustache.render(CATALOGUE.templates["greeting"].text, context)


def test_the_media_report_tells_what_there_is() -> None:
    """Only the parts whose nodes exist are reported."""
    context = {"ocr": {"lines": [{"text": "EXIT", "score": 0.98}]}}
    expected = "Media report\n\nText in the image:\n- EXIT (confidence 0.98)\n"
    assert expected == mustache.render(CATALOGUE.templates["media_report"].text, context)

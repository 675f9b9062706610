"""WorkflowBuilder: the brief's chain, and errors at the line that causes them."""

from collections.abc import Callable

import pytest

from clawdbot import WorkflowBuilder
from schemas.errors import InvalidArgument


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

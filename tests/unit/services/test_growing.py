"""Answers of workflows that grow: what is handed on is how the run ends, or the client hears it."""

from typing import Any

import pytest

from schemas.api import NodePart
from schemas.catalogue import ModelSpec, Port
from schemas.errors import Unavailable
from services.gateway.inference.growing import Growing


SPEC = ModelSpec(
    modality="text",
    engine="workflow",
    inputs=(),
    outputs=(
        Port(name="o0", tensor="llm.text", kind="text"),
        Port(name="o1", tensor="llm.usage", kind="json"),
        Port(name="o2", tensor="other.text", kind="text"),
    ),
)


def part(number: int, text: Any, node: str = "llm", attempt: int = 1) -> NodePart:
    """Return a part."""
    return NodePart(node=node, attempt=attempt, part=number, outputs={"text": text})


def test_texts_of_sinks_grow() -> None:
    """Each by its port; nodes that are no sinks, and what is no text, are passed over."""
    growing = Growing(SPEC)
    assert {"o0": "ab", "o2": "x"} == growing.add(
        [part(1, "a"), part(2, "b"), part(1, "x", "other"), part(1, "n", "inner")]
    )
    assert {"o0": "c"} == growing.add([part(3, "c"), part(4, {"$binary": {}})])
    assert {} == growing.add([])
    whole = {"o0": "abcd", "o1": {"total_tokens": 3}, "o2": "x"}
    assert {"o0": "d", "o1": {"total_tokens": 3}} == growing.rest(whole, "r")


def test_nothing_is_handed_on_after_a_gap() -> None:
    """What is missing then comes at the end; so it is when the beginning was missed."""
    growing = Growing(SPEC)
    assert {"o0": "a"} == growing.add([part(1, "a"), part(3, "c"), part(4, "d")])
    assert {} == growing.add([part(5, "e"), part(2, "y", "other")])
    assert {"o0": "bcde", "o2": "xy"} == growing.rest({"o0": "abcde", "o2": "xy"}, "r")


def test_a_second_attempt_that_says_the_same() -> None:
    """Is no news; it only adds what is missing."""
    growing = Growing(SPEC)
    growing.add([part(1, "a"), part(1, "a", attempt=2), part(2, "b", attempt=2)])
    assert {"o0": "b"} == growing.rest({"o0": "ab"}, "r")


@pytest.mark.parametrize("outputs", [{"o0": "other"}, {}, {"o0": None}])
def test_one_that_says_something_else(outputs: Any) -> None:
    """Nothing can be taken back: the client is told, and where the whole is."""
    growing = Growing(SPEC)
    growing.add([part(1, "a")])
    with pytest.raises(Unavailable, match="run r has the whole"):
        growing.rest(outputs, "r")

"""The models we train: intent and embedding."""

import struct
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from schemas.errors import InvalidArgument
from schemas.values import Value
from services.workers.engines import text_encoder


Infer = Callable[..., Mapping[str, Value]]


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("weather", "is it going to rain in rome tomorrow"),
        ("movement", "go forward ten meters"),
        ("movement", "go for ward ten meters"),
        ("lights", "Please turn ON the lights!"),
        ("timer", "set a timer for three minutes"),
        ("joke", "tell me a funny joke"),
        ("unknown", "had he married a more amiable woman"),
        ("unknown", ""),
        ("unknown", "?!"),
    ],
)
def test_intents(intent: Infer, expected: str, text: str) -> None:
    """Each sentence means what it says; the text is passed on, and a template can branch."""
    outputs = intent({"text": text})
    assert (expected, text, {expected: True}) == tuple(outputs[k] for k in ("intent", "text", "is"))
    assert 0 <= outputs["confidence"] <= 1


def test_low_confidence_is_unknown(intent: Infer) -> None:
    """Below the limit the model does not guess."""
    assert "unknown" == intent({"text": "lights"}, min_confidence=1.0)["intent"]


def vectors(outputs: Mapping[str, Value]) -> list[tuple[float, ...]]:
    """Return the rows of an embedding."""
    tensor = outputs["embedding"]
    tensor.check()
    return list(struct.iter_unpack(f"<{tensor.shape[1]}f", tensor.data))


def test_embeddings_are_unit_vectors(embedding: Infer) -> None:
    """One text or many: one row of length one for each."""
    outputs = embedding({"text": ["a tent", "a telescope"]})
    assert (2, 64) == outputs["embedding"].shape
    for row in vectors(outputs):
        assert 1.0 == pytest.approx(sum(number**2 for number in row), abs=1e-4)
    assert vectors(outputs)[0] == pytest.approx(vectors(embedding({"text": "a tent"}))[0], abs=1e-5)


def test_recommendation(embedding: Infer, ranking: Infer) -> None:
    """The item nearest to a profile shares its topic."""
    items = [
        "a cookbook of curry recipes",
        "boots for mountain trails",
        "a telescope for the stars",
    ]
    ranked = ranking(
        {
            "query": embedding({"text": "i watch planets in the night sky"})["embedding"],
            "items": embedding({"text": items})["embedding"],
            "names": items,
        }
    )["ranked"]
    assert "a telescope for the stars" == ranked[0]["name"]


@pytest.mark.parametrize("value", [None, [], [1], {"a": 1}, ["a"] * 1025, ["x" * 20_000]])
def test_embedding_refuses(embedding: Infer, value: Any) -> None:
    """Only a text or a list of texts, within limits."""
    with pytest.raises(InvalidArgument) as caught:
        embedding({"text": value})
    assert "inputs.text" == caught.value.field


def test_features_are_stable() -> None:
    """Features depend on the text alone; changing them would break the trained weights."""
    assert [9591, 9591] == [text_encoder.features(text)[0] for text in ("Hello", "hello")]
    assert [] == text_encoder.features("  ?! ")
    assert text_encoder.FEATURES_MAX >= len(text_encoder.features("abc " * 10_000))

"""Identifiers."""

import pytest
from pydantic import TypeAdapter, ValidationError

from schemas.ids import ModelName, RunId, Sha256, new_id


RUN_ID: TypeAdapter[str] = TypeAdapter(RunId)
MODEL_NAME: TypeAdapter[str] = TypeAdapter(ModelName)
SHA256: TypeAdapter[str] = TypeAdapter(Sha256)


def test_new_id_is_a_ulid() -> None:
    """A new id has 26 characters of Crockford's base 32, the first of them below 8."""
    made = new_id()
    assert 26 == len(made)
    assert set(made) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")
    assert made[0] in "01234567"


def test_new_ids_differ() -> None:
    """No id comes twice."""
    assert 10_000 == len({new_id() for _ in range(10_000)})


def test_new_id_is_a_run_id() -> None:
    """What we make is what we accept."""
    made = new_id()
    assert made == RUN_ID.validate_python(made)


@pytest.mark.parametrize("text", ["a", "A_b-9", "x" * 64])
def test_tokens_are_accepted(text: str) -> None:
    """A run id is one plain subject token."""
    assert text == RUN_ID.validate_python(text)


@pytest.mark.parametrize(
    "text", ["", "a.b", "*", ">", "a b", "a\n", "\n", "x" * 65, "ü", "a/b", "$JS", "=2e"]
)
def test_no_token_smuggles_subject_syntax(text: str) -> None:
    """Dots, wildcards, spaces and line ends are refused."""
    with pytest.raises(ValidationError):
        RUN_ID.validate_python(text)


@pytest.mark.parametrize("text", ["whisper-large", "openai/whisper-tiny", "v1.2", "a_b"])
def test_model_names_may_hold_dots_and_slashes(text: str) -> None:
    """Model names are what model hubs use."""
    assert text == MODEL_NAME.validate_python(text)


@pytest.mark.parametrize("text", ["", "/etc", ".hidden", "a*b", "a b", "a\n", "x" * 129])
def test_other_model_names_are_refused(text: str) -> None:
    """Model names begin with a letter or digit and hold no wildcard."""
    with pytest.raises(ValidationError):
        MODEL_NAME.validate_python(text)


@pytest.mark.parametrize("text", ["A" * 64, "a" * 63, "a" * 65, "g" * 64, "a" * 64 + "\n"])
def test_other_digests_are_refused(text: str) -> None:
    """A digest is 64 lower-case hex digits."""
    with pytest.raises(ValidationError):
        SHA256.validate_python(text)

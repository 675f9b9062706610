"""A tokenizer.json is taken when it can harm nobody, whatever else it says."""

import base64
from typing import Any

import orjson
import pytest

from schemas.errors import ModelUnavailable
from schemas.tokenizer_file import KNOWN_PATTERNS, PARTS_MAX, TOKENIZER_BYTES_MAX, sanitized


MODEL = {"type": "BPE", "vocab": {"a": 0}, "merges": []}


def document(**sections: Any) -> bytes:
    """Return a tokenizer with some sections."""
    return orjson.dumps({"version": "1.0", "added_tokens": [], "model": MODEL, **sections})


def split(pattern: str) -> dict[str, Any]:
    """Return a step that cuts where a pattern is."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def replace(pattern: str, content: str) -> dict[str, Any]:
    """Return a step that replaces."""
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def charsmap(*texts: bytes, start: int = 0) -> dict[str, Any]:
    """Return a table of characters that makes these of them."""
    table = start.to_bytes(4, "little") + bytes(start) + b"\0".join(texts)
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


def sequence(key: str, *steps: dict[str, Any]) -> dict[str, Any]:
    """Return several steps as one."""
    return {"type": "Sequence", key: list(steps)}


def around(count: int) -> dict[str, Any]:
    """Return what puts so many tokens around a text."""
    special = {"<s>": {"id": "<s>", "ids": [0] * count, "tokens": ["<s>"] * count}}
    return {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": special}


def test_what_does_not_matter_is_left_out() -> None:
    """Padding, truncation and decoder are not needed, nor what nobody knows."""
    data = document(decoder={"type": "Fuse"}, padding={"length": 10**9}, sorcery=True)
    assert {"version", "added_tokens", "model"} == orjson.loads(sanitized("t", data)).keys()


@pytest.mark.parametrize("pattern", sorted(KNOWN_PATTERNS))
def test_patterns_of_common_families_are_taken(pattern: str) -> None:
    """As they are published, in a sequence with what follows them."""
    steps = sequence("pretokenizers", split(pattern), {"type": "ByteLevel", "use_regex": False})
    data = document(pre_tokenizer=steps)
    assert steps == orjson.loads(sanitized("t", data))["pre_tokenizer"]


@pytest.mark.parametrize(
    "sections",
    [
        {"normalizer": sequence("normalizers", {"type": "NFC"}, replace(" {2,}", "\u2581"))},
        {"normalizer": charsmap(b"a", b"fi", start=8)},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": None}},
        {"normalizer": {"type": "Prepend", "prepend": "\u2581"}},
        {"pre_tokenizer": split(r"<\|end\|>|'s|'t|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")},
        {"pre_tokenizer": split("")},
        {"pre_tokenizer": {**split(""), "pattern": {"String": "(a+)+"}}},
        {"pre_tokenizer": None, "post_processor": around(2)},
        {"model": {"type": "WordPiece", "vocab": {}, "max_input_chars_per_word": 100}},
        {"model": {"vocab": {}, "merges": []}},
    ],
)
def test_harmless_tokenizers(sections: dict[str, Any]) -> None:
    """What the common families have."""
    sanitized("t", document(**sections))


HOSTILE: dict[str, dict[str, Any]] = {
    "a_pattern_in_a_pattern": {"pre_tokenizer": split("(a+)+$")},
    "a_group": {"pre_tokenizer": split("(ab)+")},
    "a_back_reference": {"pre_tokenizer": split(r"(a)\1")},
    "two_repeats": {"pre_tokenizer": split(r".*.*x")},
    "a_repeat_in_braces": {"pre_tokenizer": split("a{0,9999}b{0,9999}")},
    "many_optional": {"pre_tokenizer": split("a?" * 20 + "a" * 20)},
    "many_alternatives": {"pre_tokenizer": split("|".join(["a+b"] * 9))},
    "a_long_pattern": {"pre_tokenizer": split("a" * 300)},
    "sets_in_sets": {"pre_tokenizer": split("[a-z&&[^aeiou]]+")},
    "many_patterns": {"pre_tokenizer": sequence("pretokenizers", *[split("a+b")] * 9)},
    "a_page_for_each_letter": {"normalizer": replace(".", "x" * 1_000_000)},
    "growth_in_steps": {"normalizer": sequence("normalizers", *[replace(".", "xy")] * 9)},
    "a_long_beginning": {"normalizer": {"type": "Prepend", "prepend": "x" * 1000}},
    "an_empty_pattern": {
        "normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}
    },
    "a_table_that_grows": {"normalizer": charsmap(b"x" * 1000)},
    "a_table_cut_off": {"normalizer": {**charsmap(b"a"), "precompiled_charsmap": "////"}},
    "a_table_of_something": {"normalizer": {**charsmap(b"a"), "precompiled_charsmap": "no !"}},
    "unknown_step": {"normalizer": {"type": "Import", "module": "os"}},
    "unknown_cut": {"pre_tokenizer": {"type": "Custom"}},
    "steps_without_end": {
        "normalizer": sequence("normalizers", *[{"type": "NFC"}] * (PARTS_MAX + 1))
    },
    "no_step": {"pre_tokenizer": ["Split"]},
    "tokens_around": {"post_processor": around(1000)},
    "dropout": {"model": {**MODEL, "dropout": 0.1}},
    "long_words": {"model": {"type": "WordPiece", "max_input_chars_per_word": 10**9}},
    "unknown_model": {"model": {"type": "Pickle"}},
    "no_model": {"model": None},
}


@pytest.mark.parametrize("trick", HOSTILE)
def test_hostile_tokenizers(trick: str) -> None:
    """Each is refused before the library sees it, by the name of its file."""
    with pytest.raises(ModelUnavailable, match=r"'tokenizer\.json' is"):
        sanitized("tokenizer.json", document(**HOSTILE[trick]))


@pytest.mark.parametrize("data", [b"", b"no", b"[]", b"{}", b'"x"', b"[" * 100_000])
def test_what_is_no_tokenizer(data: bytes) -> None:
    """Said so."""
    with pytest.raises(ModelUnavailable, match="'t' is no"):
        sanitized("t", data)


def test_it_has_a_size() -> None:
    """Before it is read."""
    with pytest.raises(ModelUnavailable, match="more than"):
        sanitized("t", bytes(TOKENIZER_BYTES_MAX + 1))

r"""Looks through a `tokenizer.json` and writes anew what may be loaded of it.

The file comes with a model, from whoever made it, and a tokenizer does what its file says to every
text: patterns that backtrack for hours, replacements that make a page out of each letter, tables
that are read where they point. So parts, patterns and growth are held to what tokenizers of the
common families need. The rest is left out where it does not matter here (decoder, padding), and
refused where it does.

Source: tokenizers 0.23, the serialised forms of its models, normalizers and pre-tokenizers.
"""

import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from schemas.errors import ModelUnavailable


TOKENIZER_BYTES_MAX = 64 * 1024 * 1024
PARTS_MAX = 32
"""Steps of a normalizer, of a pre-tokenizer, and of what comes after."""
WORD_CHARS_MAX = 200
"""Of a word that WordPiece takes apart: that takes the square of it."""
REPLACEMENT_CHARS_MAX = 2
REPLACEMENTS_MAX = 8
CHARSMAP_BYTES_MAX = 1024 * 1024
MAPPED_BYTES_MAX = 64
"""What one character becomes by a table of characters."""
PATTERN_CHARS_MAX = 256
PATTERNS_MAX = 4
"""Patterns of a section that are none of a common family."""
SPECIAL_MAX = 64
"""Tokens that are put around a text."""

_MODELS = {"BPE", "Unigram", "WordLevel", "WordPiece"}
_STEPS: Mapping[str, set[str]] = {
    "normalizer": {
        "BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt",
        "Precompiled", "Prepend", "Replace", "Strip", "StripAccents",
    },
    "pre_tokenizer": {
        "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation",
        "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit",
    },
    "post_processor": {"BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing"},
}  # fmt: skip
_LISTS = ("normalizers", "pretokenizers", "processors")
_KEPT = ("version", "added_tokens", "model", *_STEPS)

_ENDINGS = r"'s|'t|'re|'ve|'m|'ll|'d"
_SPACES = r"\s+(?!\S)|\s+"
_GPT4 = rf"\s*[\r\n]+|{_SPACES}"
KNOWN_PATTERNS = {
    rf"{_ENDINGS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}",
    *(
        rf"(?i:{_ENDINGS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
        + _GPT4
        for digits in (r"\p{N}", r"\p{N}{1,3}")
    ),
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    rf"(?i:{_ENDINGS})?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    rf"(?i:{_ENDINGS})?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _GPT4,
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _GPT4,
}
"""Patterns of common families, which repeat more than once: of GPT-2, of Qwen 2, of Llama 3 and
GPT-4, of GPT-4o, of DeepSeek."""
_CLASS = re.compile(r"\[\^?(\\.|[^\]\\\[])+\]")
_ESCAPE = re.compile(r"\\[pP]\{\^?\w{1,32}\}|\\.")
_REPEATED = re.compile(r"[*+{]")
_REPEATED_MAX = 4
"""In all alternatives of a pattern."""
_OPTIONAL_MAX = 4
"""In one alternative: each doubles what is tried."""


def sanitized(name: str, data: bytes) -> bytes:
    """Return a tokenizer that holds what is known to be harmless, and nothing else.

    Args:
        name: Of the file, for the message.
        data: What it holds.

    Raises:
        ModelUnavailable: It is no tokenizer, or not one that is taken; says why.
    """
    if len(data) > TOKENIZER_BYTES_MAX:
        raise ModelUnavailable(f"'{name}' has more than {TOKENIZER_BYTES_MAX} bytes")
    try:
        document = orjson.loads(data)
        kept = {key: document[key] for key in _KEPT if key in document}
        _check_model(kept["model"])
        for section in _STEPS:
            _check_section(section, kept.get(section))
    except orjson.JSONDecodeError as error:
        raise ModelUnavailable(f"'{name}' is no JSON") from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelUnavailable(f"'{name}' is no tokenizer: {_brief(error)}") from error
    except ModelUnavailable as error:
        raise ModelUnavailable(f"'{name}' is not taken: {error.message}") from error
    return orjson.dumps(kept)


def _check_model(model: Mapping[str, Any]) -> None:
    kind = model.get("type") or ("BPE" if "merges" in model else "")
    if kind not in _MODELS:
        raise ModelUnavailable(f"its model is one of {', '.join(sorted(_MODELS))}, not '{kind}'")
    if model.get("dropout"):
        raise ModelUnavailable("with dropout a text has other tokens each time")
    if kind == "WordPiece" and not 0 < model["max_input_chars_per_word"] <= WORD_CHARS_MAX:
        raise ModelUnavailable(f"max_input_chars_per_word is at most {WORD_CHARS_MAX}")


def _check_section(section: str, root: Mapping[str, Any] | None) -> None:
    replacements = patterns = 0
    for count, step in enumerate(_steps(root), 1):
        kind = step["type"]
        if count > PARTS_MAX:
            raise ModelUnavailable(f"its {section} has more than {PARTS_MAX} steps")
        if kind not in _STEPS[section]:
            raise ModelUnavailable(f"its {section} has '{str(kind)[:32]}', which is not known")
        _check_step(kind, step)
        patterns += kind in {"Replace", "Split"} and not _is_known(step["pattern"])
        if patterns > PATTERNS_MAX:
            raise ModelUnavailable(f"its {section} has more than {PATTERNS_MAX} patterns")
        replacements += kind in {"Prepend", "Replace"}
        if replacements > REPLACEMENTS_MAX:
            raise ModelUnavailable(f"it replaces more than {REPLACEMENTS_MAX} times")


def _steps(root: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a section, in whatever order; a sequence is its parts."""
    pending = [] if root is None else [root]
    while pending:
        step = pending.pop()
        if step["type"] == "Sequence":
            pending += next(step[key] for key in _LISTS if key in step)
        else:
            yield step


def _check_step(kind: str, step: Mapping[str, Any]) -> None:
    match kind:
        case "Split":
            _check_pattern(step["pattern"])
        case "Replace":
            _check_pattern(step["pattern"])
            _check_short(step["content"])
        case "Prepend":
            _check_short(step["prepend"])
        case "Precompiled":
            _check_charsmap(step["precompiled_charsmap"])
        case "TemplateProcessing":
            around = sum(len(item["ids"]) for item in step["special_tokens"].values())
            if len(step["single"]) + around > SPECIAL_MAX:
                raise ModelUnavailable(f"it puts more than {SPECIAL_MAX} tokens around a text")
        case _:
            pass


def _check_short(text: str) -> None:
    if len(text) > REPLACEMENT_CHARS_MAX:
        raise ModelUnavailable(
            f"what it replaces by {text[:32]!r} grows; {REPLACEMENT_CHARS_MAX} characters may be"
        )


def _check_pattern(pattern: Mapping[str, str]) -> None:
    """Refuse a pattern that may take more than the square of a text's length.

    Outside of the known ones each alternative repeats once, and there are no groups.
    """
    if _is_known(pattern):
        return
    regex = pattern["Regex"]
    plain = _CLASS.sub("x", _ESCAPE.sub("x", regex))
    parts = [(len(_REPEATED.findall(part)), part.count("?")) for part in plain.split("|")]
    if (
        len(regex) > PATTERN_CHARS_MAX
        or set(plain) & set("()[]\\")
        or any(repeated > 1 or optional > _OPTIONAL_MAX for repeated, optional in parts)
        or sum(repeated for repeated, _ in parts) > _REPEATED_MAX
    ):
        raise ModelUnavailable(
            f"the pattern {regex[:80]!r} may take for ever: it is none of a common family, and has "
            "groups, or repeats twice in one alternative"
        )


def _is_known(pattern: Mapping[str, str]) -> bool:
    """Tell whether a pattern is a plain text, or one of a common family."""
    if "Regex" in pattern:
        return pattern["Regex"] in KNOWN_PATTERNS
    if not pattern["String"]:
        raise ModelUnavailable("a pattern is empty")
    return True


def _check_charsmap(text: str | None) -> None:
    """Refuse a table that makes much of one character.

    Source: SentencePiece, `Normalizer::DecodePrecompiledCharsMap`: four bytes of length, a trie,
    then what characters become, each with a zero behind it.
    """
    if text is None:
        return
    if len(text) > CHARSMAP_BYTES_MAX:
        raise ModelUnavailable(f"its table of characters has over {CHARSMAP_BYTES_MAX} bytes")
    table = binascii.a2b_base64(text, strict_mode=True)
    start = 4 + int.from_bytes(table[:4], "little")
    if start > len(table) or max(map(len, table[start:].split(b"\0"))) > MAPPED_BYTES_MAX:
        raise ModelUnavailable("its table of characters is damaged, or makes much of one character")


def _brief(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else type(error).__name__

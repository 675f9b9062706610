"""Turns text into the tokens of a BERT, from its vocabulary: `text-to-tokens/1`.

The text is data: what looks like a special token in it ("[SEP]") is read as punctuation and a word.

Source: Devlin et al., BERT (2018), and its BasicTokenizer and WordpieceTokenizer.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from schemas.errors import ModelUnavailable
from services.workers.engines import model_files


VOCABULARY_BYTES_MAX = 16 * 1024 * 1024
WORD_CHARS_MAX = 100
"""Of a longer word nothing is known."""
VOCABULARIES_MAX = 8
START, END, UNKNOWN = "[CLS]", "[SEP]", "[UNK]"

_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


@lru_cache(maxsize=VOCABULARIES_MAX)
def vocabulary(folder: Path, path: str, sha256: str) -> Mapping[str, int]:
    """Return the ids of tokens, from a file with one on each line.

    Raises:
        ModelUnavailable: The file is not there, is another one, or lacks a token that all need.
    """
    data = model_files.read(folder, path, VOCABULARY_BYTES_MAX)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ModelUnavailable(f"the vocabulary '{path}' is not the one that the catalogue names")
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ModelUnavailable(f"the vocabulary '{path}' is not UTF-8") from error
    found = {token.rstrip("\r"): index for index, token in enumerate(lines) if token}
    for token in (START, END, UNKNOWN):
        if token not in found:
            raise ModelUnavailable(f"the vocabulary '{path}' has no {token}")
    return found


def tokens(text: str, known: Mapping[str, int], *, lower_case: bool, tokens_max: int) -> list[int]:
    """Return the ids of a text between those of its start and end; what is too long is cut."""
    found = [known[START]]
    for word in _words(text, lower_case=lower_case):
        for piece in _pieces(word, known):
            if len(found) == tokens_max - 1:
                return [*found, known[END]]
            found.append(piece)
    return [*found, known[END]]


def _words(text: str, *, lower_case: bool) -> Iterator[str]:
    """Yield words, and each sign of punctuation and each ideograph by itself."""
    clean = "".join(map(_cleaned, text))
    if lower_case:
        plain = unicodedata.normalize("NFD", clean)
        clean = "".join(c for c in plain if unicodedata.category(c) != "Mn").lower()
    word = ""
    for character in clean:
        if character.isspace() or _is_punctuation(character):
            if word:
                yield word
                word = ""
            if not character.isspace():
                yield character
        else:
            word += character
    if word:
        yield word


def _cleaned(character: str) -> str:
    if character in "\t\n\r":
        return " "
    code = ord(character)
    category = unicodedata.category(character)
    if code in {0, 0xFFFD} or category.startswith("C"):
        return ""
    if category == "Zs":
        return " "
    if any(low <= code <= high for low, high in _IDEOGRAPHS):
        return f" {character} "
    return character


def _is_punctuation(character: str) -> bool:
    is_sign = character.isascii() and character.isprintable() and not character.isalnum()
    return is_sign or unicodedata.category(character).startswith("P")


def _pieces(word: str, known: Mapping[str, int]) -> list[int]:
    """Return the longest pieces that are known, from the left; one unknown token without them."""
    if len(word) > WORD_CHARS_MAX:
        return [known[UNKNOWN]]
    found: list[int] = []
    at = 0
    while at < len(word):
        for end in range(len(word), at, -1):
            piece = known.get(word[at:end] if at == 0 else f"##{word[at:end]}")
            if piece is not None:
                found.append(piece)
                at = end
                break
        else:
            return [known[UNKNOWN]]
    return found

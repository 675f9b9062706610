"""Turns text into tokens by a model's `tokenizer.json`: `text-to-tokens/2`.

BPE, Unigram, WordPiece and WordLevel, with Hugging Face's library. The text is data: what looks
like a special token in it is read as its letters.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import orjson

from schemas import tokenizer_file
from schemas.errors import InvalidArgument, ModelUnavailable
from services.workers.engines import fields, model_files


TOKENIZERS_MAX = 8


@dataclass(frozen=True)
class Tokens:
    """Those of a text, with what is put around it."""

    ids: Sequence[int]
    mask: Sequence[int]
    types: Sequence[int]


class Library(Protocol):
    """A tokenizer of the library; `encode` gives what `Tokenizer.encode` needs of it."""

    def encode(self, text: str) -> Any: ...  # noqa: D102 - the library's


@dataclass(frozen=True)
class Tokenizer:
    """Makes tokens of texts."""

    library: Library
    special: frozenset[int] = frozenset()
    """Ids that no text may say."""
    unknown: int = 0
    """What stands in their place: a Unigram has them among its pieces."""

    def encode(self, text: str, field: str) -> Tokens:
        """Return the tokens of a text; what is too long is cut.

        Raises:
            InvalidArgument: It has none; names the field.
        """
        try:
            found = self.library.encode(text)
        except BaseException as error:
            _raise_unless_its(error)
            raise InvalidArgument("the text cannot be made into tokens", field=field) from error
        if not found.ids:
            raise InvalidArgument("the text has no tokens", field=field)
        ids = found.ids
        if not self.special.isdisjoint(ids):
            ids = [
                self.unknown if number in self.special and not is_around else number
                for number, is_around in zip(ids, found.special_tokens_mask, strict=True)
            ]
        return Tokens(ids, found.attention_mask, found.type_ids)


@lru_cache(maxsize=TOKENIZERS_MAX)
def load(folder: Path, path: str, sha256: str, tokens_max: int) -> Tokenizer:
    """Return a tokenizer that gives at most so many tokens, those around the text among them.

    Raises:
        ModelUnavailable: The file is not there, is another one, or holds what is not taken; or the
            library is absent.
    """
    absent = fields.missing_package("tokenizers")
    if absent is not None:
        raise ModelUnavailable(f"{absent}: `pip install clawdbot[tokenizers]`")
    data = model_files.read(folder, path, tokenizer_file.TOKENIZER_BYTES_MAX)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ModelUnavailable(f"the tokenizer '{path}' is not the one that the catalogue names")
    clean = tokenizer_file.sanitized(path, data)
    from tokenizers import Tokenizer as LibraryTokenizer

    try:
        found: Any = LibraryTokenizer.from_buffer(clean)
        found.encode_special_tokens = True
        found.no_padding()
        found.enable_truncation(tokens_max)
        found.encode("a")
    except BaseException as error:
        _raise_unless_its(error)
        why = f"the tokenizer '{path}' cannot be loaded"
        raise ModelUnavailable(why, cause=str(error)) from error
    unknown = orjson.loads(clean)["model"].get("unk_id")
    if unknown is None:
        return Tokenizer(found)
    added = found.get_added_tokens_decoder().items()
    special = frozenset(number for number, token in added if token.special)
    return Tokenizer(found, special - {unknown}, unknown)


def _raise_unless_its(error: BaseException) -> None:
    """Raise what is none of the library's: its panics are no `Exception`s."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error

"""Texts that grow token by token: whole characters only, and nothing of what ends them."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.workers.engines.text_pieces import Detokenizer, StopTexts


def decode(tokens: Sequence[int]) -> str:
    """Read each token as a byte, as byte-level tokenizers do."""
    return bytes(tokens).decode(errors="replace")


@given(st.text())
def test_no_character_is_cut(text: str) -> None:
    """Pieces are whole characters, and together the text."""
    words = Detokenizer(decode)
    pieces = [words.add(token) for token in text.encode()]
    assert "" == words.rest()
    assert text == "".join(pieces)
    assert all(piece == "" or piece in text for piece in pieces)


@given(st.lists(st.integers(0, 255), max_size=60))
def test_bytes_that_are_no_text(tokens: list[int]) -> None:
    """Nothing is held for ever, and the decoder reads a few tokens at a time."""
    longest = 0

    def counting(some: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(some))
        return decode(some)

    words = Detokenizer(counting)
    whole = "".join([*(words.add(token) for token in tokens), words.rest()])
    assert longest <= 16
    valid = "".join(char for char in decode(tokens) if char != "\N{REPLACEMENT CHARACTER}")
    assert len(whole) >= len(valid)


def test_a_token_after_another() -> None:
    """Spaces between words are kept, which belong to no token by itself."""

    def joined(tokens: Sequence[int]) -> str:
        return " ".join(["one", "two", "three"][token] for token in tokens)

    words = Detokenizer(joined)
    assert ["one", " two", " three"] == [words.add(token) for token in range(3)]


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.integers(1, 5),
)
def test_stop_texts(text: str, stops: list[str], size: int) -> None:
    """What comes out is what stands before the first of them, however the text is cut."""
    ends = StopTexts(stops)
    pieces = [ends.add(text[start : start + size]) for start in range(0, len(text), size)]
    said = "".join([*pieces, ends.rest()])
    places = [text.find(stop) for stop in stops if stop in text]
    if len(text) <= size:
        assert (text[: min(places)] if places else text) == said
    assert bool(places) == ends.is_hit
    assert text.startswith(said)
    assert not any(stop in said for stop in stops)
    if not places:
        assert text == said


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [(["hel", "lo EN", "D!"], "hello "), (["E", "EN", "EEND"], "EENE"), (["ENDEND"], "")],
)
def test_a_stop_in_pieces(pieces: list[str], expected: str) -> None:
    """It is found, and nothing of it was given away."""
    ends = StopTexts(["END"])
    assert expected == "".join(map(ends.add, pieces)) + ends.rest()
    assert ends.is_hit
    assert "" == ends.add("more")

"""Bytes in pieces: large ones lie where they lay, and what is sent is the same."""

import itertools

import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.pieces import LARGE_BYTES, Pieces, packed, parts_of, runs, split


LARGE = bytes(LARGE_BYTES + 1)


@pytest.mark.parametrize("size", [0, 15, 16, 300])
def test_a_packed_document_is_messagepack(size: int) -> None:
    """Whatever lies around large bytes; they are a piece, and no copy."""
    document = {
        "inputs": {"x": {"$tensor": {"shape": (1, 2), "data": LARGE}}, "y": b"small"},
        "many": {str(number): number for number in range(size)},
        "list": [LARGE, None, 1.5],
    }
    found = packed(document, 2 * len(LARGE))
    assert ormsgpack.packb(document)[:1] == bytes(found)[:1]
    assert ormsgpack.unpackb(ormsgpack.packb(document)) == ormsgpack.unpackb(bytes(found))
    assert len(bytes(found)) == len(found)
    assert any(part is LARGE for part in parts_of(found))


def test_small_documents_are_one_piece() -> None:
    """As ever."""
    assert ormsgpack.packb({"a": b"b"}) == packed({"a": b"b"}, 1)


@given(st.lists(st.sampled_from([b"", b"a", bytes(99), LARGE]), max_size=8))
def test_runs_are_the_same_bytes(pieces: list[bytes]) -> None:
    """No two small ones are neighbours, and large ones are not copied."""
    found = list(runs(pieces))
    assert b"".join(pieces) == b"".join(found)
    assert pieces.count(LARGE) == sum(piece is LARGE for piece in found)
    assert all(LARGE in pair for pair in itertools.pairwise(found))


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=5), st.integers(0, 50))
def test_a_body_is_split_anywhere(pieces: list[bytes], at: int) -> None:
    """In one piece or in several."""
    whole = b"".join(pieces)
    assert (whole[:at], whole[at:]) == split(Pieces(tuple(pieces)), at)
    assert (whole[:at], whole[at:]) == split(whole, at)

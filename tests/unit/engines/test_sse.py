"""Streams of events, cut into pieces anywhere; and those that are none."""

import pytest

from schemas.errors import EngineFailed
from services.workers.engines import sse
from services.workers.engines.sse import EventReader


STREAM = (
    "\N{ZERO WIDTH NO-BREAK SPACE}: hello\r\n\r\nevent: x\r\ndata: één\r\n\r\n"
    "data:a\ndata: b\n\ndata\n\n\n\ndata:\r\rid: 7\ndata:  two spaces\n\nretry: 1\n\ndata: no end"
).encode()
FOUND = ["één", "a\nb", "", "", " two spaces"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_however_they_are_cut(size: int) -> None:
    """Lines end with LF, CR or both, characters may be cut; comments and names are left out."""
    reader = EventReader()
    pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert FOUND == [data for piece in pieces for data in reader.feed(piece)]


@pytest.mark.parametrize(
    ("piece", "says"),
    [
        (b"data: " + b"x" * 40_000, "more than 1048576 characters"),
        (b"data: " + b"x" * 40_000 + b"\n", "more than 1048576 characters"),
        (b"data:\n" * 10_000, "more than 1048576 characters"),
        (b"data: \xff\n\n", "no UTF-8"),
    ],
    ids=["a line", "an event", "empty lines", "bytes"],
)
def test_streams_without_end(piece: bytes, says: str) -> None:
    """Are refused as soon as they pass the limit."""
    reader, pieces = EventReader(), 2 + sse.EVENT_CHARS_MAX // 30_000
    with pytest.raises(EngineFailed, match=says):
        list(map(reader.feed, [piece] * pieces))

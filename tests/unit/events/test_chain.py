"""The hash chain finds every alteration."""

import hashlib
from collections.abc import Callable

import pytest

from events.chain import check_head, check_link
from events.store import EMPTY, Head
from events.subjects import RunKey
from schemas.errors import DataLoss


KEY = RunKey("acme", "r1")
Link = tuple[int, int, str, bytes]


def links(*bodies: bytes) -> list[Link]:
    """Return (sequence, version, previous, stored) of a sound log."""
    made: list[Link] = []
    previous = ""
    for index, body in enumerate(bodies):
        made.append((10 * (index + 1), index + 1, previous, body))
        previous = hashlib.sha256(body).hexdigest()
    return made


def walk(log: list[Link]) -> Head:
    """Check a whole log."""
    head = EMPTY
    for sequence, version, previous, stored in log:
        head = check_link(KEY, head, sequence, version, previous, stored)
    return head


LOG = links(b"one", b"two", b"three")


def test_sound_log() -> None:
    """A sound log leads to the head of its last commit."""
    assert Head(30, 3, hashlib.sha256(b"three").hexdigest()) == walk(LOG)
    assert EMPTY == walk([])


@pytest.mark.parametrize(
    "harm",
    [
        lambda log: [log[0], (20, 2, log[1][2], b"TWO"), log[2]],
        lambda log: [log[0], log[2]],
        lambda log: log[1:],
        lambda log: [log[0], log[2], log[1]],
        lambda log: [log[0], log[1], log[1], log[2]],
        lambda log: [log[0], (10, *log[1][1:]), log[2]],
        lambda log: [log[0], (20, 3, *log[1][2:]), log[2]],
        lambda log: [log[0], (20, 2, "", b"two"), log[2]],
        lambda log: [(10, 1, "f" * 64, b"one"), *log[1:]],
    ],
    ids=[
        "altered",
        "removed",
        "beheaded",
        "reordered",
        "repeated",
        "sequence does not rise",
        "version jumps",
        "link cut",
        "begins in the middle",
    ],
)
def test_harm_is_found(harm: Callable[[list[Link]], list[Link]]) -> None:
    """Whatever is done to the middle of a log, reading it ends in DataLoss."""
    with pytest.raises(DataLoss, match="r1"):
        walk(harm(LOG))


def test_known_head_is_found_again() -> None:
    """A head kept elsewhere stands at the start of the rest of the log."""
    check_head(KEY, walk(LOG[:2]), [(20, b"two"), (30, b"three")])


@pytest.mark.parametrize(
    "stored",
    [[], [(20, b"TWO")], [(30, b"two")], [(30, b"three"), (20, b"two")]],
    ids=["gone", "altered", "moved", "reordered"],
)
def test_known_head_must_be_there(stored: list[tuple[int, bytes]]) -> None:
    """A log that lacks a commit we knew of is refused."""
    with pytest.raises(DataLoss, match="known commit 2"):
        check_head(KEY, walk(LOG[:2]), stored)

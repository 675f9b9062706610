"""High-water marks: what several observers say together, and the file they are kept in."""

from dataclasses import replace
from pathlib import Path

import pytest

from events.marks import Marks, MarksFile, PartHead
from schemas.errors import DataLoss


OLD, NEW = "2026-01-01 00:00:00.5+00:00", "2026-01-01 00:00:01+00:00"
FIRST = PartHead("default", "a", 5, "d5")
SECOND = PartHead("default", "b", 7, "d7")


def test_marks_only_rise() -> None:
    """Together, observers know the highest sequence and the newest commit of each part."""
    one = Marks(OLD, 9, {1: FIRST, 2: FIRST})
    other = Marks(OLD, 7, {2: SECOND, 3: SECOND})
    expected = Marks(OLD, 9, {1: FIRST, 2: SECOND, 3: SECOND})
    assert expected == one.union(other) == other.union(one)


def test_the_older_stream_rules() -> None:
    """Whoever saw the stream that was there first knows of the loss; its marks win whole."""
    seen, made_anew = Marks(OLD, 9, {1: FIRST}), Marks(NEW, 100, {1: SECOND})
    assert seen == seen.union(made_anew) == made_anew.union(seen)


def test_an_operator_overrules_older_marks() -> None:
    """What was accepted last counts, even if it is less than was seen."""
    seen, accepted = Marks(OLD, 9, {1: FIRST}), Marks(NEW, 3, accepted_at=5.0)
    assert accepted == seen.union(accepted) == accepted.union(seen)
    later = replace(accepted, sequence=1, accepted_at=6.0)
    assert later == accepted.union(later)


async def test_the_file_keeps_marks(tmp_path: Path) -> None:
    """What is written is read again; no file is no marks, a damaged one is an error."""
    file = MarksFile(tmp_path / "deep" / "history.json")
    assert file.read() is None
    marks = Marks(OLD, 9, {1: FIRST}, 2.5)
    await file.write(Marks(OLD, 8))
    await file.write(marks)
    assert marks == file.read()
    assert ["history.json"] == [path.name for path in (tmp_path / "deep").iterdir()]
    for damage in (b"", b"{}", file.path.read_bytes()[:-4]):
        file.path.write_bytes(damage)
        with pytest.raises(DataLoss):
            file.read()

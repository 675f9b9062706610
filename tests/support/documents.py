"""Reads the documentation's tables, so that tests can hold them against the code."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.code import ROOT


_UNITS = {
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "million": 10**6,
    "s": 1,
    "": 1,
}
_QUANTITY = re.compile(rf"(\d[\d ]*(?:\.\d+)?) ?({'|'.join(_UNITS)})")
_RULE = re.compile(r"[|: -]+")


def table(document: str, heading: str) -> list[dict[str, str]]:
    """Return the rows of every table below a heading, each cell by its column, without backticks.

    Args:
        document: Path of a Markdown file in the repository.
        heading: Text of a heading; what is below its subheadings counts.

    Raises:
        LookupError: No such heading, or no table below it.
    """
    found = list(_rows(_section(ROOT / document, heading)))
    if not found:
        raise LookupError(f"{document} has no table below '{heading}'")
    return found


def _section(path: Path, heading: str) -> Iterator[str]:
    """Yield the lines between a heading and the next one that is not below it."""
    level = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        marks, _, text = line.partition(" ")
        is_heading = bool(marks) and not marks.strip("#")
        if level and is_heading and len(marks) <= level:
            return
        if is_heading and text == heading:
            level = len(marks)
        elif level:
            yield line
    if not level:
        raise LookupError(f"{path.name} has no heading '{heading}'")


def _rows(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    columns: list[str] = []
    for line in lines:
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = _cells(line)
        elif not _RULE.fullmatch(line):
            yield dict(zip(columns, _cells(line), strict=True))


def _cells(line: str) -> list[str]:
    return [cell.strip().strip("`").strip() for cell in line.strip().strip("|").split("|")]


def value(text: str, like: object) -> object:
    """Return what a cell says, read as what the code has there.

    Numbers may have units and spaces: `64 KiB`, `30 s`, `10 000`. None is `none`, and an empty
    text or mapping is `empty`.
    """
    match like:
        case None:
            return None if text == "none" else text
        case bool():
            return {"true": True, "false": False}.get(text, text)
        case int() | float():
            number = _QUANTITY.fullmatch(text)
            return float(number[1].replace(" ", "")) * _UNITS[number[2]] if number else text
        case _:
            return type(like)() if text == "empty" else text

"""How the command line shows what models say."""

import io
import sys

import pytest
from typing_extensions import override

from clawdbot.cli.output import Screen
from clawdbot.cli.streams import Said
from schemas.api import NodePart


def part(node: str, attempt: int, text: object) -> NodePart:
    """Return a part."""
    return NodePart(node=node, attempt=attempt, part=1, outputs={"text": text})


def test_who_begins_to_speak_gets_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Another node, or another attempt; what is no text is not printed."""
    said = Said(Screen())
    for item in (
        part("a", 1, "Hel"), part("a", 1, "lo"), part("a", 1, {"$binary": {}}),
        part("b", 1, 7), part("b", 1, "Hi"), part("b", 2, "Ho"),
    ):  # fmt: skip
        said.add(item)
    assert said.end()
    assert "Hello\nHi\nHo\n" == capsys.readouterr().out


def test_nobody_says_anything(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed, not even the end of a line."""
    assert not Said(Screen()).end()
    assert "" == capsys.readouterr().out


class Terminal(io.StringIO):
    """A terminal that keeps what it is sent."""

    @override
    def isatty(self) -> bool:
        """Say so."""
        return True


def test_a_model_does_not_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What moves its cursor or sets its title is left out; lines and tabs are not."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    Screen().say("a\x1b[2J\x9b\r\tb\n\x07")
    assert "a[2J\tb\n" == terminal.getvalue()

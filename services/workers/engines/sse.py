"""Reads server-sent events as they come, of a server that is not trusted.

Source: HTML Standard, section 9.2.6, interpreting an event stream.
"""

import codecs
import re

from schemas.errors import EngineFailed


EVENT_CHARS_MAX = 1024 * 1024
_LINE_END = re.compile(r"\r\n|\n|\r")
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


class EventReader:
    """Takes the bytes of a stream in pieces of any size; gives the data of each event."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._begun = self._after_cr = False
        self._line: list[str] = []
        """Pieces of the line that has not ended."""
        self._data: list[str] = []
        """Lines of the event that has not ended."""
        self._line_chars = self._data_chars = 0

    def feed(self, chunk: bytes) -> list[str]:
        """Return the data of the events that are complete now; comments and names are left out.

        Raises:
            EngineFailed: It is no UTF-8, or an event is too long.
        """
        try:
            text = self._decoder.decode(chunk)
        except UnicodeDecodeError as error:
            raise EngineFailed("the server's stream is no UTF-8") from error
        found = (self._take(line) for line in self._lines(text))
        return [data for data in found if data is not None]

    def _lines(self, text: str) -> list[str]:
        """Return the lines that end in a text, and keep what is behind them."""
        if not text:
            return []
        if not self._begun:
            self._begun, text = True, text.removeprefix(_BOM)
        if self._after_cr:
            self._after_cr, text = False, text.removeprefix("\n")
        self._after_cr = text.endswith("\r")
        first, *others = _LINE_END.split(text)
        self._line.append(first)
        self._line_chars += len(first)
        self._check()
        if not others:
            return []
        *lines, rest = ["".join(self._line), *others]
        self._line, self._line_chars = [rest], len(rest)
        return lines

    def _take(self, line: str) -> str | None:
        """Take a line; return the data of the event that it ends."""
        if not line:
            data, self._data, self._data_chars = self._data, [], 0
            return "\n".join(data) if data else None
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
            self._data_chars += len(line)
            self._check()
        return None

    def _check(self) -> None:
        if max(self._line_chars, self._data_chars) > EVENT_CHARS_MAX:
            raise EngineFailed(
                f"an event of the server's stream has more than {EVENT_CHARS_MAX} characters"
            )

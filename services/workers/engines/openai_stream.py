"""A chat's answer that comes in parts: what each part adds, and the whole in the end.

Source: the OpenAI API, `POST /chat/completions` with `stream: true`.
"""

from typing import Any

import orjson

from schemas.errors import EngineFailed, Unavailable
from services.workers.engines.openai_answers import failure


DONE = "[DONE]"
TOOL_CALLS_MAX = 128
_GROWING = ("content", "refusal", "reasoning_content", "reasoning")
"""Texts of a message that come in parts."""


class GrowingChat:
    """Puts an answer together, as the server would have given it at once."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._role = "assistant"
        self._finish_reason: str | None = None
        self._usage: Any = None
        self.is_done = False
        """Whether the server said that nothing follows."""

    def add(self, data: str) -> str:
        """Take the data of an event; return the text that it adds.

        Raises:
            ClawdbotError: The server says that it failed; see `failure`.
            EngineFailed: It is no part of an answer.
        """
        if data == DONE:
            self.is_done = True
            return ""
        try:
            document = orjson.loads(data)
            if document.get("error") is not None:
                raise failure(document["error"])
            self._usage = document.get("usage") or self._usage
            choices = document.get("choices") or []
            ours = [choice for choice in choices if choice.get("index", 0) == 0]
            return "".join(self._add(choice) for choice in ours)
        except (orjson.JSONDecodeError, AttributeError, TypeError, KeyError) as error:
            raise EngineFailed("the server's stream holds what is no part of an answer") from error

    def whole(self) -> dict[str, Any]:
        """Return the answer, as of a server that gives it at once.

        Raises:
            Unavailable: The stream ended before the answer did; retryable.
        """
        if not self.is_done or self._finish_reason is None:
            raise Unavailable("the server ended its stream before its answer was whole")
        message: dict[str, Any] = {"role": self._role, "content": None}
        message |= {name: "".join(pieces) for name, pieces in self._texts.items()}
        if self._calls:
            message["tool_calls"] = [_call(self._calls[index]) for index in sorted(self._calls)]
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        return {"choices": [choice], "usage": self._usage}

    def _add(self, choice: dict[str, Any]) -> str:
        delta = choice.get("delta") or {}
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        self._role = delta.get("role") or self._role
        for name in _GROWING:
            piece = delta.get(name)
            if piece is None:
                continue
            if not isinstance(piece, str):
                raise TypeError(name)
            self._texts.setdefault(name, []).append(piece)
        for piece in delta.get("tool_calls") or ():
            self._add_call(piece)
        return delta.get("content") or ""

    def _add_call(self, piece: dict[str, Any]) -> None:
        """Take a part of a tool call: its name comes once, its arguments in pieces."""
        index, function = piece["index"], piece.get("function") or {}
        if type(index) is not int or not 0 <= index < TOOL_CALLS_MAX:
            raise EngineFailed(f"the server's answer calls more than {TOOL_CALLS_MAX} tools")
        empty: dict[str, Any] = {"id": None, "type": "function", "name": "", "pieces": []}
        call, arguments = self._calls.setdefault(index, empty), function.get("arguments") or ""
        if not isinstance(arguments, str):
            raise TypeError(index)
        call["id"] = piece.get("id") or call["id"]
        call["type"] = piece.get("type") or call["type"]
        call["name"] = function.get("name") or call["name"]
        call["pieces"].append(arguments)


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": "".join(call["pieces"])}
    return {"id": call["id"], "type": call["type"], "function": function}

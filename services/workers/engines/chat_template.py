"""What a model is told of a conversation: its folder's chat template, where it can do no harm.

See `chat_child` for the process that renders it; it is started with the first conversation, and
anew when one had to be ended.
"""

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from schemas.errors import EngineFailed, FailedPrecondition, InvalidArgument
from services.workers.engines import fields


TEMPLATE_CHARS_MAX = 256 * 1024
MESSAGES_BYTES_MAX = 1024 * 1024
RENDERED_CHARS_MAX = 4 * 1024 * 1024
RENDER_S_MAX = 10
RENDER_MEMORY_BYTES_MAX = 512 * 1024 * 1024
_CHILD = Path(__file__).with_name("chat_child.py")
_READ_BYTES = 64 * 1024
_LITERAL = ("\U000f0000", "\U000f0001")
"""Around what is text, though it looks like a token of the model's own."""


class ChatTemplate:
    """Renders conversations.

    Args:
        source: The template; empty where the folder has none.
        tokens: Names that templates expect, such as `bos_token`.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        self._source = source
        self._tokens = dict(tokens)
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, messages: Sequence[Any]) -> str:
        """Return the text that the model goes on after, to answer.

        Raises:
            FailedPrecondition: The folder has no template, or a broken one.
            InvalidArgument: The template refuses these messages; names `inputs.messages`.
            EngineFailed: It took too long, or too much memory.
        """
        if not 0 < len(self._source) <= TEMPLATE_CHARS_MAX:
            has = "no chat template" if not self._source else "too long a chat template"
            raise FailedPrecondition(f"the model's folder has {has}: send 'text' instead")
        variables = {**self._tokens, "messages": messages, "add_generation_prompt": True}
        try:
            if self._process is None or self._process.poll() is not None:
                self._start()
            answer = self._ask({"variables": variables})
        except BaseException:
            self.close()
            raise
        if "text" not in answer:
            raise InvalidArgument(
                f"the model's chat template refuses these messages: {answer['refused']}",
                field="inputs.messages",
            )
        return str(answer["text"])

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _start(self) -> None:
        """Start a process, and give it the template."""
        self.close()
        limits = map(str, (RENDER_MEMORY_BYTES_MAX, RENDER_S_MAX, RENDERED_CHARS_MAX))
        self._process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-I", str(_CHILD), *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={},
        )
        answer = self._ask({"template": self._source})
        if "broken" in answer:
            raise FailedPrecondition(f"the model's chat template is broken: {answer['broken']}")

    def _ask(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Send a line to the process, and return the line that answers it."""
        assert self._process is not None, "it was started"
        assert self._process.stdin is not None, "it is a pipe"
        failed = EngineFailed(
            f"the model's chat template took over {RENDER_S_MAX} seconds or "
            f"{RENDER_MEMORY_BYTES_MAX} bytes of memory"
        )
        try:
            self._process.stdin.write(orjson.dumps(document) + b"\n")
            answer: dict[str, Any] = orjson.loads(self._line())
        except (OSError, TimeoutError, orjson.JSONDecodeError) as error:
            raise failed from error
        return answer

    def _line(self) -> bytes:
        """Read a line, for as long as rendering may take."""
        assert self._process is not None, "it was started"
        assert self._process.stdout is not None, "it is a pipe"
        fd, line = self._process.stdout.fileno(), bytearray()
        poll, until = select.poll(), time.monotonic() + RENDER_S_MAX
        poll.register(fd, select.POLLIN)
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                raise TimeoutError
            piece = os.read(fd, _READ_BYTES)
            if not piece:
                raise BrokenPipeError
            line += piece
        return bytes(line)


def checked(given: Any) -> list[dict[str, Any]]:
    """Return messages that a template may be given.

    Raises:
        InvalidArgument: They are none; names `inputs.messages`.
    """
    found = fields.messages(given)
    try:
        size = len(orjson.dumps(found))
    except TypeError as error:
        raise InvalidArgument("'messages' must be JSON", field="inputs.messages") from error
    if size > MESSAGES_BYTES_MAX:
        raise InvalidArgument(
            f"'messages' has {size} bytes; at most {MESSAGES_BYTES_MAX} are taken",
            field="inputs.messages",
        )
    return [
        {key: value for key, value in item.items() if value is not None} for item in found
    ]  # templates print what is null


def as_text(messages: Sequence[Mapping[str, Any]], tokens: Collection[str]) -> list[dict[str, Any]]:
    """Mark what looks like a token of the model's own in what others than the model said.

    Args:
        messages: As they came.
        tokens: Those that begin and end messages, among others.
    """
    known = sorted(filter(None, tokens), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, [*_LITERAL, *known])))

    def mark(found: re.Match[str]) -> str:
        return "" if found[0] in _LITERAL else found[0].join(_LITERAL)

    def marked(value: Any) -> Any:
        match value:
            case str():
                return pattern.sub(mark, value)
            case dict():
                return {key: marked(item) for key, item in value.items()}
            case list():
                return [marked(item) for item in value]
            case _:
                return value

    return [
        dict(message) if message["role"] == "assistant" else marked(message) for message in messages
    ]


def pieces(rendered: str) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of a rendered conversation, each with whether it is marked as text."""
    for index, piece in enumerate(re.split("|".join(_LITERAL), rendered)):
        if piece:
            yield piece, index % 2 == 1

"""Many answers to one question."""

import asyncio
from collections import deque

from events.express import Frame
from schemas.errors import ClawdbotError, ResourceExhausted


HEARD_MAX = 1024
"""Answers to one question that wait to be read; with one more it fails."""


class Heard:
    """Answers to one question, in the order they came."""

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()
        self._more = asyncio.Event()
        self._error: ClawdbotError | None = None

    def put(self, frame: Frame) -> None:
        """Take an answer; where too many wait, this is the end."""
        if len(self._frames) >= HEARD_MAX:
            self.end(ResourceExhausted("the answer comes in parts faster than it is taken"))
        elif self._error is None:
            self._frames.append(frame)
            self._more.set()

    def end(self, error: ClawdbotError) -> None:
        """Take no more."""
        self._error = self._error or error
        self._more.set()

    async def next(self) -> Frame:
        """Return the next answer.

        Raises:
            ClawdbotError: There will be none.
        """
        while not self._frames:
            if self._error is not None:
                raise self._error
            self._more.clear()
            await self._more.wait()
        return self._frames.popleft()

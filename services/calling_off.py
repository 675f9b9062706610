"""A block that others may call off while it waits, and that then raises why."""

import asyncio
from typing import Any, Self


class Revocable:
    """A block of a task that may be called off from outside, by whoever has this object.

    As `asyncio.timeout` does, but for any reason and without a timer of its own: who watches over
    thousands has one for all.
    """

    __slots__ = ("_cancelling", "_task", "_why", "is_over")

    def __init__(self) -> None:
        self._why: Exception | None = None
        self.is_over = False
        """Whether the block ended; what still works on its behalf in a thread may stop."""

    def __enter__(self) -> Self:
        """Begin."""
        task = asyncio.current_task()
        assert task is not None, "only a task can be cancelled"
        self._task: asyncio.Task[Any] = task
        self._cancelling = task.cancelling()
        return self

    def call_off(self, why: Exception) -> None:
        """Cancel the block, which raises an error; the first to call it off says which."""
        if self._why is None:
            self._why = why
            self._task.cancel()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Raise why it was called off, unless the task was cancelled besides."""
        self.is_over = True
        if self._why is None:
            return
        alone = self._task.uncancel() <= self._cancelling
        if alone and isinstance(error, asyncio.CancelledError):
            raise self._why from error

"""One timer for all that may be past its deadline: hardly anything is, so nothing needs its own."""

import asyncio
from collections.abc import Collection
from typing import Protocol


class Timed(Protocol):
    """Something that is under way for a limited time."""

    @property
    def deadline(self) -> float:
        """By the loop's clock."""

    def late(self) -> None:
        """End it: its time is over."""


class Deadlines:
    """Looks now and then at what is under way, as long as there is any.

    Args:
        every_s: How often; something may be that late.
        under_way: All there is, as it changes.
    """

    def __init__(self, every_s: float, under_way: Collection[Timed]) -> None:
        self._every_s = every_s
        self._under_way = under_way
        self._is_on = False

    def watch(self) -> None:
        """Look from now on, if nobody does."""
        if not self._is_on:
            self._is_on = True
            asyncio.get_running_loop().call_later(self._every_s, self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        for item in self._under_way:
            if item.deadline <= now:
                item.late()
        self._is_on = False
        if self._under_way:
            self.watch()

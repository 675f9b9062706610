"""A model that is to be loaded: who waits for it, whether there is room, and who does the work."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from enum import Enum, auto

from services.workers.loaded import Loaded
from services.workers.memory import NOTHING, Size


@dataclass(eq=False)
class Wanted:
    """A model that is to be loaded."""

    waiters: "list[asyncio.Future[Loaded]]" = field(default_factory=list)
    ahead: bool = False
    """Whether it is loaded ahead of need."""
    begun: bool = False
    stale: bool = False
    """Whether its entry changed while it was loading."""
    need: Size = NOTHING

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits for it."""
        return self.ahead or any(not waiter.done() for waiter in self.waiters)

    def fail(self, error: Exception) -> None:
        """Tell all who wait."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(error)


class Room(Enum):
    """When there is room for a model."""

    NOW = auto()
    SOON = auto()
    """As soon as those have gone that must."""
    NEVER = auto()
    """Not without taking it from those who compute."""


@dataclass(frozen=True)
class Shop:
    """How the cache has its work done, in threads."""

    open: Callable[[str], Loaded]
    """Load and warm a model; raises ModelUnavailable."""
    close: Callable[[Loaded], None]
    estimate: Callable[[str], Size]
    """Return what a model takes at least, before it was ever measured."""
    threads: Executor
    loads_max: int

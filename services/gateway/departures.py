"""What the connection says of a request besides ASGI: that it is all here, that its client went.

What somebody waited for who went away is called off.
"""

from collections.abc import Callable
from typing import Any, Self

from typing_extensions import override

from schemas.errors import Cancelled
from services.calling_off import Revocable


DEPARTURES = "clawdbot.departures"
"""Of an ASGI scope: what to call when the connection is lost."""
ARRIVED = "clawdbot.arrived"
"""Of an ASGI scope: whether the whole request is here, and its body needs no waiting for."""


class called_off_when_gone(Revocable):  # noqa: N801 - reads as a word of the sentence
    """Cancels a block when the client's connection is lost, which then raises `Cancelled`.

    A task that waits for the end of the connection would cost more than an inference does; here
    the connection itself calls.

    Args:
        scope: Of the request.
    """

    __slots__ = ("_departures",)

    def __init__(self, scope: Any) -> None:
        super().__init__()
        self._departures: set[Callable[[], None]] = scope.get(DEPARTURES, set())

    @override
    def __enter__(self) -> Self:
        self._departures.add(self._leave)
        return super().__enter__()

    @override
    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._departures.discard(self._leave)
        super().__exit__(kind, error, trace)

    def _leave(self) -> None:
        self.call_off(Cancelled("the client went away"))

"""Requests that wait to share a message, and those that do: how much leaves when."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from schemas.errors import ClawdbotError, DeadlineExceeded
from schemas.pieces import Body
from services.bundles import Item, bundles


AHEAD = 4
"""Messages without an answer, where no setting says otherwise: one for each who is on the way."""
HOLD_S = 0.005
"""Longest wait behind so many, where no setting says otherwise."""
FEW = 8
"""Requests that are worth a message of their own while others are under way: so many share the
costs of a message well, and waiting for more would keep who answers idle."""
BRIEF_S = 0.001
"""Longest wait where answers take long: what waits here no engine can see."""
LONG_S = 0.015
"""An answer that takes longer is mostly computed, one that takes less is mostly on its way: such
is the way there and back on a busy machine, whatever an operator wishes."""
TRIP_WEIGHT = 0.1
"""Of the newest answer in how long answers take: some tens of them tell, one does not."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How far the requests to one who answers go ahead of its answers."""

    ahead: int = AHEAD
    """Messages without an answer; what comes behind them waits to share one, >= 1."""
    hold_s: float = HOLD_S
    """Longest wait there, seconds."""


@dataclass(eq=False, slots=True)
class Sent:
    """A message of a lane: one request or more."""

    lane: "Lane"
    left: int
    """Requests without an answer."""
    at: float
    """When it left, by the loop's clock."""


@dataclass(eq=False, slots=True)
class Asked:
    """A request under way."""

    item: Item[Body]
    answer: "asyncio.Future[Item[bytes]]"
    timeout_s: float
    deadline: float
    """By the loop's clock."""
    sent: Sent | None = None
    """In which message; None while it waits, and where each goes alone."""

    def fail(self, error: ClawdbotError) -> None:
        """End it with an error, unless it has its answer."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def late(self) -> None:
        """End it: nobody answered in its time."""
        self.fail(DeadlineExceeded(f"no answer came within {self.timeout_s:g} seconds"))


@dataclass(eq=False)
class Lane:
    """The requests to one subject that go together, by turns of the loop and by answers.

    While few messages are unanswered, what is asked in one turn leaves at its end. Behind more of
    them it waits until one is answered, or a moment: whoever answers has enough to do, and fewer
    and larger messages cost less.

    All that is under way is spread over the messages evenly. Else those who are answered together
    ask together, until everybody is in one message, and whoever does not have it idles.
    """

    subject: str
    pace: Pace = Pace()
    waiting: list[Asked] = field(default_factory=list)
    unanswered: int = 0
    """Messages."""
    under_way: int = 0
    """Requests in them that are not over."""
    trip_s: float = 0.0
    """How long a message takes lately until all of it is answered."""
    timer: asyncio.Handle | None = None
    """Of the next time that something is sent."""

    @property
    def busy(self) -> bool:
        """Tell whether who answers has enough to do."""
        return self.unanswered >= self.pace.ahead

    @property
    def hold_s(self) -> float:
        """Return how long a request may wait here."""
        longest_s = self.pace.hold_s
        return longest_s if self.trip_s < LONG_S else min(BRIEF_S, longest_s)

    def over(self, sent: Sent, now: float) -> None:
        """Count a message that is answered."""
        self.unanswered -= 1
        self.trip_s += TRIP_WEIGHT * (now - sent.at - self.trip_s)

    def leave(self, *, late: bool) -> Iterator[Sequence[Asked]]:
        """Yield what is to leave now, by messages; the rest goes on waiting.

        Args:
            late: Whether it waited long: then all of it leaves.
        """
        waiting = [asked for asked in self.waiting if not asked.answer.done()]
        ahead = self.pace.ahead
        share = max(FEW, -(-(len(waiting) + self.under_way) // ahead))
        room = len(waiting) if late else share * max(0, ahead - self.unanswered)
        self.waiting = waiting[room:]
        for begin in range(0, min(room, len(waiting)), share):
            yield from bundles(waiting[begin : min(begin + share, room)], _body_size)


def _body_size(asked: Asked) -> int:
    return len(asked.item.body)

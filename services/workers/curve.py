"""How many rows of one call pay: learned from how long calls take.

A larger call costs less for each row, up to where the processor is full; beyond that it only makes
everybody in it wait for the last one. So a call has as many rows as make a row cheaper, no more.

And no call takes everybody: those who are answered together ask together, and the engine idles
meanwhile. Two calls by turns, one at work and one in line, keep it busy; two alike, else the few of
the one are back before the many of the other.

Source: the throughput curve of Clipper's adaptive batching (NSDI 2017), by halving.
"""

from collections.abc import Iterator


WORTH = 1.03
"""A smaller call is taken if a row costs at most so much more than at best."""
IDLE_WORTH = 0.15
"""So much more, at most, where the engine idled: its time was there."""
TRIES = 3
"""Calls of a size until it is known what a row costs."""
QUICKER_WEIGHT, SLOWER_WEIGHT = 0.5, 0.1
"""Of the newest call in what a row costs: others on the machine only ever make it slower."""
LONG_S = 0.002
"""Shorter calls are not made smaller: what surrounds a call costs more."""
AGAIN = 512
"""Calls until all is learned anew: the machine, or the model, may have changed."""


class Curve:
    """What a row costs in calls of each size; sizes are halves of halves of the largest.

    Args:
        rows_max: Most rows of a call.
    """

    def __init__(self, rows_max: int) -> None:
        self._sizes = tuple(_halves(rows_max))
        """Ascending."""
        self._row_s = dict.fromkeys(self._sizes, 0.0)
        self._seen = dict.fromkeys(self._sizes, 0)
        self._calls = 0
        self._last = 0
        """Rows of the newest call."""
        self._there = 0
        """Most rows that were there at the same time, in a call or waiting."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that are told apart, ascending."""
        return self._sizes

    def note(self, rows: int, took_s: float) -> None:
        """Take note of a call."""
        size, row_s = self._size(rows), took_s / rows
        past_s = self._row_s[size] if self._seen[size] else row_s
        weight = QUICKER_WEIGHT if row_s < past_s else SLOWER_WEIGHT
        self._row_s[size] = past_s + weight * (row_s - past_s)
        self._seen[size] += 1
        self._last = rows
        self._calls += 1
        if self._calls % AGAIN == 0:
            self._seen = dict.fromkeys(self._sizes, 0)
            self._there = 0

    def learn(self, rows: int, took_s: float) -> None:
        """Take note of what calls of a size take, measured while nobody waits."""
        size = self._size(rows)
        self._row_s[size], self._seen[size] = took_s / rows, TRIES

    def most(self, waiting: int) -> int:
        """Return how many rows the next call may have, where so many wait: the fewest that pay."""
        chosen = self._size(waiting)
        if not self._matters(chosen, waiting):
            return chosen
        best_s = self._row_s[chosen]
        for size in reversed(self._sizes[: self._sizes.index(chosen)]):
            if self._seen[size] < TRIES:
                return size  # to find out
            best_s = min(best_s, self._row_s[size])
            if self._row_s[size] > WORTH * best_s:
                break
            chosen = size
        return chosen

    def half(self, waiting: int, idle_s: float) -> int:
        """Return how many rows the next call may have so that another one is made by turns with it.

        Args:
            waiting: Rows that could go together.
            idle_s: How long the engine idled until they came; 0: they waited for it.
        """
        self._there = max(self._there, waiting if idle_s else waiting + self._last)
        half, chosen = -(-self._there // 2), self._size(waiting)
        if half >= waiting or not self._matters(chosen, waiting):
            return waiting
        size, whole_s = self._size(half), self._row_s[chosen]
        worth = WORTH + min(idle_s / (whole_s * waiting), IDLE_WORTH)
        if idle_s and self._seen[size] >= TRIES and self._row_s[size] > worth * whole_s:
            return waiting  # one more call takes longer than the engine idled
        return half

    def is_worth_waiting(self, rows: int, there: int) -> bool:
        """Tell whether a row costs less in the call that so many would make.

        What was never measured is no reason to wait.

        Args:
            rows: That wait.
            there: That may be there together, if one waits.
        """
        most = min(there, self.most(there)) if there else 0
        if there and self._matters(self._size(there), there):
            most = min(most, -(-there // 2))  # two calls by turns
        if rows >= most:
            return False
        now_s, then_s = self._call_s(rows) / rows, self._call_s(most) / most
        return min(now_s, then_s) > 0 and now_s > WORTH * then_s

    def _call_s(self, rows: int) -> float:
        """Return what a call of so many rows takes, between the sizes next to it; 0: unknown."""
        above = self._size(rows)
        above_s = self._row_s[above] * above
        if rows >= above:
            return self._row_s[above] * rows
        below = self._sizes[self._sizes.index(above) - 1]
        below_s = self._row_s[below] * below
        if not below_s or not above_s:
            return 0.0
        return below_s + (above_s - below_s) * (rows - below) / (above - below)

    def _matters(self, size: int, waiting: int) -> bool:
        """Tell whether a call of all who wait is known to be long enough to be made smaller."""
        return self._seen[size] >= TRIES and self._row_s[size] * waiting >= LONG_S

    def _size(self, rows: int) -> int:
        return next((size for size in self._sizes if rows <= size), self._sizes[-1])


def _halves(rows_max: int) -> Iterator[int]:
    """Yield 1, and what is left of the largest size by halving it, ascending."""
    sizes = {1, rows_max}
    size = rows_max
    while size > 1:
        size = -(-size // 2)
        sizes.add(size)
    yield from sorted(sizes)

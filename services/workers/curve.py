"""How many rows of one call pay: learned from how long calls take.

A larger call costs less for each row, up to where the processor is full; beyond that it only makes
everybody in it wait for the last one. It also puts all clients in step: they are answered together,
ask together, and the engine idles meanwhile. Two calls of half the size, one at work and one in
line, keep the engine busy. So a call has as many rows as make a row cheaper, and no more.

Source: the throughput curve of Clipper's adaptive batching (NSDI 2017), by halving.
"""

from collections.abc import Iterator


WORTH = 1.1
"""A smaller call is taken if a row costs at most so much more than at best."""
TRIES = 3
"""Calls of a size until it is known what a row costs."""
WEIGHT = 0.3
"""Of the newest call in what a row costs."""
LONG_S = 0.002
"""Shorter calls are not made smaller: what surrounds a call costs more."""
AGAIN = 512
"""Calls until smaller ones are tried again: the machine, or the model, may have changed."""


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

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that are told apart, ascending."""
        return self._sizes

    def note(self, rows: int, took_s: float) -> None:
        """Take note of a call."""
        size, row_s = self._size(rows), took_s / rows
        past_s = self._row_s[size] if self._seen[size] else row_s
        self._row_s[size] = past_s + WEIGHT * (row_s - past_s)
        self._seen[size] += 1
        self._calls += 1
        if self._calls % AGAIN == 0:
            self._seen = {known: min(seen, TRIES - 1) for known, seen in self._seen.items()}

    def learn(self, rows: int, took_s: float) -> None:
        """Take note of what calls of a size take, measured while nobody waits."""
        size = self._size(rows)
        self._row_s[size], self._seen[size] = took_s / rows, TRIES

    def most(self, waiting: int) -> int:
        """Return how many rows the next call may have, where so many wait: the fewest that pay."""
        chosen = self._size(waiting)
        if self._seen[chosen] < TRIES or self._row_s[chosen] * waiting < LONG_S:
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

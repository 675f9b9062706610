"""Whether a free engine waits a moment for more rows, where a model's entry allows it.

By default nothing waits (ADR-0028). With `max_queue_delay_us` those who are there wait up to that
long, counted from the first of them, if two things are so: lately more were there at the same time,
and the measured times of calls say that a row costs less in the larger call. Who is alone waits for
nobody; a model whose rows cost the same in any call makes nobody wait.

Source: `dynamic_batching.max_queue_delay_microseconds` of Triton, which waits in any case.
"""

from collections import deque

from services.workers.curve import Curve


RECENT = 32
"""Calls that tell how many rows may be there at once; fewer clients are noticed after so many."""


class Delay:
    """Decides for one line.

    Args:
        longest_s: How long the first in line may wait for company; 0: nobody waits.
        curve: What calls cost.
    """

    def __init__(self, longest_s: float, curve: Curve) -> None:
        self._longest_s = longest_s
        self._curve = curve
        self._there: deque[int] = deque(maxlen=RECENT)

    @property
    def is_on(self) -> bool:
        """Whether anybody may have to wait."""
        return self._longest_s > 0

    def note(self, rows: int) -> None:
        """Take note of how many rows were there when a call was over, its own and waiting ones."""
        self._there.append(rows)

    def left_s(self, rows: int, waited_s: float) -> float:
        """Return how much longer a free engine waits; 0: it computes what is there.

        Args:
            rows: That one call may compute.
            waited_s: For how long the first of them is there.
        """
        left_s = self._longest_s - waited_s
        pays = left_s > 0 and self._curve.is_worth_waiting(rows, max(self._there, default=0))
        return left_s if pays else 0.0

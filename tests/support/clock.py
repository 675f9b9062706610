"""Time that moves only when a test says so."""


class ManualClock:
    """A clock for tests: seconds since the epoch, set by hand."""

    def __init__(self, at: float = 1_000_000.0) -> None:
        self._at = at

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self._at

    def advance(self, seconds: float) -> float:
        """Move on by `seconds`, >= 0, and return the new time."""
        assert seconds >= 0, "time never runs backwards"
        self._at += seconds
        return self._at

"""The contract of the event store; `memory` and `jetstream` keep it, one suite tests both."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from events.catalog import Event
from events.codec import Commit
from events.evolve import fold
from events.state import RunState
from events.subjects import RunKey
from schemas.errors import NotFound


RETIRED = "Clawdbot-Retired"
"""The header that makes a message without a body the tombstone of a run: when it was retired."""


@dataclass(frozen=True)
class Head:
    """Where a run's log ends: what the next append must build on."""

    sequence: int = 0
    """Sequence of the last commit in the whole log; 0 when the run has none."""
    version: int = 0
    """Number of commits."""
    digest: str = ""
    """SHA-256 of the last commit's stored bytes."""


EMPTY = Head()


@dataclass(frozen=True)
class History:
    """A run's whole log."""

    commits: tuple[Commit, ...]
    sequences: tuple[int, ...]
    head: Head

    def events(self) -> list[Event]:
        """Return every event in order."""
        return [event for commit in self.commits for event in commit.events]

    def state(self) -> RunState | None:
        """Fold it."""
        return fold(self.events())


@dataclass(frozen=True)
class Append:
    """One commit to append."""

    key: RunKey
    commit_id: str
    events: Sequence[Event]
    head: Head
    """The end of the log the decision was based on."""
    state: RunState
    """The state after the events; its status and wake time go into headers for the index."""
    traceparent: str = ""


def retired(key: RunKey, at: float) -> NotFound:
    """Return what `load` raises for a tombstone."""
    when = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
    return NotFound(f"run {key.run_id} was retired on {when}; its archive has it", retired_at=at)


class EventStore(ABC):
    """Keeps one append-only log per run."""

    @abstractmethod
    async def append(self, append: Append) -> Head:
        """Append one commit and return the new head; durable when it returns.

        Appending the same commit id twice on the same head is one append.

        Raises:
            VersionConflict: The run's log does not end at `append.head`.
            AlreadyExists: The id belongs to a run that was retired.
            StoreFull: No room.
            StoreUnavailable: The log cannot be reached.
            DataLoss: The commit cannot be told from an altered log.
        """

    @abstractmethod
    async def load(self, key: RunKey, after: Head = EMPTY) -> History:
        """Read a run's log and check its versions and its hash chain; empty when there is none.

        Args:
            key: The run.
            after: Read only the commits that follow this head, as a snapshot needs them; the log
                must still hold the commit this head stands for.

        Raises:
            NotFound: The run was retired: only its tombstone is left.
            StoreUnavailable: The log cannot be reached.
            DataLoss: A commit is missing, altered or unreadable.
        """

    @abstractmethod
    async def head(self, key: RunKey) -> Head:
        """Return where a run's log ends, as its leader has it: `load` may be answered by a replica.

        Raises:
            NotFound: The run was retired.
            StoreUnavailable: The log cannot be reached.
        """

    @abstractmethod
    async def retire(self, key: RunKey, head: Head, at: float) -> None:
        """Replace a run's log by a tombstone, for ever; again is the same as once.

        The tombstone is one message on the run's own subject with a header and no body. It keeps
        the id taken: `load` raises NotFound and `append` raises AlreadyExists.

        Args:
            key: The run; the caller has made sure that it is terminal and archived.
            head: The end of the log that was archived.
            at: Seconds since the epoch.

        Raises:
            VersionConflict: The run's log does not end at `head`.
            StoreFull: No room, not even for the tombstone.
            StoreUnavailable: The log cannot be reached.
        """

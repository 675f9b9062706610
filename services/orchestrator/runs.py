"""The desk where decisions become commits: one run at a time, many runs at once."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from events.catalog import (
    CleanupStarted,
    Event,
    NodeCompleted,
    NodeFailed,
    NodeSkipped,
    RunCancelled,
    RunFailed,
    ScopeClosed,
)
from events.commands import Advice, Command
from events.index import RunIndex
from events.jetstream import commit_headers
from events.run import decided
from events.snapshots import Snapshot, SnapshotStore, due, load_state
from events.state import RunState
from events.store import EMPTY, Append, EventStore, Head
from events.subjects import RunKey
from events.verify import check_end
from schemas.errors import ClawdbotError, DataLoss, VersionConflict
from services.orchestrator.behind import Behind, Decided
from services.telemetry import get_logger


log = get_logger()

CONFLICTS_MAX = 16
Wanted = Callable[[], Awaitable[bool]]
"""Tells whether a command is still to be obeyed."""
GIVING_UP = (
    RunCancelled,
    RunFailed,
    CleanupStarted,
    ScopeClosed,
    NodeSkipped,
    NodeFailed,
    NodeCompleted,
)
"""Events after which other nodes' work may be for nothing."""


@dataclass
class Slot:
    """What the desk knows about one run."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    state: RunState | None = None
    head: Head = EMPTY
    snapshot_version: int = 0
    known: bool = False
    """Whether `state` was read from the log or decided here."""
    behind: Behind | None = None
    """What is decided and not stored yet, unless effects wait for the log."""

    @property
    def pending(self) -> "asyncio.Future[None] | None":
        """Done when all that is decided is stored; None when it is."""
        return None if self.behind is None else self.behind.pending

    @property
    def is_in_use(self) -> bool:
        """Whether it must be remembered."""
        return self.lock.locked() or (self.behind is not None and self.behind.is_busy)


@dataclass(frozen=True)
class Decision:
    """What became of a command."""

    state: RunState | None
    events: list[Event]
    """What was committed; empty when the command was stale."""
    abandoned: tuple[tuple[str, int], ...] = ()
    """Attempts under way that nobody waits for any more: path and number of each."""
    freed: tuple[tuple[str, str], ...] = ()
    """Nodes that are over and were inside a gate, or in front of it: key and path of each."""
    stored: "asyncio.Future[None] | None" = None
    """Done when what was decided, now or before, is stored; None when it is already."""


class Witness(Protocol):
    """Knows whether the log is still the one that was seen (`services.orchestrator.history`)."""

    async def sound(self) -> None:
        """Return when the log may be trusted."""

    def saw(self, key: RunKey, head: Head) -> None:
        """Take note of a commit that was stored."""

    def damaged(self, key: RunKey, reason: str) -> None:
        """Take note of a run whose log is altered or lacks commits."""


class Trusting:
    """A witness for a log that cannot change behind one's back."""

    async def sound(self) -> None:
        """Return at once."""

    def saw(self, key: RunKey, head: Head) -> None:
        """Forget it."""

    def damaged(self, key: RunKey, reason: str) -> None:
        """Leave it to whoever catches the error."""


class Runs:
    """Folds, decides and commits, with a cache of folded states.

    Args:
        store: The log.
        snapshots: Where long runs are kept folded.
        index: Told of every commit at once; knows how many commits each run had.
        witness: Asked before anything is read, told of what was written.
        cached_max: Runs kept in memory.
        snapshot_every: Commits between two snapshots.
    """

    def __init__(
        self,
        store: EventStore,
        snapshots: SnapshotStore,
        index: RunIndex,
        witness: Witness | None = None,
        *,
        cached_max: int = 4096,
        snapshot_every: int = 32,
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._index = index
        self._witness = witness or Trusting()
        self._cached_max = cached_max
        self._snapshot_every = snapshot_every
        self._slots: OrderedDict[RunKey, Slot] = OrderedDict()

    async def obey(
        self,
        key: RunKey,
        command: Command,
        *,
        advice: Advice = Advice(),  # noqa: B008 - frozen
        traceparent: str = "",
        fresh: bool = False,
        wanted: Wanted | None = None,
    ) -> Decision:
        """Decide a command against the run's log and commit what it brings.

        Args:
            key: The run.
            command: What to decide.
            advice: What the decision may use besides the log.
            traceparent: Goes into the commit's headers.
            fresh: Try first as if the run had no log; a conflict tells otherwise.
            wanted: Asked before each try, once the log is known, whether this is still to be done.

        Raises:
            StoreUnavailable: The log cannot be reached; nothing is known about the commit.
            StoreFull: No room.
            DataLoss: The run's log is altered, or lacks commits that were seen.
            VersionConflict: Others were faster CONFLICTS_MAX times in a row.
        """
        slot = self._slot(key)
        async with slot.lock:
            read = False
            fresh = fresh and not self._index.commits(key)
            for _ in range(CONFLICTS_MAX):
                await self._witness.sound()
                if not slot.known and not fresh:
                    await self._load(key, slot)
                    read = True
                if wanted is not None and not await wanted():
                    return Decision(slot.state, [])
                before = slot.state
                events, after = decided(before, command, advice)
                if not events and (read or _final(slot.state)):
                    return Decision(slot.state, [], stored=slot.pending)
                if not events:
                    slot.known = fresh = False  # another orchestrator may have gone further
                    continue
                assert after is not None
                news = Decided(events, after, traceparent)
                stored = None
                try:
                    if after.plan.mode == "strong":
                        await self._commit(key, slot, news)
                    else:
                        stored = self._behind(key, slot).add(news)
                except VersionConflict:
                    fresh = False
                    continue
                slot.state, slot.known = after, True
                abandoned, freed = _abandoned(before, after, events), _freed(before, after)
                return Decision(after, events, abandoned, freed, stored)
        raise VersionConflict("others keep appending to the run first")

    async def state(self, key: RunKey) -> RunState | None:
        """Return a run's state as the log has it, whoever wrote it.

        Raises:
            StoreUnavailable: The log cannot be reached.
            DataLoss: The run's log is altered, or lacks commits that were seen.
        """
        slot = self._slot(key)
        async with slot.lock:
            await self._witness.sound()
            if not _final(slot.state):
                await self._load(key, slot)
            return slot.state

    async def flush(self) -> None:
        """Return when everything that was decided is stored."""
        for slot in [*self._slots.values()]:
            if slot.behind is not None:
                await slot.behind.drained()

    def _behind(self, key: RunKey, slot: Slot) -> Behind:
        if slot.behind is None:
            slot.behind = Behind(lambda decided: self._commit(key, slot, decided))
        return slot.behind

    async def _commit(self, key: RunKey, slot: Slot, decided: Decided) -> None:
        state = decided.state
        append = Append(
            key, decided.commit_id, decided.events, slot.head, state, decided.traceparent
        )
        try:
            slot.head = await self._store.append(append)
        except ClawdbotError:
            slot.known = False
            raise
        self._witness.saw(key, slot.head)
        headers = commit_headers(append, slot.head.version)
        self._index.note(key, slot.head.sequence, headers, state.updated_at)
        if due(slot.head, slot.snapshot_version, self._snapshot_every) and not state.terminal:
            try:
                await self._snapshots.put(key, Snapshot(state, slot.head))
                slot.snapshot_version = slot.head.version
            except ClawdbotError as error:
                log.info("snapshot_skipped", run_id=key.run_id, error=error.message)

    def forget(self, key: RunKey) -> None:
        """Read a run from the log before the next decision."""
        slot = self._slots.get(key)
        if slot is not None:
            slot.known = False

    async def _load(self, key: RunKey, slot: Slot) -> None:
        if slot.behind is not None:
            await slot.behind.drained()
        seen = max(slot.head.version, self._index.commits(key))
        try:
            loaded = await load_state(self._store, self._snapshots, key)
            await check_end(self._store, key, loaded.head, seen)
        except DataLoss as error:
            slot.known = False
            self._witness.damaged(key, error.message)
            raise
        if loaded.origin == "bad_snapshot":
            log.warning("snapshot_ignored", run_id=key.run_id)
        slot.state, slot.head, slot.known = loaded.state, loaded.head, True
        slot.snapshot_version = loaded.snapshot_version

    def _slot(self, key: RunKey) -> Slot:
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = Slot()
            self._evict()
        self._slots.move_to_end(key)
        return slot

    def _evict(self) -> None:
        """Forget the run that was not asked for the longest, unless it is being worked on."""
        if len(self._slots) > self._cached_max:
            oldest, slot = next(iter(self._slots.items()))
            if slot.is_in_use:
                self._slots.move_to_end(oldest)
            else:
                del self._slots[oldest]


def _abandoned(
    before: RunState | None, after: RunState | None, events: list[Event]
) -> tuple[tuple[str, int], ...]:
    """Return the attempts under way before that nobody waits for after the events."""
    if before is None or after is None or not any(isinstance(event, GIVING_UP) for event in events):
        return ()
    answered = {
        (event.node_id, event.attempt)
        for event in events
        if isinstance(event, NodeCompleted | NodeFailed)
    }
    return tuple(
        attempt
        for path, node in before.active()
        if node.status == "scheduled"
        for attempt in ((path, number) for number in (*node.rivals, node.attempt))
        if attempt not in answered and not _awaited(after, *attempt)
    )


def _freed(before: RunState | None, after: RunState | None) -> tuple[tuple[str, str], ...]:
    """Return the nodes that were busy with a gate before the events and are not after them."""
    if before is None or after is None or not before.is_gated:
        return ()
    return tuple(
        (node.gate, path)
        for path, node in before.active()
        if node.gate and node.is_busy and (after.terminal or not _is_busy(after, path))
    )


def _is_busy(state: RunState, path: str) -> bool:
    node = state.node(path)
    return node is not None and node.is_busy


def _awaited(state: RunState, path: str, attempt: int) -> bool:
    node = None if state.terminal else state.node(path)
    if node is None or node.status != "scheduled":
        return False
    return attempt == node.attempt or attempt in node.rivals


def _final(state: RunState | None) -> bool:
    return state is not None and state.terminal

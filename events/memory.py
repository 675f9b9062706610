"""The event store in memory: the twin for unit tests and simulation."""

import hashlib

from eventsourcing.persistence import StoredEvent
from typing_extensions import override

from events.chain import check_head, check_link
from events.codec import COMMIT_TOPIC, Commit, CommitMapper
from events.store import EMPTY, Append, EventStore, Head, History, retired
from events.subjects import RunKey, event
from schemas.errors import AlreadyExists, VersionConflict


class MemoryEventStore(EventStore):
    """Keeps stored bytes in lists, so encoding and chain are exercised as in production."""

    def __init__(self) -> None:
        self._mapper = CommitMapper()
        self._logs: dict[str, list[tuple[int, str, str, bytes]]] = {}
        self._sequence = 0
        self._retired: dict[str, float] = {}

    @override
    async def append(self, append: Append) -> Head:
        """Append one commit."""
        if event(append.key) in self._retired:
            raise AlreadyExists(f"run id {append.key.run_id} belongs to a run that was retired")
        log = self._logs.setdefault(event(append.key), [])
        if log and log[-1][1] == append.commit_id:
            sequence, _, _, state = log[-1]
            return Head(sequence, len(log), hashlib.sha256(state).hexdigest())
        if (log[-1][0] if log else 0) != append.head.sequence:
            raise VersionConflict("somebody else appended to the run first")
        commit = Commit(
            originator_id=f"{append.key.tenant}.{append.key.run_id}",
            originator_version=append.head.version + 1,
            commit_id=append.commit_id,
            events=tuple(append.events),
        )
        state = self._mapper.to_stored_event(commit).state
        self._sequence += 1
        log.append((self._sequence, append.commit_id, append.head.digest, state))
        return Head(self._sequence, append.head.version + 1, hashlib.sha256(state).hexdigest())

    @override
    async def load(self, key: RunKey, after: Head = EMPTY) -> History:
        """Read a run's log."""
        subject = event(key)
        if subject in self._retired:
            raise retired(key, self._retired[subject])
        log = self._logs.get(subject, [])
        if after.version:
            check_head(key, after, [(item[0], item[3]) for item in log[after.version - 1 :]])
        head = after
        commits, sequences = [], []
        for sequence, _, previous, state in log[after.version :]:
            head = check_link(key, head, sequence, head.version + 1, previous, state)
            stored = StoredEvent(f"{key.tenant}.{key.run_id}", head.version, COMMIT_TOPIC, state)
            commits.append(self._mapper.to_domain_event(stored))
            sequences.append(sequence)
        return History(tuple(commits), tuple(sequences), head)

    @override
    async def head(self, key: RunKey) -> Head:
        """Return where a run's log ends."""
        return (await self.load(key)).head

    @override
    async def retire(self, key: RunKey, head: Head, at: float) -> None:
        """Replace a run's log by a tombstone."""
        subject = event(key)
        if subject in self._retired:
            return
        log = self._logs.get(subject, [])
        if (log[-1][0] if log else 0) != head.sequence:
            raise VersionConflict("the run's log has grown since it was archived")
        self._sequence += 1
        self._retired[subject] = at
        self._logs.pop(subject, None)

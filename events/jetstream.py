"""The event store over JetStream: one message per commit on the run's event subject."""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import orjson
from eventsourcing.persistence import MapperDeserialisationError, StoredEvent
from nats.aio.client import Client as Nats
from nats.errors import (
    ConnectionClosedError,
    ConnectionReconnectingError,
    NoRespondersError,
    OutboundBufferLimitError,
)
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeout
from nats.js.errors import (
    APIError,
    NoStreamResponseError,
    NotFoundError,
    ServiceUnavailableError,
)
from typing_extensions import override

from events.chain import check_head, check_link
from events.codec import COMMIT_TOPIC, Commit, CommitMapper
from events.express import STATUS, Express, Frame, Refused
from events.group_commit import GroupCommit
from events.hedge import AGAIN_S, DIRECT_ASKED_MAX
from events.keys import KeyRing
from events.store import EMPTY, RETIRED, Append, EventStore, Head, History, retired
from events.streams import EVENTS
from events.subjects import RunKey, event, run_key
from schemas.errors import (
    AlreadyExists,
    DataLoss,
    StoreFull,
    StoreUnavailable,
    VersionConflict,
)
from schemas.messages import Header


WRONG_LAST_SEQUENCE = 10071
SERVICE_UNAVAILABLE = 503
STREAM_FULL = {10077, 10047, 10023, 10122}
APPEND_TIMEOUT_S = 2.5
READ_BATCH = 256
BUS_ERRORS = (
    NatsTimeout,
    ConnectionClosedError,
    ConnectionReconnectingError,
    NoRespondersError,
    NoStreamResponseError,  # as nats-py says it of a publish: the stream has no leader now
    OutboundBufferLimitError,
    ServiceUnavailableError,
)


class _Unknown(Exception):
    """The server did not say whether it stored the commit."""


@dataclass(frozen=True)
class StoredCommit:
    """One message of EVENTS, still encoded."""

    subject: str
    sequence: int
    headers: dict[str, str]
    data: bytes

    @classmethod
    def of(cls, frame: Frame) -> "StoredCommit":
        """Read a direct-get answer or a republished message."""
        headers = frame.headers()
        subject = headers.get("Nats-Subject", frame.subject)
        return cls(subject, int(headers["Nats-Sequence"]), headers, frame.data)

    @property
    def version(self) -> int:
        """Number of the commit within its run."""
        return int(self.headers.get(Header.VERSION, "0"))

    @property
    def retired_at(self) -> float | None:
        """When the run was retired, if this is its tombstone and not a commit."""
        at = self.headers.get(RETIRED)
        return None if at is None else float(at)


class JetStreamEventStore(EventStore):
    """Optimistic concurrency by the subject's last sequence; unknown outcomes are re-read."""

    def __init__(self, nc: Nats, keys: KeyRing) -> None:
        self._nc = nc
        self._js = nc.jetstream(timeout=APPEND_TIMEOUT_S)
        self._keys = keys
        self._commits: GroupCommit | None = None

    @override
    async def append(self, append: Append) -> Head:
        """Append one commit."""
        mapper = CommitMapper(await self._keys.cipher(append.key.tenant))
        commit = Commit(
            originator_id=f"{append.key.tenant}.{append.key.run_id}",
            originator_version=append.head.version + 1,
            commit_id=append.commit_id,
            events=tuple(append.events),
        )
        body = mapper.to_stored_event(commit).state
        subject = event(append.key)
        headers = commit_headers(append, commit.originator_version)
        try:
            sequence = await self._publish(subject, body, headers)
        except VersionConflict:
            return await self._reread(append, subject)
        except _Unknown:
            return await self._settle(append, subject, body, headers)
        return Head(sequence, commit.originator_version, hashlib.sha256(body).hexdigest())

    async def _publish(
        self, subject: str, body: bytes, headers: dict[str, str], *, alone: bool = False
    ) -> int:
        if self._commits is None:
            self._commits = GroupCommit(await Express.of(self._nc))
        try:
            return await self._commits.append(subject, headers, body, alone=alone)
        except Refused as error:
            if error.code == WRONG_LAST_SEQUENCE:
                raise VersionConflict("somebody else appended to the run first") from error
            if error.code in STREAM_FULL:
                raise StoreFull("the event log is full; free space or raise its limit") from error
            if error.status == SERVICE_UNAVAILABLE:
                raise _Unknown from error
            raise StoreUnavailable("the event log refused the append", cause=str(error)) from error
        except BUS_ERRORS as error:
            raise _Unknown from error

    async def _settle(
        self, append: Append, subject: str, body: bytes, headers: dict[str, str]
    ) -> Head:
        """Resolve an unknown outcome: the same append again, under the same expectation.

        Whatever became of the first one, at most one of the two can be stored; a conflict is then
        resolved by reading whose commit is the last.
        """
        try:
            sequence = await self._publish(subject, body, headers, alone=True)
        except VersionConflict:
            return await self._reread(append, subject)
        except _Unknown as error:
            raise StoreUnavailable("the event log does not answer") from error
        return Head(sequence, append.head.version + 1, hashlib.sha256(body).hexdigest())

    async def _reread(self, append: Append, subject: str) -> Head:
        """Return the head our own commit made, if it is the last one after all.

        The digest is that of the stored bytes: encrypted twice, the same commit differs.
        """
        try:
            last = await self._js.get_last_msg(EVENTS, subject, direct=False)
        except NotFoundError:
            raise VersionConflict("somebody else appended to the run first") from None
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the event log does not answer") from error
        headers = last.headers or {}
        if RETIRED in headers:
            raise AlreadyExists(f"run id {append.key.run_id} belongs to a run that was retired")
        if headers.get(Header.CE_ID) == append.commit_id and last.seq is not None:
            version = int(headers.get(Header.VERSION, "0"))
            return Head(last.seq, version, hashlib.sha256(last.data or b"").hexdigest())
        raise VersionConflict("somebody else appended to the run first")

    @override
    async def load(self, key: RunKey, after: Head = EMPTY) -> History:
        """Read a run's log."""
        stored = await self.stored(key, after)
        if after.version and not stored and (await self.head(key)).version >= after.version:
            raise StoreUnavailable("a replica of the event log is late; try again")
        return await self.decode(key, stored, after)

    @override
    async def head(self, key: RunKey) -> Head:
        """Return where a run's log ends, as its leader has it."""
        try:
            last = await self._js.get_last_msg(EVENTS, event(key), direct=False)
        except NotFoundError:
            return EMPTY
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the event log does not answer") from error
        headers = last.headers or {}
        if RETIRED in headers:
            raise retired(key, float(headers[RETIRED]))
        version = int(headers.get(Header.VERSION, "0"))
        return Head(last.seq or 0, version, hashlib.sha256(last.data or b"").hexdigest())

    async def stored(self, key: RunKey, after: Head = EMPTY) -> list[StoredCommit]:
        """Return a run's messages as they are kept, from the commit of `after` on.

        Raises:
            StoreUnavailable: The log cannot be reached.
        """
        return await read_subject(self._nc, EVENTS, event(key), start=after.sequence or 1)

    async def decode(self, key: RunKey, stored: list[StoredCommit], after: Head = EMPTY) -> History:
        """Check and decode a run's stored commits, from the one of `after` on."""
        if stored and stored[-1].retired_at is not None:
            raise retired(key, stored[-1].retired_at)
        if after.version:
            check_head(key, after, [(item.sequence, item.data) for item in stored[:1]])
            stored = stored[1:]
        mapper = CommitMapper(await self._keys.cipher(key.tenant))
        head = after
        commits: list[Commit] = []
        for item in stored:
            previous = item.headers.get(Header.PREVIOUS, "")
            head = check_link(key, head, item.sequence, item.version, previous, item.data)
            commits.append(_decode(mapper, key, item))
        return History(tuple(commits), tuple(item.sequence for item in stored), head)

    @override
    async def retire(self, key: RunKey, head: Head, at: float) -> None:
        """Replace a run's log by a tombstone: publish it, then purge what is before it."""
        headers = {
            Header.EXPECTED: str(head.sequence),
            Header.VERSION: str(head.version + 1),
            Header.PREVIOUS: head.digest,
            Header.STATUS: "retired",
            RETIRED: f"{at:.3f}",
        }
        try:
            sequence = await self._bury(event(key), headers)
            await self._js.purge_stream(EVENTS, seq=sequence, subject=event(key))
        except _Unknown as error:
            raise StoreUnavailable("the event log does not answer") from error
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the event log refused the purge", cause=str(error)) from error

    async def _bury(self, subject: str, headers: dict[str, str]) -> int:
        """Return the sequence of the tombstone, a new one or the one that is there."""
        try:
            return await self._publish(subject, b"", headers)
        except StoreFull:
            # A full log must be able to shrink: the last commit alone keeps the id taken.
            await self._js.purge_stream(EVENTS, subject=subject, keep=1)
            return await self._publish(subject, b"", headers)
        except VersionConflict:
            last = await self._js.get_last_msg(EVENTS, subject, direct=False)
            if RETIRED not in (last.headers or {}) or last.seq is None:
                raise
            return last.seq

    async def decoder(self, stored: StoredCommit) -> Callable[[], Commit]:
        """Return what decodes one commit on its own, as a waiter sees it on `live`."""
        key = run_key(stored.subject)
        mapper = CommitMapper(await self._keys.cipher(key.tenant))
        return lambda: _decode(mapper, key, stored)


def _decode(mapper: CommitMapper, key: RunKey, item: StoredCommit) -> Commit:
    stored = StoredEvent(f"{key.tenant}.{key.run_id}", item.version, COMMIT_TOPIC, item.data)
    try:
        commit: Commit = mapper.to_domain_event(stored)
    except MapperDeserialisationError as error:
        raise DataLoss(
            f"commit {item.version} of run {key.run_id} cannot be read; "
            f"it is altered or its key is gone",
            sequence=item.sequence,
        ) from error
    return commit


def commit_headers(append: Append, version: int) -> dict[str, str]:
    """Return the headers a commit is stored under; the run index reads nothing else."""
    wake = append.state.wake_at()
    headers = {
        Header.EXPECTED: str(append.head.sequence),
        Header.CE_SPECVERSION: "1.0",
        Header.CE_ID: append.commit_id,
        Header.CE_TYPE: "clawdbot.commit.v1",
        Header.CE_SOURCE: "clawdbot/orchestrator",
        Header.VERSION: str(version),
        Header.PREVIOUS: append.head.digest,
        Header.STATUS: append.state.status,
        Header.WORKFLOW: append.state.workflow,
    }
    if wake is not None:
        headers[Header.WAKE] = f"{wake:.3f}"
    if append.traceparent:
        headers[Header.TRACEPARENT] = append.traceparent
    return headers


def stored_at(item: StoredCommit) -> float:
    """Return when the server stored a message, seconds since the epoch."""
    return datetime.fromisoformat(item.headers["Nats-Time-Stamp"]).timestamp()


async def read_subject(
    nc: Nats,
    stream: str,
    subject: str,
    *,
    start: int = 1,
    limit: int | None = None,
    timeout_s: float = APPEND_TIMEOUT_S,
) -> list[StoredCommit]:
    """Read the messages of one subject, or of a filter, by batched direct get, in order.

    Args:
        nc: The connection.
        stream: The stream; it allows direct gets.
        subject: A subject or a filter with wildcards.
        start: First stream sequence to read.
        limit: Most messages to return; None for all.
        timeout_s: Longest wait for each batch, seconds.

    Raises:
        StoreUnavailable: The stream does not answer, or stops in the middle.

    Source: ADR-31, batched direct get.
    """
    found: list[StoredCommit] = []
    while limit is None or len(found) < limit:
        size = READ_BATCH if limit is None else min(READ_BATCH, limit - len(found))
        query: dict[str, str | int] = {"seq": start, "batch": size, "next_by_subj": subject}
        batch, pending = await _read_batch(nc, stream, query, timeout_s)
        found.extend(batch)
        if not batch or pending == 0:
            break
        start = batch[-1].sequence + 1
    return found


class _DirectGet:
    """One batched direct get; asked again while nothing comes: another copy may answer."""

    def __init__(self, express: Express, stream: str, body: bytes, inbox: str) -> None:
        self.done: asyncio.Future[tuple[list[StoredCommit], int]] = asyncio.Future()
        """The messages, and how many are left after them."""
        self._express = express
        self._subject = f"$JS.API.DIRECT.GET.{stream}"
        self._body = body
        self._inbox = inbox
        self._found: dict[str, list[StoredCommit]] = {}

    def ask(self, turn: int = 0) -> None:
        """Ask, or ask once more."""
        self._found[str(turn)] = []
        self._express.publish(self._subject, self._body, reply=f"{self._inbox}.{turn}")

    def ask_again(self, turn: int) -> None:
        """Ask once more if there is no word yet."""
        if not self.done.done() and not any(self._found.values()):
            with contextlib.suppress(NatsError):  # what was asked before still counts
                self.ask(turn)

    def take(self, frame: Frame) -> None:
        """Take a message, or the status behind the last one."""
        if self.done.done():
            return
        found = self._found[frame.subject.rpartition(".")[2]]
        if not frame.head.startswith(STATUS):
            found.append(StoredCommit.of(frame))
            return
        headers = frame.headers()
        match headers["Status"]:
            case "404":
                self.done.set_result((found, 0))
            case "204":
                self.done.set_result((found, int(headers.get("Nats-Num-Pending", "0"))))
            case status:
                error = StoreUnavailable("the event log does not answer", status=status)
                self.done.set_exception(error)


async def _read_batch(
    nc: Nats, stream: str, query: dict[str, str | int], timeout_s: float
) -> tuple[list[StoredCommit], int]:
    """Return the messages of one batched direct get, and how many are left after them."""
    express, inbox, loop = await Express.of(nc), nc.new_inbox(), asyncio.get_running_loop()
    get = _DirectGet(express, stream, orjson.dumps(query), inbox)
    subscription = await express.subscribe(f"{inbox}.*", get.take)
    turns = range(1, DIRECT_ASKED_MAX)
    again = [loop.call_later(AGAIN_S * turn * turn, get.ask_again, turn) for turn in turns]
    try:
        get.ask()
        async with asyncio.timeout(timeout_s):
            return await get.done
    except (TimeoutError, *BUS_ERRORS) as error:
        raise StoreUnavailable("the event log does not answer") from error
    finally:
        for timer in again:
            timer.cancel()
        await express.unsubscribe(subscription)

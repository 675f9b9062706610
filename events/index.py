"""The run index: one SQLite row a run, rebuilt from the headers of EVENTS at any time.

It is a projection: losing the file costs one scan of headers. It never decides anything alone;
whoever acts on a row reads the run's log first.
"""

import asyncio
import contextlib
import heapq
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson
from nats.aio.client import Client as Nats
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from events.express import Express, Frame, delivered
from events.statistics import digest_of
from events.store import RETIRED
from events.streams import EVENTS
from events.subjects import RunKey, run_key
from schemas.messages import Header


BATCH = 256
NOTED_MAX = 1000
"""Commits that are noted before they are written."""
FLUSH_S = 0.02
"""What is committed within this time is written in one transaction."""
IDLE_S = 1.0
REST_S = 0.1
"""How often an index that rests writes what was noted, and looks whether it is all."""
RETRY_S = 0.5
INACTIVE_S = 60.0
_BEYOND = "\U0010ffff"
"""Sorts after every tenant."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    tenant TEXT, run_id TEXT, workflow TEXT, status TEXT, commits INTEGER,
    started_at REAL, updated_at REAL, wake REAL, first INTEGER, sequence INTEGER,
    PRIMARY KEY (tenant, run_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS runs_open ON runs (status, wake);
CREATE INDEX IF NOT EXISTS runs_newest ON runs (tenant, first);
CREATE TABLE IF NOT EXISTS checkpoint (one INTEGER PRIMARY KEY, created TEXT, sequence INTEGER);
"""
_UPSERT = """
INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET workflow=excluded.workflow, status=excluded.status,
    commits=excluded.commits, updated_at=excluded.updated_at, wake=excluded.wake,
    sequence=excluded.sequence
WHERE excluded.sequence >= runs.sequence
"""
_FIRST = """
UPDATE runs SET started_at=?3, first=?4 WHERE tenant=?1 AND run_id=?2 AND first >= ?4
"""
"""A run's first commit says when it began, even if later ones came first."""


class Recordable(Protocol):
    """A commit as far as the index looks at it."""

    @property
    def key(self) -> RunKey:
        """Its run."""

    @property
    def sequence(self) -> int:
        """Its place in EVENTS."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Its headers."""

    @property
    def at(self) -> float:
        """When it was stored, seconds since the epoch."""


@dataclass(frozen=True)
class RunRow:
    """One run as the index has it; times are seconds since the epoch."""

    tenant: str
    run_id: str
    workflow: str
    status: str
    commits: int
    started_at: float
    updated_at: float
    cursor: str
    """Where the next page begins."""


class RunIndex:
    """Keeps the index up to date and answers from it.

    Args:
        path: The SQLite file, or `:memory:`.
    """

    def __init__(self, path: str | Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {_SCHEMA}")
        self._noted: list[tuple[RunKey, int, Mapping[str, str], float]] = []
        self._versions: dict[RunKey, int] = {}
        """Of the runs that were noted and are not written yet."""
        self.position = self.checkpoint()[1]
        """The highest sequence of EVENTS that was ever recorded."""
        self._done = self.position
        """Everything in EVENTS up to here was noted or read."""
        self._ahead: list[int] = []
        """What was noted beyond that, a heap."""

    def close(self) -> None:
        """Close the file."""
        self._write_noted()
        self._db.close()

    async def follow(
        self, nc: Nats, *, ready: asyncio.Event | None = None, noting: bool = False
    ) -> None:
        """Follow EVENTS for ever.

        Args:
            nc: The connection.
            ready: Set once caught up with what was there at first.
            noting: Whether most commits are noted here anyway: then the log is read only while
                it has others.
        """
        while True:
            try:
                await self._read(nc, ready, noting=noting)
                await self._rest(nc)
            except (NatsError, TimeoutError):
                await asyncio.sleep(RETRY_S)  # the server is away; begin again at the checkpoint

    def note(self, key: RunKey, sequence: int, headers: Mapping[str, str], at: float) -> None:
        """Record one commit as `apply` does, but write it together with others.

        That is with the next batch of the log, or before the next question.
        """
        self.position = max(self.position, sequence)
        if sequence == self._done + 1:
            self._know(sequence)
        elif sequence > self._done:
            heapq.heappush(self._ahead, sequence)
        self._noted.append((key, sequence, headers, at))
        self._versions[key] = int(headers.get(Header.VERSION, "0"))
        if len(self._noted) >= NOTED_MAX:
            self._write_noted()

    def apply(self, key: RunKey, sequence: int, headers: Mapping[str, str], at: float) -> None:
        """Record one commit; an older one than the row's is ignored.

        Args:
            key: The run.
            sequence: Of the commit, in EVENTS.
            headers: Of the commit.
            at: When it was stored, seconds since the epoch.
        """
        self.position = max(self.position, sequence)
        if RETIRED in headers:
            self._db.execute(
                "DELETE FROM runs WHERE tenant=? AND run_id=?", (key.tenant, key.run_id)
            )
            return
        wake = headers.get(Header.WAKE)
        row = (
            key.tenant,
            key.run_id,
            headers.get(Header.WORKFLOW, ""),
            headers.get(Header.STATUS, ""),
            int(headers.get(Header.VERSION, "0")),
            at,
            at,
            None if wake is None else float(wake),
            sequence,
            sequence,
        )
        self._db.execute(_UPSERT, row)
        if row[4] == 1:
            self._db.execute(_FIRST, (key.tenant, key.run_id, at, sequence))

    def unfinished(self) -> list[RunKey]:
        """Return runs that are not over, those that moved last first."""
        query = "SELECT tenant, run_id FROM runs WHERE status='running' ORDER BY sequence DESC"
        return [RunKey(*row) for row in self._ask(query)]

    def due(self, now: float, limit: int = 1000) -> list[RunKey]:
        """Return runs whose wake time has come, the longest waiting first."""
        query = (
            "SELECT tenant, run_id FROM runs WHERE status='running' AND wake <= ? "
            "ORDER BY wake LIMIT ?"
        )
        return [RunKey(*row) for row in self._ask(query, (now, limit))]

    def commits(self, key: RunKey) -> int:
        """Return how many commits of a run were seen; 0 when it is unknown or was retired."""
        noted = self._versions.get(key)
        if noted is not None:
            return noted
        query = "SELECT commits FROM runs WHERE tenant=? AND run_id=?"
        row = self._db.execute(query, (key.tenant, key.run_id)).fetchone()
        return 0 if row is None else int(row[0])

    def backwards(self, before: RunKey | None, limit: int) -> list[RunKey]:
        """Return runs in falling order of tenant and id, so the newest first where ids rise."""
        query = (
            "SELECT tenant, run_id FROM runs WHERE (tenant, run_id) < (?, ?) "
            "ORDER BY tenant DESC, run_id DESC LIMIT ?"
        )
        start = (_BEYOND, "") if before is None else (before.tenant, before.run_id)
        return [RunKey(*row) for row in self._ask(query, (*start, limit))]

    def checkpoint(self) -> tuple[str, int]:
        """Return when the stream was created and which sequence was recorded last."""
        row = self._db.execute("SELECT created, sequence FROM checkpoint").fetchone()
        return ("", 0) if row is None else (str(row[0]), int(row[1]))

    def reset(self) -> None:
        """Forget everything, before `follow` reads it again from the log."""
        self._forget()
        self._db.executescript("DELETE FROM runs; DELETE FROM checkpoint;")
        self.position = 0

    def digest(self) -> str:
        """Return SHA-256 over all rows in order; the same log gives the same."""
        self._write_noted()
        return digest_of(self._db, "runs")

    def record(self, batch: "Iterable[Recordable]") -> None:
        """Record commits in the order of the log, in one transaction.

        Of a run's commits only the first and the last leave a trace, so only they are written.
        """
        found = list(batch)
        last = {item.key: item.sequence for item in found}
        with self.transaction():
            for item in found:
                if item.headers.get(Header.VERSION) == "1" or last[item.key] == item.sequence:
                    self.apply(item.key, item.sequence, item.headers, item.at)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all that is applied within it, and all that was noted before, at once."""
        noted, self._noted = self._noted, []
        self._versions.clear()
        self._db.execute("BEGIN")
        try:
            for item in noted:
                self.apply(*item)
            yield
            self._db.execute("UPDATE checkpoint SET sequence=?", (self._done,))
        finally:
            self._db.execute("COMMIT")

    def _write_noted(self) -> None:
        if self._noted:
            with self.transaction():
                pass

    def _ask(self, query: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        self._write_noted()
        return self._db.execute(query, values)

    def runs(
        self,
        tenant: str,
        *,
        workflow: str | None = None,
        status: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> list[RunRow]:
        """Return a tenant's runs, newest first; `before` is the cursor of the last row seen."""
        query = (
            "SELECT tenant, run_id, workflow, status, commits, started_at, updated_at, "
            "CAST(first AS TEXT) FROM runs WHERE tenant=?1 AND (?2 IS NULL OR workflow=?2) "
            "AND (?3 IS NULL OR status=?3) AND (?4 IS NULL OR first<?4) "
            "ORDER BY first DESC LIMIT ?5"
        )
        start = int(before) if before else None
        rows = self._ask(query, (tenant, workflow, status, start, limit))
        return [RunRow(*row) for row in rows]

    def _know(self, sequence: int) -> None:
        """Take note that everything is known up to a sequence, and what was noted behind it."""
        self._done = sequence
        while self._ahead and self._ahead[0] <= self._done + 1:
            self._done = max(self._done, heapq.heappop(self._ahead))

    def _forget(self) -> None:
        self._noted.clear()
        self._versions.clear()
        self._ahead.clear()
        self._done = 0

    def _resume(self, created: str, last: int, before: int) -> int:
        """Return where to read on: at 1 if the stream is another one or ends before `before`."""
        if self.checkpoint()[0] == created and before <= last:
            return self._done + 1
        self._forget()
        self._db.execute("DELETE FROM runs")
        self._db.execute("INSERT OR REPLACE INTO checkpoint VALUES (1, ?, 0)", (created,))
        return 1

    async def _read(self, nc: Nats, ready: asyncio.Event | None, *, noting: bool) -> None:
        """Read on from where everything is known; with `noting` until nothing is new."""
        js, before = nc.jetstream(), self._done
        info = await js.stream_info(EVENTS)
        start = self._resume(str(info.created), info.state.last_seq, before)
        if ready is not None and info.state.last_seq < start:
            ready.set()
        config = ConsumerConfig(
            ack_policy=AckPolicy.NONE,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=start,
            headers_only=True,
            inactive_threshold=INACTIVE_S,
            mem_storage=True,
        )
        consumer = (await js.add_consumer(EVENTS, config)).name
        queue: asyncio.Queue[Frame] = asyncio.Queue()
        express = await Express.of(nc)
        subscription = await express.subscribe(nc.new_inbox(), queue.put_nowait)
        ask = f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS}.{consumer}"
        request = orjson.dumps({"batch": BATCH, "expires": int(IDLE_S * 1e9)})
        try:
            news = True
            while news or not noting:
                express.publish(ask, request, reply=subscription.subject)
                news = await self._take_batch(queue)
                if ready is not None and self._done >= info.state.last_seq:
                    ready.set()
            await js.delete_consumer(EVENTS, consumer)
        finally:
            with contextlib.suppress(NatsError):
                await express.unsubscribe(subscription)

    async def _rest(self, nc: Nats) -> None:
        """Write what is noted while that is all there is."""
        quiet_s = 0.0
        while quiet_s < IDLE_S:
            known = self._done
            await asyncio.sleep(REST_S)
            self._write_noted()
            if known != self._done:
                quiet_s = 0.0
                continue
            if self._ahead:
                return  # what is missing in between is somebody else's
            quiet_s += REST_S
            if quiet_s >= IDLE_S and await self._has_all(nc):
                quiet_s = 0.0

    async def _has_all(self, nc: Nats) -> bool:
        info = await nc.jetstream().stream_info(EVENTS)
        return info.state.last_seq <= self._done and str(info.created) == self.checkpoint()[0]

    async def _take_batch(self, queue: "asyncio.Queue[Frame]") -> bool:
        """Record what one request brings; tell whether there was anything new in it."""
        taken, news, ended = 0, False, False
        while taken < BATCH and not ended:
            async with asyncio.timeout(3 * IDLE_S):
                burst = [await queue.get()]
            await asyncio.sleep(FLUSH_S)  # one transaction for what comes together
            while not queue.empty():
                burst.append(queue.get_nowait())
            with self.transaction():
                for frame in burst:
                    if frame.reply:
                        news = self._take(frame) or news
                        taken += 1
                    else:
                        _check_status(frame)
                        ended = True
        return news

    def _take(self, frame: Frame) -> bool:
        """Record a commit unless it was noted; tell whether it was new."""
        receipt = delivered(frame.reply)
        if receipt.sequence <= self._done:
            return False
        self._know(receipt.sequence)
        self.apply(run_key(frame.subject), receipt.sequence, frame.headers(), receipt.at)
        return True


def _check_status(frame: Frame) -> None:
    """Tell the end of a request from the end of the consumer."""
    status = frame.headers().get("Status")
    if status not in {"404", "408"}:
        raise NatsError(f"the index's consumer ended with status {status}")

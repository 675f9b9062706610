"""Projections out of the log: caught up when somebody asks, and built anew to be compared."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Literal

import orjson
from eventsourcing.persistence import MapperDeserialisationError
from nats.aio.client import Client as Nats
from nats.js.errors import APIError

from events.codec import CommitMapper, RawEvent
from events.express import Express, Frame
from events.index import RunIndex
from events.jetstream import APPEND_TIMEOUT_S, BUS_ERRORS
from events.keys import KeyRing
from events.statistics import Statistics
from events.store import RETIRED
from events.streams import EVENTS
from events.subjects import RunKey, every, run_key
from schemas.errors import DataLoss, NotFound, StoreUnavailable
from schemas.messages import Header


BATCH = 512
"""Commits that are read, and recorded in one transaction, at a time."""
ROUNDS_MAX = 500
"""Times that a projection built anew runs after one that goes on, before they are compared."""
PAUSE_S = 0.02


@dataclass(frozen=True)
class Stored:
    """One commit, or tombstone, as the log has it."""

    key: RunKey
    sequence: int
    at: float
    """When it was stored, seconds since the epoch."""
    headers: dict[str, str]
    data: bytes


@dataclass(frozen=True)
class Verdict:
    """A projection that was built anew beside the one that is kept."""

    name: Literal["runs", "nodes"]
    sequence: int
    """Up to which commit of the log both were."""
    kept: str
    """SHA-256 of its rows."""
    rebuilt: str
    events: int
    seconds: float

    @property
    def same(self) -> bool:
        """Whether they are equal to the bit."""
        return self.kept == self.rebuilt


async def log_end(nc: Nats) -> tuple[str, int]:
    """Return when the log was created, and its last sequence.

    Raises:
        StoreUnavailable: It does not answer.
    """
    try:
        info = await nc.jetstream().stream_info(EVENTS)
    except (APIError, *BUS_ERRORS) as error:
        raise StoreUnavailable("the event log does not answer") from error
    return str(info.created), info.state.last_seq


async def scan(nc: Nats, start: int, last: int) -> AsyncGenerator[list[Stored], None]:
    """Yield the whole log in order, a batch at a time.

    Args:
        nc: The connection.
        start: First sequence.
        last: Last sequence.

    Raises:
        StoreUnavailable: The log stops answering.

    Source: ADR-31, batched direct get.
    """
    express = await Express.of(nc)
    while start <= last:
        batch = await _batch(nc, express, start)
        found = [_stored(frame) for frame in batch]
        found = [item for item in found if item.sequence <= last]
        if not found:
            return
        yield found
        start = found[-1].sequence + 1


async def _batch(nc: Nats, express: Express, start: int) -> list[Frame]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    frames: list[Frame] = []

    def on_frame(frame: Frame) -> None:
        if frame.head.startswith(b"NATS/1.0\r\n"):
            frames.append(frame)
        elif not done.done():
            status = frame.head[9:12]
            if status in {b"204", b"404"}:
                done.set_result(None)
            else:
                done.set_exception(StoreUnavailable("the event log does not answer"))

    subscription = await express.subscribe(inbox := nc.new_inbox(), on_frame)
    query = {"seq": start, "batch": BATCH, "next_by_subj": every("event", "*.*")}
    try:
        express.publish(f"$JS.API.DIRECT.GET.{EVENTS}", orjson.dumps(query), reply=inbox)
        async with asyncio.timeout(APPEND_TIMEOUT_S):
            await done
    except (TimeoutError, *BUS_ERRORS) as error:
        raise StoreUnavailable("the event log does not answer") from error
    finally:
        await express.unsubscribe(subscription)
    return frames


def _stored(frame: Frame) -> Stored:
    headers = frame.headers()
    stamp = headers["Nats-Time-Stamp"]
    return Stored(
        run_key(headers["Nats-Subject"]),
        int(headers["Nats-Sequence"]),
        (_seconds(stamp[:19]) * 10**9 + int(stamp[20:-1].ljust(9, "0"))) / 1e9,
        headers,
        frame.data,
    )


@lru_cache(maxsize=1024)
def _seconds(stamp: str) -> int:
    return round(datetime.fromisoformat(f"{stamp}+00:00").timestamp())


class Projector:
    """Reads the log into the statistics of nodes.

    Args:
        nc: The connection.
        keys: Ciphers of the tenants.
        statistics: What is kept.
    """

    def __init__(self, nc: Nats, keys: KeyRing, statistics: Statistics) -> None:
        self._nc = nc
        self._keys = keys
        self.statistics = statistics
        self.lock = asyncio.Lock()
        self.unreadable = 0
        """Commits that could not be read so far."""
        self._mappers: dict[str, CommitMapper] = {}

    async def catch_up(self) -> None:
        """Record what was committed since it was asked last.

        Raises:
            StoreUnavailable: The log does not answer.
        """
        async with self.lock:
            created, last = await log_end(self._nc)
            self.statistics.begin(created, last)
            async for batch in scan(self._nc, self.statistics.position + 1, last):
                await self.record(self.statistics, batch)

    async def verify(self, index: RunIndex) -> tuple[Verdict, Verdict]:
        """Build the run index and the statistics anew, and compare them with those kept.

        Args:
            index: One that follows the log and nothing else.

        Raises:
            StoreUnavailable: The log does not answer, or grows faster than it is read.
        """
        await self.catch_up()
        async with self.lock:
            fresh, runs = Statistics(":memory:"), RunIndex(":memory:")
            try:
                return await self._verify(index, fresh, runs)
            finally:
                fresh.close()
                runs.close()

    async def record(self, into: Statistics, batch: Sequence[Stored]) -> int:
        """Record commits; return how many events they hold.

        What cannot be read, altered or without its key, is passed over: its run is refused
        elsewhere.
        """
        rows: list[tuple[RunKey, int, str, list[RawEvent] | None]] = []
        for item in batch:
            events = None if RETIRED in item.headers else await self._events(item)
            rows.append((item.key, item.sequence, item.headers.get(Header.WORKFLOW, ""), events))
        into.apply(rows)
        return sum(len(events or ()) for *_, events in rows)

    async def _verify(
        self, index: RunIndex, fresh: Statistics, runs: RunIndex
    ) -> tuple[Verdict, Verdict]:
        kept = self.statistics
        fresh.begin(*await log_end(self._nc))
        begun, events = time.perf_counter(), 0
        for _ in range(ROUNDS_MAX):
            target = max(index.position, kept.position)
            async for batch in scan(self._nc, runs.position + 1, target):
                events += await self.record(fresh, batch)
                runs.record(batch)
            async for batch in scan(self._nc, kept.position + 1, target):
                await self.record(kept, batch)
            if index.position == runs.position == kept.position:
                spent = time.perf_counter() - begun
                return (
                    Verdict("runs", target, index.digest(), runs.digest(), events, spent),
                    Verdict("nodes", target, kept.digest(), fresh.digest(), events, spent),
                )
            await asyncio.sleep(PAUSE_S)
        raise StoreUnavailable("the log grows faster than it is read; try again")

    async def _events(self, item: Stored) -> list[RawEvent]:
        tenant = item.key.tenant
        try:
            if tenant not in self._mappers:
                self._mappers[tenant] = CommitMapper(await self._keys.cipher(tenant))
            return self._mappers[tenant].raw_events(item.data)
        except (MapperDeserialisationError, NotFound, DataLoss):
            self.unreadable += 1
            return []

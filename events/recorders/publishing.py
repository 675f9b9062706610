"""Writes of the recorders: one message, or one atomic batch; an unknown outcome is looked up."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from eventsourcing.persistence import IntegrityError, OperationalError
from nats.aio.client import Client as Nats
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout

from events.jetstream import WRONG_LAST_SEQUENCE
from events.recorders.reading import read_last
from schemas.ids import new_id
from schemas.messages import Header


BATCH_MAX = 1000
"""Messages in one atomic batch, the server's limit. Source: ADR-50."""
ACK_TIMEOUT_S = 10.0
INSERT_ID = "Clawdbot-Insert-Id"
_BATCH_CONFLICT = 10201


@dataclass(frozen=True)
class Record:
    """One message to store, if its subject is still at the expected sequence."""

    subject: str
    data: bytes
    headers: dict[str, str]
    expected: int = 0
    """Sequence of the subject's last message; 0 for an unused subject."""

    def all_headers(self) -> dict[str, str]:
        """Return the headers with the expectation."""
        return {**self.headers, Header.EXPECTED: str(self.expected)}


async def insert(
    nc: Nats, stream: str, records: Sequence[Record], flights: asyncio.Semaphore
) -> int:
    """Store records, all or none, and return the sequence of the last one.

    Args:
        nc: The connection.
        stream: The stream that binds the records' subjects.
        records: 1 to BATCH_MAX records, each on a subject of its own.
        flights: Bounds the batches in flight.

    Raises:
        IntegrityError: A subject is not at its expected sequence.
        OperationalError: The stream is away, full or refuses.
    """
    for _ in range(2):
        try:
            answer = await _send(nc, records, flights)
        except NatsTimeout:
            found = await _own(nc, stream, records)
            if found is not None:
                return found
            continue  # the same again under the same expectations: at most one can be stored
        error = answer.get("error")
        if error is None:
            return int(answer["seq"])
        if error.get("err_code") in {WRONG_LAST_SEQUENCE, _BATCH_CONFLICT}:
            found = await _own(nc, stream, records)
            if found is not None:
                return found
            raise IntegrityError("a version of an originator is used already")
        raise OperationalError(f"the stream refused: {error.get('description')}")
    raise OperationalError("the stream does not answer")


async def _send(nc: Nats, records: Sequence[Record], flights: asyncio.Semaphore) -> dict[str, Any]:
    try:
        if len(records) == 1:
            return await _request(nc, records[0], {})
        async with flights:
            return await _batch(nc, records)
    except NoRespondersError as error:
        raise OperationalError("there is no such stream") from error


async def _batch(nc: Nats, records: Sequence[Record]) -> dict[str, Any]:
    batch = {"Nats-Batch-Id": new_id()}
    for number, item in enumerate(records[:-1], 1):
        headers = {**item.all_headers(), **batch, "Nats-Batch-Sequence": str(number)}
        await nc.publish(item.subject, item.data, headers=headers)
    last = {**batch, "Nats-Batch-Sequence": str(len(records)), "Nats-Batch-Commit": "1"}
    return await _request(nc, records[-1], last)


async def _request(nc: Nats, item: Record, more: dict[str, str]) -> dict[str, Any]:
    answer = await nc.request(
        item.subject, item.data, headers={**item.all_headers(), **more}, timeout=ACK_TIMEOUT_S
    )
    document: dict[str, Any] = orjson.loads(answer.data)
    return document


async def _own(nc: Nats, stream: str, records: Sequence[Record]) -> int | None:
    """Return the sequence of the last record, if what is stored there is this very insert."""
    last = await read_last(nc, stream, records[-1].subject)
    if last is None or last.headers.get(INSERT_ID) != records[-1].headers[INSERT_ID]:
        return None
    return last.sequence

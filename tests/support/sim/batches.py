"""Atomic batches. Source: ADR-50."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.support.sim.streams import NotStored, Stream


if TYPE_CHECKING:
    from tests.support.sim.jetstream import JetStream

ABANDONED_S = 10.0


@dataclass
class Batch:
    """What arrived of one batch: subject, headers, head and body of each message."""

    stream: Stream
    begun_at: float
    items: list[tuple[str, dict[str, str], bytes, bytes]] = field(default_factory=list)
    broken: bool = False


class Batches:
    """Batches that are not committed yet."""

    def __init__(self, jetstream: JetStream) -> None:
        self._jetstream = jetstream
        self._open: dict[str, Batch] = {}

    def clear(self) -> None:
        """Forget all of them."""
        self._open.clear()

    def take(
        self, stream: Stream, subject: str, headers: dict[str, str], head: bytes, data: bytes
    ) -> dict[str, Any] | None:
        """Take one message of a batch; return the ack of the one that commits it.

        Raises:
            NotStored: The batch is refused as a whole.
        """
        if not stream.config.get("allow_atomic"):
            raise NotStored(400, 10174, "atomic publish is disabled")
        name, number = headers["Nats-Batch-Id"], int(headers["Nats-Batch-Sequence"])
        now = self._jetstream.now()
        batch = self._open.get(name)
        if batch is not None and now - batch.begun_at > ABANDONED_S:
            batch = None
        if batch is None:
            if number != 1:
                raise NotStored(400, 10176, "atomic publish batch is incomplete")
            batch = self._open[name] = Batch(stream, now)
        if number != len(batch.items) + 1:
            self._open.pop(name, None)
            raise NotStored(400, 10176, "atomic publish batch is incomplete")
        batch.items.append((subject, headers, head, data))
        if headers.get("Nats-Batch-Commit") != "1":
            return None
        del self._open[name]
        return self._commit(name, batch)

    def _commit(self, name: str, batch: Batch) -> dict[str, Any]:
        stream = batch.stream
        for subject, headers, head, data in batch.items:
            stream.check(subject, headers, len(head) + len(data))
        seq = 0
        for subject, _, head, data in batch.items:
            seq = self._jetstream.append(stream, subject, head, data).seq
        return {"stream": stream.name, "seq": seq, "batch": name, "count": len(batch.items)}

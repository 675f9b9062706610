"""Streams in memory: store, find, remove; and what a publish must fulfil to be stored."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.support.sim.subjects import fits, is_literal, read_head


class NotStored(Exception):
    """The stream refuses a message."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(description)
        self.error = {"code": code, "err_code": err_code, "description": description}


@dataclass(frozen=True)
class Message:
    """One stored message."""

    seq: int
    subject: str
    head: bytes
    data: bytes
    at_ns: int
    """When it was stored, nanoseconds since the epoch."""
    headers: dict[str, str]
    expires_at: float | None = None

    @property
    def size(self) -> int:
        """Bytes that count against limits."""
        return len(self.subject) + len(self.head) + len(self.data) + (26 if self.head else 22)


@dataclass
class Stream:
    """One stream."""

    config: dict[str, Any]
    created: str
    messages: dict[int, Message] = field(default_factory=dict)
    by_subject: dict[str, list[int]] = field(default_factory=dict)
    last_seq: int = 0
    first_seq: int = 0
    bytes_kept: int = 0
    ids: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Sequence and time by `Nats-Msg-Id`."""

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.config["name"])

    def takes(self, subject: str) -> bool:
        """Tell whether a subject is one of the stream's."""
        return any(fits(pattern, subject) for pattern in self.config["subjects"])

    # ------------------------------------------------------------ finding

    def last_of(self, subject: str) -> Message | None:
        """Return the newest message of a subject or a filter."""
        if is_literal(subject):
            sequences = self.by_subject.get(subject)
            return self.messages[sequences[-1]] if sequences else None
        found = [seqs[-1] for name, seqs in self.by_subject.items() if fits(subject, name)]
        return self.messages[max(found)] if found else None

    def following(self, start: int, subject: str = ">") -> Iterator[Message]:
        """Yield the messages of a filter from a sequence on."""
        if is_literal(subject):
            sequences = self.by_subject.get(subject, [])
            for seq in sequences[bisect_left(sequences, start) :]:
                yield self.messages[seq]
            return
        for seq in range(max(start, self.first_seq), self.last_seq + 1):
            message = self.messages.get(seq)
            if message is not None and (subject == ">" or fits(subject, message.subject)):
                yield message

    def count(self, start: int, subject: str = ">") -> int:
        """Return how many messages of a filter there are from a sequence on."""
        return sum(1 for _ in self.following(start, subject))

    # ------------------------------------------------------------ removing

    def remove(self, seq: int) -> None:
        """Remove one message."""
        message = self.messages.pop(seq, None)
        if message is None:
            return
        self.bytes_kept -= message.size
        sequences = self.by_subject[message.subject]
        sequences.remove(seq)
        if not sequences:
            del self.by_subject[message.subject]
        if seq == self.first_seq:
            self._move_first()

    def _move_first(self) -> None:
        while self.first_seq <= self.last_seq and self.first_seq not in self.messages:
            self.first_seq += 1

    def purge(self, subject: str, before: int, keep: int) -> int:
        """Remove the messages of a filter; return how many."""
        chosen = [
            item.seq for item in self.following(1, subject) if not before or item.seq < before
        ]
        chosen = chosen[: max(0, len(chosen) - keep)] if keep else chosen
        for seq in chosen:
            self.remove(seq)
        if subject == ">" and not keep:
            if before > self.last_seq + 1:
                self.last_seq = before - 1  # sequences that were purged are never given out
            if not self.messages:
                self.first_seq = self.last_seq + 1
        return len(chosen)

    def expire(self, now: float) -> None:
        """Remove what is too old."""
        age_s = self.config.get("max_age", 0) / 1e9
        if age_s:
            while (oldest := self.messages.get(self.first_seq)) is not None:
                if oldest.at_ns / 1e9 + age_s > now:
                    break
                self.remove(oldest.seq)
        if self.config.get("allow_msg_ttl"):
            over = [
                item.seq
                for item in self.messages.values()
                if item.expires_at is not None and item.expires_at <= now
            ]
            for seq in over:
                self.remove(seq)

    # ------------------------------------------------------------ storing

    def check(self, subject: str, headers: dict[str, str], size: int) -> None:
        """Refuse what a publish's expectations or the limits forbid.

        Raises:
            NotStored: With the server's own words.
        """
        expected_stream = headers.get("Nats-Expected-Stream")
        if expected_stream is not None and expected_stream != self.name:
            raise NotStored(400, 10060, "expected stream does not match")
        expected = headers.get("Nats-Expected-Last-Subject-Sequence")
        if expected is not None:
            about = headers.get("Nats-Expected-Last-Subject-Sequence-Subject", subject)
            last = self.last_of(about)
            seq = last.seq if last else 0
            if seq != int(expected):
                raise NotStored(400, 10071, f"wrong last sequence: {seq}")
        expected = headers.get("Nats-Expected-Last-Sequence")
        if expected is not None and self.last_seq != int(expected):
            raise NotStored(400, 10071, f"wrong last sequence: {self.last_seq}")
        limit = self.config.get("max_msg_size", -1)
        if limit > 0 and size > limit:
            raise NotStored(400, 10054, "message size exceeds maximum allowed")
        limit = self.config.get("max_bytes", -1)
        full = limit > 0 and self.bytes_kept + len(subject) + size + 26 > limit
        if full and self.config.get("discard") == "new":
            raise NotStored(503, 10077, "maximum bytes exceeded")

    def store(self, subject: str, head: bytes, data: bytes, now: float) -> Message:
        """Store a message that was checked."""
        headers = read_head(head)
        if headers.get("Nats-Rollup") == "sub":
            self.purge(subject, 0, 0)
        elif headers.get("Nats-Rollup") == "all":
            self.purge(">", 0, 0)
        self.last_seq += 1
        ttl = headers.get("Nats-TTL")
        message = Message(
            self.last_seq,
            subject,
            head,
            data,
            round(now * 1e9),
            headers,
            None if ttl is None else now + seconds(ttl),
        )
        if not self.messages:
            self.first_seq = message.seq
        self.messages[message.seq] = message
        self.by_subject.setdefault(subject, []).append(message.seq)
        self.bytes_kept += message.size
        msg_id = headers.get("Nats-Msg-Id")
        if msg_id:
            self.ids[msg_id] = (message.seq, now)
        most = self.config.get("max_msgs_per_subject", -1)
        while most > 0 and len(self.by_subject[subject]) > most:
            self.remove(self.by_subject[subject][0])
        limit = self.config.get("max_bytes", -1)
        while limit > 0 and self.bytes_kept > limit and len(self.messages) > 1:
            self.remove(self.first_seq)
        return message

    def repeated(self, headers: dict[str, str], now: float) -> int | None:
        """Return the sequence of a message that was stored under the same id a while ago."""
        msg_id = headers.get("Nats-Msg-Id")
        known = self.ids.get(msg_id) if msg_id else None
        window_s = self.config.get("duplicate_window", 0) / 1e9
        if known is None or msg_id is None:
            return None
        if now - known[1] > window_s:
            del self.ids[msg_id]
            return None
        return known[0]


def seconds(text: str) -> float:
    """Read a duration as the server takes it: `30s`, `5m`, `1h`, or plain seconds."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    for unit, factor in units.items():
        if text.endswith(unit) and text[: -len(unit)].replace(".", "", 1).isdigit():
            return float(text[: -len(unit)]) * factor
    return float(text)

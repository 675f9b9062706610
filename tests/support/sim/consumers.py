"""Pull consumers in memory: deliver, wait for acks, deliver again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from tests.support.sim.subjects import status, with_lines


if TYPE_CHECKING:
    from tests.support.sim.jetstream import JetStream
    from tests.support.sim.streams import Message, Stream

NS = 1e9


@dataclass(eq=False)
class Request:
    """A pull that waits."""

    reply: str
    left: int
    ends_at: float | None
    heartbeat_s: float
    no_wait: bool
    beat_at: float = 0.0
    served: bool = False
    """Whether it got anything."""


@dataclass
class Pending:
    """A message that was delivered and not acked."""

    deliveries: int
    delivery_seq: int
    due_at: float


@dataclass(eq=False)
class Consumer:
    """One consumer."""

    jetstream: JetStream
    stream: Stream
    name: str
    config: dict[str, Any]
    created: str
    next_seq: int = 1
    delivery_seq: int = 0
    delivered_seq: int = 0
    pending: dict[int, Pending] = field(default_factory=dict)
    again: deque[int] = field(default_factory=deque)
    """What is delivered again as soon as somebody asks."""
    counts: dict[int, int] = field(default_factory=dict)
    """Deliveries of what is delivered again."""
    waiting: deque[Request] = field(default_factory=deque)
    idle_since: float = 0.0
    alive: bool = True
    _timer: Any = None
    _timer_at: float = 0.0

    @property
    def filter(self) -> str:
        """The subjects it delivers."""
        return str(self.config.get("filter_subject") or ">")

    @property
    def acks(self) -> bool:
        """Whether messages must be acked."""
        return str(self.config.get("ack_policy", "explicit")) != "none"

    @property
    def ack_wait_s(self) -> float:
        """How long it waits for an ack."""
        return float(self.config.get("ack_wait") or 30e9) / NS

    # ------------------------------------------------------------ pulls

    def pull(self, reply: str, body: bytes) -> None:
        """Take a request for messages."""
        asked = orjson.loads(body) if body.startswith(b"{") else {"batch": int(body or b"1")}
        now = self.jetstream.now()
        expires_s = asked.get("expires", 0) / NS
        request = Request(
            reply,
            max(1, asked.get("batch", 1)),
            now + expires_s if expires_s else None,
            asked.get("idle_heartbeat", 0) / NS,
            bool(asked.get("no_wait")),
        )
        request.beat_at = now + request.heartbeat_s
        self.idle_since = now
        if request.no_wait and not expires_s and not self._anything():
            self.jetstream.say(reply, status(404, "No Messages"))
            return
        self.waiting.append(request)
        self.serve()

    def _anything(self) -> bool:
        """Tell whether there is something to deliver."""
        return bool(self.again) or bool(self.stream.count(self.next_seq, self.filter))

    def serve(self) -> None:
        """Deliver what can be delivered."""
        while self.waiting and self.alive:
            request = self.waiting[0]
            if not self.jetstream.has_interest(request.reply):
                self.waiting.popleft()
                continue
            message, deliveries = self._next()
            if message is None:
                if not (request.no_wait and request.served) or self._full():
                    break
                self.waiting.popleft()
                self.jetstream.say(request.reply, status(404, "No Messages"))
                continue
            self._deliver(request, message, deliveries)
            request.left -= 1
            request.served = True
            if request.left <= 0:
                self.waiting.remove(request)
        self.schedule()

    def _next(self) -> tuple[Message | None, int]:
        """Return the next message to deliver, and how often it was delivered with this time."""
        while self.again:
            seq = self.again.popleft()
            deliveries = self.counts.pop(seq, 1) + 1
            message = self.stream.messages.get(seq)
            if message is not None:
                return message, deliveries
            self.pending.pop(seq, None)
        if self._full():
            return None, 0
        for message in self.stream.following(self.next_seq, self.filter):
            self.next_seq = message.seq + 1
            return message, 1
        return None, 0

    def _full(self) -> bool:
        """Tell whether so much is not acked that nothing new is delivered."""
        limit = self.config.get("max_ack_pending", 1000) or 1000
        return self.acks and 0 < limit <= len(self.pending)

    def _deliver(self, request: Request, message: Message, deliveries: int) -> None:
        now = self.jetstream.now()
        self.delivery_seq += 1
        self.delivered_seq = max(self.delivered_seq, message.seq)
        if self.acks:
            due_at = now + self.ack_wait_s
            self.pending[message.seq] = Pending(deliveries, self.delivery_seq, due_at)
        left = self.stream.count(self.next_seq, self.filter)
        reply = (
            f"$JS.ACK.{self.stream.name}.{self.name}.{deliveries}.{message.seq}."
            f"{self.delivery_seq}.{message.at_ns}.{left}"
        )
        head, data = message.head, message.data
        if self.config.get("headers_only"):
            head, data = with_lines(head, f"Nats-Msg-Size: {len(data)}"), b""
        request.beat_at = now + request.heartbeat_s
        self.jetstream.hand(self, request.reply, message.subject, reply, head, data)

    # ------------------------------------------------------------ acks

    def acked(self, seq: int, verdict: bytes) -> None:
        """Take an answer to a delivery; it counts whichever delivery it was for."""
        pending = self.pending.get(seq)
        word = verdict[:4].rstrip()
        if word in {b"", b"+ACK", b"+TER"}:
            self.settle(seq)
        elif word == b"-NAK":
            if pending is None:
                return
            options = verdict[4:].strip()
            delay_s = orjson.loads(options).get("delay", 0) / NS if options else 0.0
            if delay_s and seq not in self.again:
                pending.due_at = self.jetstream.now() + delay_s
            else:
                self._redeliver(seq)
        elif word == b"+WPI" and pending is not None and seq not in self.again:
            pending.due_at = self.jetstream.now() + self.ack_wait_s
        self.serve()

    def settle(self, seq: int) -> None:
        """Count a message as done."""
        known = self.pending.pop(seq, None) is not None
        if seq in self.again:
            self.again.remove(seq)
            self.counts.pop(seq, None)
        if known and self.stream.config.get("retention") == "workqueue":
            self.stream.remove(seq)

    def hasten(self, seq: int) -> None:
        """Deliver a message again before its time, as after a server's change of leader."""
        if self.alive and seq in self.pending:
            self._redeliver(seq)
            self.serve()
            self.jetstream.flush()

    def _redeliver(self, seq: int) -> None:
        pending = self.pending[seq]
        pending.due_at = float("inf")
        if seq not in self.again:
            self.counts[seq] = pending.deliveries
            self.again.append(seq)

    # ------------------------------------------------------------ time

    def schedule(self) -> None:
        """See to it that `on_time` is called when something is due."""
        times = [item.due_at for item in self.pending.values()]
        for request in self.waiting:
            if request.ends_at is not None:
                times.append(request.ends_at)
            if request.heartbeat_s:
                times.append(request.beat_at)
        inactive_s = self.config.get("inactive_threshold", 0) / NS
        if inactive_s and not self.waiting:
            times.append(self.idle_since + inactive_s)
        at = min(times, default=float("inf"))
        if self._timer is not None and self._timer_at <= at:
            return  # it looks again then
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at < float("inf"):
            delay_s = max(0.0, at - self.jetstream.now())
            self._timer_at = at
            self._timer = self.jetstream.later(delay_s, self.on_time)

    def on_time(self) -> None:
        """Do what is due: redeliver, end requests, beat."""
        self._timer = None
        if not self.alive:
            return
        now = self.jetstream.now() + 1e-6
        late = [seq for seq, item in self.pending.items() if item.due_at <= now]
        for seq in sorted(late):
            self._redeliver(seq)
        for request in list(self.waiting):
            if not self.jetstream.has_interest(request.reply):
                self.waiting.remove(request)
                self.idle_since = now
            elif request.ends_at is not None and request.ends_at <= now:
                self.waiting.remove(request)
                self.idle_since = now
                self._close(request, 408, "Request Timeout")
            elif request.heartbeat_s and request.beat_at <= now:
                request.beat_at = now + request.heartbeat_s
                self.jetstream.say(
                    request.reply,
                    status(
                        100,
                        "Idle Heartbeat",
                        f"Nats-Last-Consumer: {self.delivery_seq}",
                        f"Nats-Last-Stream: {self.delivered_seq}",
                    ),
                )
        inactive_s = self.config.get("inactive_threshold", 0) / NS
        if inactive_s and not self.waiting and self.idle_since + inactive_s <= now:
            self.jetstream.forget(self)
            return
        self.serve()
        self.jetstream.flush()

    def _close(self, request: Request, code: int, text: str) -> None:
        self.jetstream.say(
            request.reply,
            status(code, text, f"Nats-Pending-Messages: {request.left}", "Nats-Pending-Bytes: 0"),
        )

    def end(self) -> None:
        """Tell those who wait that it is gone."""
        self.alive = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for request in self.waiting:
            self._close(request, 409, "Consumer Deleted")
        self.waiting.clear()

    def info(self) -> dict[str, Any]:
        """Return what `CONSUMER.INFO` says."""
        return {
            "stream_name": self.stream.name,
            "name": self.name,
            "created": self.created,
            "config": self.config,
            "delivered": {"consumer_seq": self.delivery_seq, "stream_seq": self.delivered_seq},
            "ack_floor": {"consumer_seq": 0, "stream_seq": 0},
            "num_ack_pending": len(self.pending),
            "num_redelivered": sum(item.deliveries > 1 for item in self.pending.values()),
            "num_waiting": len(self.waiting),
            "num_pending": self.stream.count(self.next_seq, self.filter),
        }

"""Scheduled messages: `@every` and `@at`; the services hand crontabs through. Source: ADR-51."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from tests.support.sim.streams import Message, NotStored, Stream, seconds
from tests.support.sim.subjects import with_lines, without


if TYPE_CHECKING:
    from tests.support.sim.jetstream import JetStream


class Schedules:
    """Fires schedules."""

    def __init__(self, jetstream: JetStream) -> None:
        self._jetstream = jetstream

    def check(self, stream: Stream, headers: dict[str, str]) -> None:
        """Refuse what cannot fire.

        Raises:
            NotStored: Schedules are off, or the server would not understand it.
        """
        if not stream.config.get("allow_msg_schedules"):
            raise NotStored(400, 10188, "message schedules is disabled")
        if self._delay_s(headers["Nats-Schedule"]) is None:
            raise NotStored(400, 10189, "message schedules pattern is invalid")
        if not stream.takes(headers.get("Nats-Schedule-Target", "")):
            raise NotStored(400, 10190, "message schedules target is invalid")

    def arm(self, stream: Stream, message: Message) -> None:
        """Fire a schedule when it is due, unless it is replaced or removed until then."""
        delay_s = self._delay_s(message.headers["Nats-Schedule"])
        assert delay_s is not None, "it was checked"
        self._jetstream.later(delay_s, self._fire, stream, message)

    def _fire(self, stream: Stream, message: Message) -> None:
        known = self._jetstream.streams.get(stream.name)
        if known is not stream or stream.messages.get(message.seq) is not message:
            return
        headers = message.headers
        ttl = headers.get("Nats-Schedule-TTL")
        lines = [f"Nats-Scheduler: {message.subject}"]
        lines += [f"Nats-TTL: {ttl}"] if ttl else []
        head = with_lines(without(message.head, "Nats-Schedule"), *lines)
        if headers["Nats-Schedule"].startswith("@at"):
            stream.remove(message.seq)
        else:
            self.arm(stream, message)
        self._jetstream.append(stream, headers["Nats-Schedule-Target"], head, message.data)
        self._jetstream.flush()

    def _delay_s(self, schedule: str) -> float | None:
        kind, _, rest = schedule.partition(" ")
        try:
            if kind == "@every":
                return seconds(rest)
            if kind == "@at":
                at = datetime.fromisoformat(rest).timestamp()
                return max(0.0, at - self._jetstream.now())
        except ValueError:
            return None
        return None

"""A nats-server in memory: the core protocol, byte for byte; `jetstream` stands on it.

It implements what the services use, as nats-server 2.15 answers it; `tests/conformance/
test_fake_broker.py` plays the same random operations to both and compares every answer.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from tests.support.sim.faults import Faults
from tests.support.sim.jetstream import JetStream
from tests.support.sim.network import Link
from tests.support.sim.subjects import fits, is_literal, stem


VERSION = "2.15.1"
PAYLOAD_BYTES_MAX = 8 * 1024 * 1024
NO_RESPONDERS = b"NATS/1.0 503\r\n\r\n"


class Timers(Protocol):
    """What the server needs of a loop."""

    def time(self) -> float:
        """Return seconds."""

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Any:
        """Call something later; the answer has `cancel`."""


@dataclass(eq=False)
class Subscription:
    """Of one connection."""

    client: "Client"
    sid: bytes
    subject: str
    queue: str = ""
    left: int | None = None
    """Messages until it ends by itself."""


@dataclass(eq=False)
class Client:
    """One connection as the server has it."""

    link: Link
    held: bytearray = field(default_factory=bytearray)
    subscriptions: dict[bytes, Subscription] = field(default_factory=dict)
    out: list[bytes] = field(default_factory=list)


class Server:
    """The server.

    Args:
        timers: Its time.
        epoch: Seconds since the epoch when the timers' time is 0.
        chance: Which member of a queue group gets a message.
        faults: What goes wrong at the boundary; nothing by default.
    """

    def __init__(
        self, timers: Timers, epoch: float, chance: random.Random, faults: Faults | None = None
    ) -> None:
        self.timers = timers
        self.epoch = epoch
        self.faults = faults or Faults()
        self._chance = chance
        self._clients: dict[Link, Client] = {}
        self._literal: dict[str, list[Subscription]] = {}
        self._wild: dict[str, list[Subscription]] = {}
        """Subscriptions with wildcards, by what stands before the first."""
        self._touched: list[Client] = []
        self.jetstream = JetStream(self)

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self.epoch + self.timers.time()

    # ------------------------------------------------------------ connections

    def opened(self, link: Link) -> None:
        """Greet."""
        self._clients[link] = Client(link)
        info = {
            "server_id": "SIM",
            "server_name": "sim",
            "version": VERSION,
            "proto": 1,
            "headers": True,
            "max_payload": PAYLOAD_BYTES_MAX,
            "jetstream": True,
            "client_id": len(self._clients),
            "client_ip": "127.0.0.1",
        }
        link.send(b"INFO " + orjson.dumps(info) + b"\r\n")

    def closed(self, link: Link) -> None:
        """Forget a connection."""
        client = self._clients.pop(link, None)
        if client is not None:
            for subscription in list(client.subscriptions.values()):
                self._unsubscribe(subscription)

    def restart(self) -> None:
        """Go down and come back: what was in memory is gone, and so is every connection."""
        for link in list(self._clients):
            link.cut()
        self.jetstream.restart()

    def received(self, link: Link, data: bytes) -> None:
        """Take bytes of a client: cut them into messages."""
        client = self._clients.get(link)
        if client is None:
            return
        held = client.held
        held += data
        while link.up:
            end = held.find(b"\r\n")
            if end < 0:
                break
            line = bytes(held[:end]).split(b" ")
            verb = line[0]
            if verb in {b"PUB", b"HPUB"}:
                size = int(line[-1])
                if len(held) < end + 4 + size:
                    break
                body = bytes(held[end + 2 : end + 2 + size])
                del held[: end + 4 + size]
                self._publish(client, line, body)
            else:
                del held[: end + 2]
                self._control(client, verb, line)
        self.flush()

    def _control(self, client: Client, verb: bytes, line: list[bytes]) -> None:
        if verb == b"PING":
            self._say(client, b"PONG\r\n")
        elif verb == b"SUB":
            queue = line[2].decode() if len(line) == 4 else ""
            subscription = Subscription(client, line[-1], line[1].decode(), queue)
            client.subscriptions[line[-1]] = subscription
            if is_literal(subscription.subject):
                self._literal.setdefault(subscription.subject, []).append(subscription)
            else:
                self._wild.setdefault(stem(subscription.subject), []).append(subscription)
            self.jetstream.interest_came(subscription.subject)
        elif verb == b"UNSUB":
            found = client.subscriptions.get(line[1])
            limit = int(line[2] or b"0") if len(line) == 3 else 0
            if found is not None and limit:
                found.left = limit
            elif found is not None:
                self._unsubscribe(found)

    def _publish(self, client: Client, line: list[bytes], body: bytes) -> None:
        with_head = line[0] == b"HPUB"
        split = int(line[-2]) if with_head else 0
        reply = line[2].decode() if len(line) == 4 + with_head else ""
        subject = line[1].decode()
        self.faults.before(client.link, subject, body)
        if not client.link.up:
            return  # it broke, or its process died, before this arrived
        reached = self.route(subject, reply, body[:split], body[split:], client.link)
        if not reached and reply:
            self.deliver(reply, "", NO_RESPONDERS, b"")
        self.faults.after(client.link, subject, body)

    def _unsubscribe(self, subscription: Subscription) -> None:
        subscription.client.subscriptions.pop(subscription.sid, None)
        if is_literal(subscription.subject):
            same = self._literal.get(subscription.subject, [])
            if subscription in same:
                same.remove(subscription)
            if not same:
                self._literal.pop(subscription.subject, None)
        elif subscription in (same := self._wild.get(stem(subscription.subject), [])):
            same.remove(subscription)
            if not same:
                del self._wild[stem(subscription.subject)]

    # ------------------------------------------------------------ messages

    def route(self, subject: str, reply: str, head: bytes, data: bytes, link: Link | None) -> bool:
        """Hand a published message to all who take it; tell whether anybody does."""
        delivered = self.deliver(subject, reply, head, data)
        return self.jetstream.take(subject, reply, head, data, link) or delivered

    def deliver(self, subject: str, reply: str, head: bytes, data: bytes) -> bool:
        """Hand a message to subscribers; tell whether there are any."""
        return self.deliver_as(subject, subject, reply, head, data)

    def deliver_as(self, to: str, subject: str, reply: str, head: bytes, data: bytes) -> bool:
        """Hand a message to the subscribers of `to`, under its own subject."""
        found = self._interested(to)
        groups: dict[str, list[Subscription]] = {}
        for subscription in found:
            if subscription.queue:
                groups.setdefault(subscription.queue, []).append(subscription)
            else:
                self._message(subscription, subject, reply, head, data)
        for members in groups.values():
            self._message(self._chance.choice(members), subject, reply, head, data)
        return bool(found)

    def has_interest(self, subject: str) -> bool:
        """Tell whether anybody subscribed to a subject."""
        return bool(self._interested(subject))

    def link_of(self, subject: str) -> Link | None:
        """Return the connection of a subject's subscriber."""
        found = self._interested(subject)
        return found[0].client.link if found else None

    def _interested(self, subject: str) -> list[Subscription]:
        found = list(self._literal.get(subject, ()))
        start = subject
        while start:
            start = start.rpartition(".")[0]
            found += [item for item in self._wild.get(start, ()) if fits(item.subject, subject)]
        return found

    def _message(
        self, subscription: Subscription, subject: str, reply: str, head: bytes, data: bytes
    ) -> None:
        target = f"{subject} {subscription.sid.decode()}" + (f" {reply}" if reply else "")
        size = len(head) + len(data)
        line = f"HMSG {target} {len(head)} {size}" if head else f"MSG {target} {size}"
        self._say(subscription.client, b"%b\r\n%b%b\r\n" % (line.encode(), head, data))
        if subscription.left is not None:
            subscription.left -= 1
            if subscription.left <= 0:
                self._unsubscribe(subscription)

    def _say(self, client: Client, data: bytes) -> None:
        if not client.out:
            self._touched.append(client)
        client.out.append(data)

    def flush(self) -> None:
        """Send what was said in this turn."""
        touched, self._touched = self._touched, []
        for client in touched:
            client.link.send(b"".join(client.out))
            client.out.clear()

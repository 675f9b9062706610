"""Gates: at most so many nodes of one key under way at once, across runs and orchestrators.

A gate is one message of the stream GATES, replaced by compare-and-set. It knows who is inside and
who waits, first come first served. The runs' logs are the truth: whoever is inside and should not
be is found by comparing (`services.orchestrator.gates`).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

import orjson
from nats.aio.client import Client as Nats
from nats.js.errors import APIError, NotFoundError
from pydantic import Field

from events.jetstream import APPEND_TIMEOUT_S, BUS_ERRORS, WRONG_LAST_SEQUENCE, read_subject
from events.streams import GATES
from events.subjects import every, gate
from schemas.errors import Aborted, ResourceExhausted, StoreUnavailable
from schemas.message import Message
from schemas.messages import Header


WAITING_MAX = 10_000
"""Nodes that wait for one gate."""
RACES_MAX = 64
EMPTY_S = 60
"""How long the message of an empty gate stays."""
TTL = "Nats-TTL"


class Place(Message):
    """A node of a run, inside a gate or in front of it."""

    run_id: str
    path: str
    since: float
    """Seconds since the epoch."""

    @property
    def id(self) -> tuple[str, str]:
        """Whose place it is."""
        return self.run_id, self.path


class Gate(Message):
    """Who is inside, and who waits."""

    limit: int = 1
    inside: tuple[Place, ...] = ()
    waiting: tuple[Place, ...] = Field(default=())

    def entered(self, place: Place, limit: int) -> "Gate":
        """Return the gate after somebody came; who is there already stays where they are.

        Raises:
            ResourceExhausted: Too many wait.
        """
        if place.id in map(attrgetter("id"), (*self.inside, *self.waiting)):
            return self.model_copy(update={"limit": limit}).moved_up(place.since)
        if len(self.waiting) >= WAITING_MAX:
            raise ResourceExhausted(f"{WAITING_MAX} nodes wait for the same concurrency key")
        after = self.model_copy(update={"limit": limit, "waiting": (*self.waiting, place)})
        return after.moved_up(place.since)

    def left(self, run_id: str, path: str, at: float) -> "Gate":
        """Return the gate after somebody left, from inside or from the queue."""
        gone = (run_id, path)
        inside = tuple(place for place in self.inside if place.id != gone)
        waiting = tuple(place for place in self.waiting if place.id != gone)
        return self.model_copy(update={"inside": inside, "waiting": waiting}).moved_up(at)

    def has(self, run_id: str, path: str) -> bool:
        """Tell whether somebody is inside."""
        return any(place.id == (run_id, path) for place in self.inside)

    def moved_up(self, at: float) -> "Gate":
        """Return the gate after those who wait took the room there is."""
        room = max(0, self.limit - len(self.inside))
        coming = tuple(item.model_copy(update={"since": at}) for item in self.waiting[:room])
        if not coming:
            return self
        return self.model_copy(
            update={"inside": (*self.inside, *coming), "waiting": self.waiting[room:]}
        )


def gate_id(key: str) -> str:
    """Return what a gate is called on the bus: the digest of its key."""
    return hashlib.sha256(key.encode()).hexdigest()[:40]


@dataclass(frozen=True)
class Change:
    """A gate before and after."""

    before: Gate
    after: Gate

    @property
    def admitted(self) -> list[Place]:
        """Who came inside."""
        known = {place.id for place in self.before.inside}
        return [place for place in self.after.inside if place.id not in known]


class GateStore:
    """Gates over the stream GATES."""

    def __init__(self, nc: Nats) -> None:
        self._nc = nc
        self._js = nc.jetstream(timeout=APPEND_TIMEOUT_S)

    async def change(self, tenant: str, name: str, change: Callable[[Gate], Gate]) -> Change:
        """Change a gate, again and again until nobody came between.

        Args:
            tenant: Whose gate.
            name: Its id (`gate_id`).
            change: Returns the gate as it should be.

        Raises:
            ResourceExhausted: Too many wait in front of it.
            Aborted: Others came between RACES_MAX times.
            StoreUnavailable: The stream does not answer.
        """
        for _ in range(RACES_MAX):
            before, sequence = await self._read(tenant, name)
            after = change(before)
            if after == before or await self._write(tenant, name, after, sequence):
                return Change(before, after)
        raise Aborted("others keep changing the same gate first")

    async def all(self) -> list[tuple[str, str, Gate]]:
        """Return tenant, id and state of every gate that is not empty.

        Raises:
            StoreUnavailable: The stream does not answer.
        """
        found = []
        for message in await read_subject(self._nc, GATES, every("gate", "*")):
            known = Gate.model_validate_json(message.data)
            if known.inside or known.waiting:
                tokens = message.subject.split(".")
                found.append((tokens[2], tokens[4], known))
        return found

    async def _read(self, tenant: str, name: str) -> tuple[Gate, int]:
        try:
            found = await self._js.get_last_msg(GATES, gate(tenant, name))
        except NotFoundError:
            return Gate(), 0
        except (APIError, *BUS_ERRORS) as error:
            raise StoreUnavailable("the gates do not answer") from error
        return Gate.model_validate_json(found.data or b"{}"), found.seq or 0

    async def _write(self, tenant: str, name: str, after: Gate, sequence: int) -> bool:
        headers = {Header.EXPECTED: str(sequence)}
        if not after.inside and not after.waiting:
            headers[TTL] = f"{EMPTY_S}s"
        body = orjson.dumps(after.model_dump())
        try:
            await self._js.publish(gate(tenant, name), body, headers=headers)
        except APIError as error:
            if error.err_code == WRONG_LAST_SEQUENCE:
                return False
            raise StoreUnavailable("the gates refuse a change", cause=str(error)) from error
        except BUS_ERRORS as error:
            raise StoreUnavailable("the gates do not answer") from error
        return True

"""A tenant's share of a queue: what goes in, what is held, and what is let go."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from events.subjects import pool_of, task
from schemas.errors import BusUnavailable
from schemas.messages import Header
from services.orchestrator.shares import LOOK_S, Queue, Shares
from services.runtime import Outgoing
from tests.support.wait import until


class Server:
    """Counts what is in the queue, and works it off when told."""

    def __init__(self) -> None:
        self.waiting: Counter[str] = Counter()
        self.published: list[str] = []
        self.away = False

    async def count(self, subjects: str) -> int:
        """Return what waits on a filter."""
        if self.away:
            raise BusUnavailable("away")
        return self.waiting[subjects.removesuffix(">")]

    async def publish(self, tasks: Sequence[Outgoing]) -> None:
        """Take tasks."""
        if self.away:
            raise BusUnavailable("away")
        for item in tasks:
            self.published.append(item.headers[Header.MSG_ID])
            self.waiting[".".join(item.subject.split(".")[:6]) + "."] += 1


def message(number: int, tenant: str = "a", lane: str = "normal") -> Outgoing:
    """Return a task."""
    subject = task(tenant, "text", "default", lane, "echo")
    return Outgoing(subject, b"x", {Header.MSG_ID: f"{tenant}{number}"})


def shares(server: Server) -> Shares:
    """Return what is tested: two tasks of each tenant, a second of work."""
    return Shares(
        server.count,
        server.publish,
        asyncio.get_running_loop().time,
        share_s=1.0,
        tasks_min=2,
    )


async def test_each_tenant_has_its_own() -> None:
    """What one holds does not hold another."""
    desk = shares(Server())
    assert [True, True, False] == [desk.admits(message(number)) for number in range(3)]
    assert [True, True, False] == [desk.admits(message(number, "b")) for number in range(3)]


async def test_what_is_held_goes_when_there_is_room() -> None:
    """In order, urgent lanes first, once each; a bus that is away loses nothing."""
    server = Server()
    desk = shares(server)
    server.away = True
    for number in range(2):
        assert desk.admits(message(number))
    for lane in ("low", "normal", "high"):
        for number in (1, 2, 1):
            held = message(number, lane=lane)
            assert not desk.admits(replace(held, headers={Header.MSG_ID: f"{lane}{number}"}))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(desk.run())
        await asyncio.sleep(3 * LOOK_S)
        assert [] == server.published
        server.away = False

        async def all_published() -> bool:
            server.waiting.clear()
            return len(server.published) == 6

        await until(all_published, what="room for all")
        running.cancel()
    wanted = [f"{lane}{number}" for lane in ("high", "normal", "low") for number in (1, 2)]
    assert wanted == server.published


def test_a_fast_pool_has_longer_queues() -> None:
    """What was done since the last look says how much a second is worth."""
    queue = Queue(sent=50)
    queue.learn(0, now=0.5)
    assert 100 == queue.rate
    queue.sent, queue.fresh = 100, 1000
    queue.learn(90, now=1.5)
    assert 70 < queue.rate < 100
    assert (90, 0) == (queue.counted, queue.sent)


def test_the_pool_is_read_from_the_subject() -> None:
    """With its tenant."""
    assert ("a", "text", "default") == pool_of(message(1).subject)

"""The server in memory and the real one give the same answers to the same operations."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import nats
import orjson
import pytest
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.js.errors import APIError

from events.express import delivered
from events.jetstream import read_subject
from tests.support.nats import NatsServer
from tests.support.sim.loop import VirtualLoop
from tests.support.sim.network import Network
from tests.support.sim.plays import Answer, Player
from tests.support.sim.server import Server
from tests.support.sim.world import EPOCH, URL
from tests.support.wait import until


pytestmark = pytest.mark.nats

OPERATIONS = 25


def in_memory(play: Callable[[Nats], Awaitable[Any]], seed: int) -> Any:
    """Play against the server in memory."""
    network = Network(random.Random(seed))
    loop = VirtualLoop(network.connect, lambda: 0.001)
    network.loop, network.peer = loop, Server(loop, EPOCH, random.Random(seed))

    async def main() -> Any:
        nc = await nats.connect(URL)
        answers = await play(nc)
        await nc.close()
        return answers

    try:
        return loop.run_until_complete(main())
    finally:
        loop.bury()


def for_real(server: NatsServer, play: Callable[[Nats], Awaitable[Any]]) -> Any:
    """Play against the real server."""

    async def main() -> Any:
        nc = await nats.connect(server.url)
        answers = await play(nc)
        await nc.close()
        return answers

    return asyncio.run(main())


async def _play(seed: int, nc: Nats) -> list[Answer]:
    return await Player(nc, seed).play(OPERATIONS)


@pytest.mark.timeout(600)
def test_random_operations_get_the_same_answers(nats_server: NatsServer, seeds: range) -> None:
    """Publishes, pulls, acks, gets, purges, buckets, batches: answer for answer."""

    async def play_all(nc: Nats) -> list[list[Answer]]:
        """Play several at a time: most of their time they wait for what does not come."""
        gate = asyncio.Semaphore(8)

        async def one(seed: int) -> list[Answer]:
            async with gate:
                return await _play(seed, nc)

        async with asyncio.TaskGroup() as group:
            plays = [group.create_task(one(seed)) for seed in seeds]
        return [play.result() for play in plays]

    real = for_real(nats_server, play_all)
    for seed, said in zip(seeds, real, strict=True):
        given = in_memory(partial(_play, seed), seed)
        # A busy machine makes the real one late; what is really different differs again.
        expected = said if said == given else for_real(nats_server, partial(_play, seed))
        for number, (theirs, ours) in enumerate(zip(expected, given, strict=True)):
            assert theirs == ours, f"sequence {seed}, operation {number}"


async def _redelivery(nc: Nats) -> list[Answer]:
    """Pull, let the ack's time pass, give back with a delay, ack the first delivery at last."""
    config = {"durable_name": "c", "ack_policy": "explicit", "ack_wait": int(0.3e9)}
    for subject, document in (
        ("STREAM.CREATE.T", {"name": "T", "subjects": ["t.>"], "storage": "memory",
                             "retention": "workqueue", "num_replicas": 1}),
        ("CONSUMER.DURABLE.CREATE.T.c", {"stream_name": "T", "config": config}),
    ):  # fmt: skip
        await nc.request(f"$JS.API.{subject}", orjson.dumps(document))
    await nc.jetstream().publish("t.a", b"1")
    beats = {"batch": 2, "expires": int(0.25e9), "idle_heartbeat": int(0.1e9)}
    found = [await _pull(nc, beats, 4)]
    first = found[0][0][-1]
    await asyncio.sleep(0.3)
    found.append(await _pull(nc, {"batch": 1, "no_wait": True}, 1))
    await nc.request(found[-1][0][-1], b'-NAK {"delay": 300000000}')
    found.append(await _pull(nc, {"batch": 1, "no_wait": True}, 1))
    found.append(await _pull(nc, {"batch": 1, "expires": int(1e9)}, 1))
    await nc.request(first, b"+ACK")  # of a delivery long past: the server takes it
    state = (await nc.jetstream().stream_info("T")).state
    tail: Answer = (state.messages, state.first_seq, state.last_seq)
    return [tuple(item[:-1] for item in answer) for answer in found] + [tail]


async def _out_of_turn(nc: Nats) -> list[Answer]:
    """Read a work queue by subject, delete what was delivered and what was not."""
    config = {"durable_name": "c", "ack_policy": "explicit", "ack_wait": int(60e9)}
    for subject, document in (
        ("STREAM.CREATE.U", {"name": "U", "subjects": ["u.>"], "storage": "memory",
                             "retention": "workqueue", "num_replicas": 1, "allow_direct": True}),
        ("CONSUMER.DURABLE.CREATE.U.c", {"stream_name": "U", "config": config}),
    ):  # fmt: skip
        await nc.request(f"$JS.API.{subject}", orjson.dumps(document))
    js = nc.jetstream()
    for number, subject in enumerate("aaabab"):
        await js.publish(f"u.{subject}", f"{number}".encode())
    found: list[Answer] = [await _pull(nc, {"batch": 2, "no_wait": True}, 2, "U")]
    read = await read_subject(nc, "U", "u.b", start=3, limit=2)
    found.append(tuple((item.subject, item.sequence, item.data) for item in read))
    found.append(tuple(item.sequence for item in await read_subject(nc, "U", "u.a", limit=2)))
    for seq in (1, 4, 4):
        body = orjson.dumps({"seq": seq, "no_erase": True})
        answer = orjson.loads((await nc.request("$JS.API.STREAM.MSG.DELETE.U", body)).data)
        found.append((answer.get("success"), answer.get("error", {}).get("err_code")))

    async def settled() -> bool:
        """Tell whether the server counts the delivered one as done: it does so a moment later."""
        in_work: int | None = (await js.consumer_info("U", "c")).num_ack_pending
        return in_work == 1

    await until(settled, what="the end of a delivery whose message is gone")
    info = await js.consumer_info("U", "c")
    found.append((info.num_pending, info.num_ack_pending))
    found.append(await _pull(nc, {"batch": 5, "no_wait": True}, 4, "U"))
    subjects = (await js.stream_info("U", subjects_filter="u.*")).state.subjects or {}
    found.append(tuple(sorted(subjects.items())))
    return [
        tuple(item[:-1] if isinstance(item, tuple) and len(item) == 4 else item for item in answer)
        for answer in found
    ]


def test_a_work_queue_is_read_out_of_turn_alike(nats_server: NatsServer) -> None:
    """By subject; what is deleted is delivered to nobody, and no longer in anybody's work."""
    assert for_real(nats_server, _out_of_turn) == in_memory(_out_of_turn, 0)


async def _pull(nc: Nats, ask: dict[str, Any], count: int, stream: str = "T") -> Answer:
    got: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox, cb=got.put)
    await nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.c", orjson.dumps(ask), reply=inbox)
    found = []
    for _ in range(count):
        message = await asyncio.wait_for(got.get(), 5)
        headers = message.headers or {}
        deliveries = delivered(message.reply).deliveries if message.reply else 0
        facts = (headers.get("Status"), headers.get("Nats-Pending-Messages"))
        found.append((message.data, deliveries, facts, message.reply))
    await subscription.unsubscribe()
    return tuple(found)


def test_what_time_does_to_deliveries(nats_server: NatsServer) -> None:
    """Heartbeats, the end of a request, redelivery, delayed redelivery, a stale ack."""
    assert for_real(nats_server, _redelivery) == in_memory(_redelivery, 0)


async def _schedules(nc: Nats) -> list[Answer]:
    """Schedule a message every second; take it back."""
    document = {"name": "S", "subjects": ["s.>"], "storage": "memory", "num_replicas": 1,
                "allow_msg_schedules": True, "allow_msg_ttl": True, "max_msgs": -1}  # fmt: skip
    await nc.request("$JS.API.STREAM.CREATE.S", orjson.dumps(document))
    js = nc.jetstream()
    headers = {"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": "s.due",
               "Nats-Schedule-TTL": "60s", "X-Own": "1"}  # fmt: skip
    await js.publish("s.timer", b"ring", headers=headers)
    await asyncio.sleep(1.5)
    await js.purge_stream("S", subject="s.timer")
    rang = await js.get_last_msg("S", "s.due")
    await asyncio.sleep(1.2)
    last = await js.get_last_msg("S", "s.due")
    told = {k: v for k, v in (rang.headers or {}).items() if k != "Nats-Schedule-Next"}
    bad = {**headers, "Nats-Schedule": "@every never"}
    with pytest.raises(APIError) as refused:
        await js.publish("s.bad", b"", headers=bad)
    return [(rang.data, tuple(sorted(told.items())), last.seq == rang.seq, refused.value.err_code)]


def test_schedules_ring_alike(nats_server: NatsServer) -> None:
    """A schedule publishes its message, and no longer once it is removed."""
    assert for_real(nats_server, _schedules) == in_memory(_schedules, 0)

"""The run index reads the log only for what is not noted in it anyway."""

import asyncio
import random

import nats
from nats.aio.client import Client as Nats

from events.index import RunIndex
from events.streams import EVENTS, StreamLimits, ensure
from events.subjects import RunKey, event
from schemas.messages import Header
from tests.support.sim.loop import VirtualLoop
from tests.support.sim.network import Network
from tests.support.sim.server import Server
from tests.support.sim.world import EPOCH, URL


async def commit(nc: Nats, run_id: str, noted_in: RunIndex | None = None) -> None:
    """Store a run's first commit, and perhaps note it as who stored it."""
    key = RunKey("acme", run_id)
    headers = {Header.VERSION: "1", Header.STATUS: "running", Header.WORKFLOW: "w"}
    ack = await nc.jetstream().publish(event(key), b"", headers=headers)
    if noted_in is not None:
        noted_in.note(key, ack.seq, headers, 1.0)


async def readers(nc: Nats) -> int:
    """Return how many consumers read the log."""
    return (await nc.jetstream().stream_info(EVENTS)).state.consumer_count


async def play(nc: Nats) -> None:
    """Note some commits, have others stored elsewhere, on virtual time."""
    await ensure(nc, StreamLimits())
    index, ready = RunIndex(":memory:"), asyncio.Event()
    following = asyncio.ensure_future(index.follow(nc, ready=ready, noting=True))
    try:
        await ready.wait()
        await asyncio.sleep(5)
        assert 0 == await readers(nc), "nothing is in the log, and nothing is read"
        for number in range(10):
            await commit(nc, f"own{number}", index)
            await asyncio.sleep(0.5)
        assert (0, 10) == (await readers(nc), index.checkpoint()[1])
        await commit(nc, "elsewhere")
        await commit(nc, "own", index)
        await asyncio.sleep(1)
        assert 1 == index.commits(RunKey("acme", "elsewhere")), "the gap was read"
        await asyncio.sleep(5)
        await commit(nc, "last")
        await asyncio.sleep(3)
        assert 1 == index.commits(RunKey("acme", "last")), "silence is no proof"
        await asyncio.sleep(5)
        assert (0, 13) == (await readers(nc), index.checkpoint()[1])
        assert 13 == len(index.unfinished())
    finally:
        following.cancel()
        await asyncio.wait([following])
        index.close()


def test_an_index_that_knows_everything_reads_nothing() -> None:
    """Other commits are found by the gap they leave, or after a second of silence."""
    network = Network(random.Random(1))
    loop = VirtualLoop(network.connect, lambda: 0.001)
    network.loop, network.peer = loop, Server(loop, EPOCH, random.Random(1))

    async def main() -> None:
        nc = await nats.connect(URL)
        await play(nc)
        await nc.close()

    try:
        loop.run_until_complete(main())
    finally:
        loop.bury()

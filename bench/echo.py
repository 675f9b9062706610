"""The floor of an inference over the bus: `python -m bench.echo URL` gives back what it gets."""

import asyncio
import sys
import time
from typing import Any

import nats
import uvloop
from nats.aio.msg import Msg


SUBJECT = "echo"


async def serve(url: str) -> None:
    """Answer every request with its own body, for ever."""
    nc = await nats.connect(url)

    async def give_back(message: Msg) -> None:
        await message.respond(message.data)

    await nc.subscribe(SUBJECT, cb=give_back)
    await nc.request(SUBJECT, b"", timeout=10)  # it is served
    print("ready", flush=True)
    await asyncio.Event().wait()


async def load(url: str, size: int, clients: int, seconds: float) -> dict[str, Any]:
    """Return how many requests of so many bytes nats-py makes a second, with so many under way."""
    nc = await nats.connect(url, pending_size=2**28)
    body, done = bytes(size), 0
    begun = time.perf_counter()

    async def ask() -> None:
        nonlocal done
        while time.perf_counter() < begun + seconds:
            await nc.request(SUBJECT, body, timeout=10)
            done += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(ask())
    spent = time.perf_counter() - begun
    await nc.close()
    return {"requests_per_s": round(done / spent), "mib_per_s": round(done / spent * size / 2**20)}


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))

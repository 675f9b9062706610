"""The floor: raw nats-py doing a run's publishes and deliveries, and nothing else.

`python -m bench.relay orchestrator|worker <url> <steps> <bytes>` takes the orchestrator's or the
worker's place. The streams are configured as the product's; every message carries one header and
`<bytes>` bytes; every publish into a stream waits for its ack, and an input is acked last.
"""

import asyncio
import sys

import nats
import orjson
import uvloop
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, RePublish, StreamConfig
from nats.js.api import RetentionPolicy as Retention
from nats.js.api import StorageType as Storage


COMMANDS, EVENTS, TASKS, RESULTS = (
    f"FLOOR_{name}" for name in ("COMMANDS", "EVENTS", "TASKS", "RESULTS")
)
BATCH = 256
EXPIRES_S = 30


async def make_streams(nc: Nats) -> None:
    """Make the four streams and their consumers."""
    js = nc.jetstream()
    queue, memory = Retention.WORK_QUEUE, Storage.MEMORY
    for config in (
        StreamConfig(COMMANDS, subjects=["floor.submit.*"], storage=Storage.FILE, retention=queue),
        StreamConfig(
            EVENTS,
            subjects=["floor.event.*"],
            storage=Storage.FILE,
            republish=RePublish(src="floor.event.*", dest="floor.live.{{wildcard(1)}}"),
        ),
        StreamConfig(TASKS, subjects=["floor.task.*.*"], storage=memory, retention=queue),
        StreamConfig(RESULTS, subjects=["floor.result.*.*"], storage=memory, retention=queue),
    ):
        await js.add_stream(config)
    for stream in (COMMANDS, TASKS, RESULTS):
        await js.add_consumer(
            stream,
            ConsumerConfig(
                durable_name="relay", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=2048
            ),
        )


class Relay:
    """Pulls from streams and publishes what comes next in a run.

    Args:
        nc: The connection.
        steps: Nodes of a run.
        body: What every message carries.
    """

    def __init__(self, nc: Nats, steps: int, body: bytes) -> None:
        self._nc = nc
        self._js = nc.jetstream()
        self._steps = steps
        self._body = body
        self._tasks: set[asyncio.Task[None]] = set()

    async def pull(self, stream: str) -> None:
        """Pull from a stream for ever."""
        inbox = self._nc.new_inbox()
        ask = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.relay"
        request = orjson.dumps({"batch": BATCH, "expires": int(EXPIRES_S * 1e9)})
        left = asyncio.Event()
        requested = 0

        async def on_message(message: Msg) -> None:
            nonlocal requested
            if message.reply.startswith("$JS.ACK"):
                requested -= 1
                task = asyncio.ensure_future(self._relay(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                requested = 0
            if requested < BATCH // 2:
                left.set()

        await self._nc.subscribe(inbox, cb=on_message)
        while True:
            left.clear()
            requested += BATCH
            await self._nc.publish(ask, request, reply=inbox)
            await left.wait()

    async def _relay(self, message: Msg) -> None:
        kind, *rest = message.subject.split(".")[1:]
        if kind == "task":
            await self._publish("result", *rest)
        else:
            run, step = rest[0], int(rest[1]) + 1 if kind == "result" else 0
            await self._publish("event", run)
            if step < self._steps:
                await self._publish("task", run, str(step))
        await self._nc.publish(message.reply, b"+ACK")

    async def _publish(self, *tokens: str) -> None:
        await self._js.publish(".".join(["floor", *tokens]), self._body, headers={"Run": tokens[1]})


async def main(role: str, url: str, steps: int, size: int) -> None:
    """Relay until killed."""
    nc = await nats.connect(url)
    relay = Relay(nc, steps, bytes(size))
    streams = (COMMANDS, RESULTS) if role == "orchestrator" else (TASKS,)
    async with asyncio.TaskGroup() as group:
        for stream in streams:
            group.create_task(relay.pull(stream))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))

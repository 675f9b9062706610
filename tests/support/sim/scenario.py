"""One seed from start to verdict: services, clients, faults, healing, the checker."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nats
from eventsourcing.persistence import StoredEvent
from nats.aio.client import Client as Nats
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

from events.codec import COMMIT_TOPIC, CommitMapper
from events.definitions import DefinitionStore
from events.express import Express, Refused, pub_ack
from events.keys import cipher_of
from events.streams import EVENTS, KEYS, StreamLimits, ensure
from events.subjects import RunKey, control, run_key
from events.subjects import submit as submit_subject
from schemas.ids import DEFAULT_TENANT
from schemas.messages import Header
from schemas.submission import pack_inputs
from services.runtime import Outgoing
from services.together import TogetherBySubject
from tests.support.checker import Recorded, Submission, check
from tests.support.sim.faults import FAILPOINTS
from tests.support.sim.workloads import EITHER, Wish, deployed, wish
from tests.support.sim.world import MASTER, MIB, SHARED, URL, World


HEALS_AT = 6.0
"""Seconds after which nothing goes wrong any more."""
PATIENCE_S = 60.0
"""Everything must be over so long after that (target T19)."""
VISITS = 5
"""How many times a failpoint may be passed before its crash."""
Publish = Callable[[str, bytes, dict[str, str]], Awaitable[None]]
"""Publishes a subject, a body and headers until they are stored."""
FLOODED = 0.2
"""Part of the seeds in which many submissions of one workflow come at once, and a few of others."""
FLOOD = Wish("branch", {"text": "ab"}, None, EITHER)
OVER = {"completed", "failed", "cancelled", "rejected"}


@dataclass(frozen=True)
class Outcome:
    """What became of a seed."""

    seed: int
    wrong: list[str]
    """What the checker found; empty when all is well."""
    trace: str
    """A digest of every byte that was sent, by whom and when."""
    happened: Counter[str]
    """Faults by kind and point."""
    seconds: float
    """Virtual ones."""
    steps: int
    log: dict[str, list[Recorded]] = field(repr=False)


@dataclass
class Client:
    """Submits runs and controls them, as any client with run ids of its own may.

    One that sends `together` wants all its runs at the same moment, and bundles them as a gateway.
    """

    world: World
    chance: random.Random
    wishes: dict[str, Wish]
    together: bool = False
    spread_s: float = 3.0
    """Within how long it asks for all of it, unless at the same moment."""
    acked: set[str] = field(default_factory=set)
    nc: Nats | None = None

    async def run(self) -> None:
        """Do everything that is wished for, at moments of the seed."""
        self.nc = await connect()
        submit = self._publish
        if self.together:
            bundled = TogetherBySubject(await Express.of(self.nc), items_max=32)
            submit = partial(self._publish_together, bundled)
        moment = self.chance.uniform(0.0, 3.0)
        async with asyncio.TaskGroup() as group:
            for run_id, wanted in self.wishes.items():
                delay_s = moment if self.together else self.chance.uniform(0.0, self.spread_s)
                group.create_task(self._one(run_id, wanted, delay_s, submit))

    async def _one(self, run_id: str, wanted: Wish, delay_s: float, submit: Publish) -> None:
        await asyncio.sleep(delay_s)
        headers = {Header.RUN_ID: run_id, Header.CONTENT_TYPE: "application/msgpack"}
        subject = submit_subject(DEFAULT_TENANT, wanted.workflow)
        await submit(subject, pack_inputs(wanted.inputs), headers)
        self.acked.add(run_id)
        begun = self.world.now()
        for after_s, order in wanted.controls:
            await asyncio.sleep(max(0.0, begun + after_s - self.world.now()))
            body = order.model_dump_json(exclude_defaults=True).encode()
            await self._publish(control(RunKey(DEFAULT_TENANT, run_id)), body, {})

    async def _publish(self, subject: str, body: bytes, headers: dict[str, str]) -> None:
        assert self.nc is not None
        while True:
            try:
                await self.nc.jetstream(timeout=1).publish(subject, body, headers=headers)
                return
            except (NatsError, JetStreamError, TimeoutError):
                await asyncio.sleep(0.1)

    async def _publish_together(
        self, bundled: TogetherBySubject, subject: str, body: bytes, headers: dict[str, str]
    ) -> None:
        while True:
            try:
                pub_ack(await bundled.ask(Outgoing(subject, body, headers)))
                return
            except (NatsError, Refused):
                await asyncio.sleep(0.1)


async def connect() -> Nats:
    """Return a connection that never gives up."""

    async def quiet(_: Exception) -> None:
        """The server is away: the next try follows."""

    return await nats.connect(
        URL,
        reconnect_time_wait=0.05,
        max_reconnect_attempts=-1,
        error_cb=quiet,
    )


class Scenario:
    """The usual scenario: two orchestrators, two workers, two clients; now and then a flood.

    Args:
        seed: Decides everything.
        folder: Where processes keep their files.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        failpoint = FAILPOINTS[seed % len(FAILPOINTS)]
        visit = 1 + seed // len(FAILPOINTS) % VISITS
        self.world = World(seed, folder, HEALS_AT, failpoint, visit)
        self.chance = self.world.chances("clients")
        wishes = {f"r{number}": wish(self.chance) for number in range(self.chance.randint(3, 8))}
        self.wishes = wishes
        self.running: list[asyncio.Task[None]] = []
        self.clients = [
            Client(
                self.world,
                self.world.chances(f"client-{half}"),
                dict(list(wishes.items())[half::2]),
                together=bool(half),
            )
            for half in range(2)
        ]
        self.settings: dict[str, Any] = {}
        """Of the orchestrators."""
        flood = self.world.chances("flood")
        if flood.random() < FLOODED:
            many = {f"f{number}": FLOOD for number in range(flood.randint(12, 20))}
            many |= {f"g{number}": wish(flood) for number in range(4)}
            self.wishes |= many
            together = flood.random() < 0.5
            self.clients.append(Client(self.world, flood, many, together=together, spread_s=0.02))
            self.settings = {"in_flight_max": flood.choice([1, 2]), "share_backlog_min": 1}

    def play(self, *, said: bool = False) -> Outcome:
        """Run it to the end and return the verdict."""
        world = self.world
        with world.running(said=said):
            main = world.start("scenario", self._main)
            world.loop.run_until_complete(main)
            wrong, log = self.verdict()
        return Outcome(
            world.seed, wrong + world.ended, world.trace(), world.happened(), world.now(),
            world.loop.steps, log,
        )  # fmt: skip

    def verdict(self) -> tuple[list[str], dict[str, list[Recorded]]]:
        """Return what is wrong at the end, and the log if it was looked at."""
        log = read_log(self.world)
        return check(log, self.submissions()), log

    def submissions(self) -> list[Submission]:
        """Return what the clients asked for."""
        acked = set().union(*(client.acked for client in self.clients))
        return [
            Submission(run_id, item.workflow, item.inputs, run_id in acked, item.outputs, item.ends)
            for run_id, item in self.wishes.items()
        ]

    async def _main(self) -> None:
        world = self.world
        await self._set_up()
        world.faults.active = True
        self._start()
        if self.chance.random() < 0.3:
            for _ in range(self.chance.randint(1, 2)):
                world.later(self.chance.uniform(0.5, HEALS_AT), world.restart_server)
        gives_up_at = HEALS_AT + PATIENCE_S
        while not self._all_over() and world.now() < gives_up_at:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.2)

    def _start(self) -> None:
        world = self.world
        for number in range(2):
            world.orchestrator(number, **self.settings)
            world.worker(number)
        for number, client in enumerate(self.clients):
            self.running.append(world.start(f"client-{number}", client.run))

    async def _set_up(self) -> None:
        nc = await connect()
        await ensure(nc, StreamLimits(events_bytes_max=256 * MIB, ack_wait_s=SHARED["ack_wait_s"]))
        definitions = DefinitionStore(nc.jetstream())
        wishes = [item for client in self.clients for item in client.wishes.values()]
        for name in sorted({item.workflow for item in wishes}):
            await definitions.deploy(DEFAULT_TENANT, deployed(name))
        await nc.close()

    def _all_over(self) -> bool:
        stream = self.world.server.jetstream.streams[EVENTS]
        ends = [
            stream.messages[found[-1]].headers.get(Header.STATUS)
            for found in stream.by_subject.values()
        ]
        return len(ends) >= len(self.wishes) and all(end in OVER for end in ends)


def read_log(world: World) -> dict[str, list[Recorded]]:
    """Return the event log as the server holds it, decoded."""
    streams = world.server.jetstream.streams
    wrapped = streams[f"KV_{KEYS}"].last_of(f"$KV.{KEYS}.{DEFAULT_TENANT}")
    if wrapped is None:
        return {}
    mapper = CommitMapper(cipher_of(cipher_of(MASTER).decrypt(wrapped.data)))
    log: dict[str, list[Recorded]] = {}
    for message in streams[EVENTS].following(1):
        key = run_key(message.subject)
        version = int(message.headers[Header.VERSION])
        stored = StoredEvent(f"{key.tenant}.{key.run_id}", version, COMMIT_TOPIC, message.data)
        commit: Any = mapper.to_domain_event(stored)
        log.setdefault(key.run_id, []).append(
            Recorded(
                message.seq,
                version,
                message.headers.get(Header.PREVIOUS, ""),
                message.data,
                tuple(commit.events),
                message.at_ns / 1e9,
            )
        )
    return log

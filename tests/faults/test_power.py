"""Power cuts, for real: with the shipped settings nothing that was acknowledged is lost."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client as Nats
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.subjects import RunKey, submit
from schemas.errors import RetryableError, Unavailable
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.messages import Header
from schemas.submission import pack_inputs
from tests.support.checker import Submission, check, recorded
from tests.support.cluster import NatsCluster
from tests.support.disk import Disk, unusable
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer
from tests.support.wait import until
from tests.support.workflows import deploy, echo_chain


ROUNDS = int(os.environ.get("CLAWDBOT_TEST_ROUNDS", "2"))  # noqa: TID251 - the tests' own
pytestmark = [
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.timeout(120 + 90 * ROUNDS),
    pytest.mark.skipif(bool(unusable()), reason=unusable()),
]
MASTER = bytes(32)
MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
ACCEPTED_MIN, ACCEPTED_MAX = 100, 300
SUBMITTERS = 16
LIMITS = {
    "events_bytes_max": str(2**26),
    "commands_bytes_max": str(2**26),
    "blobs_bytes_max": str(2**26),
    "work_bytes_max": str(2**26),
}


@dataclass
class Load:
    """Submits runs until told to stop, and remembers which were acknowledged."""

    nc: Nats
    accepted: list[RunKey] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    is_dying: bool = False
    """While the power is being cut: such a cut lets one flush succeed in vain (`bench.power`)."""

    async def submitter(self) -> None:
        """Submit one run after the other."""
        js = self.nc.jetstream(timeout=1)
        while not self.over.is_set() and len(self.accepted) < ACCEPTED_MAX:
            key = RunKey(DEFAULT_TENANT, new_id())
            headers = {Header.RUN_ID: key.run_id, Header.CONTENT_TYPE: "application/msgpack"}
            try:
                await js.publish(
                    submit(key.tenant, "chain"), pack_inputs({"text": key.run_id}), headers=headers
                )
            except (NatsError, JetStreamError, TimeoutError):
                await asyncio.sleep(0.05)
                continue
            if not self.is_dying:
                self.accepted.append(key)

    async def enough(self) -> bool:
        """Tell whether a round has seen enough."""
        return len(self.accepted) >= ACCEPTED_MIN


async def all_complete(nc: Nats, keys: list[RunKey]) -> None:
    """Wait until every run is complete, then check every history."""
    store = JetStreamEventStore(nc, JetStreamKeyRing(nc.jetstream(), MASTER))
    open_keys = set(keys)

    async def none_open() -> bool:
        for key in list(open_keys):
            try:
                state = (await store.load(key)).state()
            except RetryableError:
                return False
            if state is None or not state.terminal:
                return False
            open_keys.discard(key)
        return True

    await until(none_open, what=f"the end of {len(keys)} runs", timeout_s=60)
    wanted = [
        Submission(key.run_id, "chain", {"text": key.run_id}, True, {"n2": {"text": key.run_id}})
        for key in keys
    ]
    assert [] == check(await recorded(store, keys), wanted)


@contextmanager
def disks(folder: Path, count: int) -> Iterator[list[Disk]]:
    """Make some disks."""
    with ExitStack() as stack:
        yield [stack.enter_context(Disk(folder / f"d{number}")) for number in range(count)]


def lose_power(mesh: Mesh, servers: list[NatsServer], cut: list[Disk]) -> None:
    """Cut the power of some disks and of the machines on them."""
    for disk in cut:
        disk.cut()
    for server in servers:
        server.kill()
    for service in mesh.services.values():
        service.signal(signal.SIGKILL)
    for disk in cut:
        disk.restore()


async def _deployed(nc: Nats) -> bool:
    """Deploy, unless the cluster is still making up its mind."""
    try:
        await deploy(nc.jetstream(), "chain", echo_chain(3))
    except (Unavailable, NatsError, TimeoutError):
        return False
    return True


async def one_round(url: str, cut: "Cut") -> None:
    """Load the mesh, cut the power in the middle, bring all back, and count."""
    nc = await nats.connect(
        url.split(","), reconnect_time_wait=0.05, max_reconnect_attempts=-1, ping_interval=2
    )
    load = Load(nc)
    try:
        await until(lambda: _deployed(nc), what="a deployed workflow", timeout_s=60)
        async with asyncio.TaskGroup() as group:
            for _ in range(SUBMITTERS):
                group.create_task(load.submitter())
            await until(load.enough, what="load", timeout_s=30)
            load.is_dying = True
            await asyncio.to_thread(cut)
            load.over.set()
        await all_complete(nc, load.accepted)
    finally:
        await nc.close()


@dataclass
class Cut:
    """What is done in the middle of a round."""

    mesh: Mesh
    servers: list[NatsServer]
    disks: list[Disk]
    cluster: NatsCluster | None = None

    def __call__(self) -> None:
        """Cut, restore, start."""
        lose_power(self.mesh, self.servers, self.disks)
        if self.cluster is None:
            self.servers[0].start()
        else:
            self.cluster.start(self.servers)
        self.mesh.start()


def _mesh(folder: Path, data: Path, url: str, **extra: str) -> Mesh:
    settings = {"master_key": MASTER_TEXT, "ack_wait_s": "2", "max_deliver": "100", **LIMITS}
    mesh = Mesh(folder, url, {**settings, "data_dir": str(data), **extra})
    mesh.add_core()
    return mesh


async def test_one_server(tmp_path: Path) -> None:
    """The server's store and the orchestrator's files lose what was not synced, again and again."""
    with disks(tmp_path, 1) as [disk], NatsServer(tmp_path, store=disk.path / "store") as server:
        mesh = _mesh(tmp_path / "mesh", disk.path / "data", server.url)
        mesh.start()
        try:
            for _ in range(ROUNDS):
                await one_round(server.url, Cut(mesh, [server], [disk]))
        finally:
            mesh.stop()
            server.stop()


@pytest.mark.parametrize("lost", [2, 3])
async def test_a_cluster(tmp_path: Path, lost: int) -> None:
    """Two, or all three, of three servers lose their power at once."""
    with disks(tmp_path, 3) as all_disks:
        folders = [tmp_path / f"n{number}" for number in range(3)]
        for folder in folders:
            folder.mkdir()
        stores = [disk.path / "store" for disk in all_disks]
        with NatsCluster(folders, stores=stores) as cluster:
            mesh = _mesh(tmp_path / "mesh", tmp_path / "data", cluster.url, replicas="3")
            mesh.start()
            try:
                for _ in range(ROUNDS):
                    cut = Cut(mesh, cluster.servers[:lost], all_disks[:lost], cluster)
                    await one_round(cluster.url, cut)
            finally:
                mesh.stop()
                for server in cluster.servers:
                    server.stop()

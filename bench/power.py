"""What a power cut takes away, by sync setting: `python -m bench.power`; needs root.

Each round is a mesh of its own under load, whose server's disk loses what was not synced while all
processes are killed. What it counts are runs whose submission was acknowledged and that are neither
in the queue of submissions nor in the event log once the servers are back. The streams themselves
were synced before: of one that is seconds old an unsynced disk may keep nothing at all.

One JSON line for each setting on stdout as it is measured, a table on stderr at the end.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client as Nats
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from events.jetstream import read_subject
from events.streams import COMMANDS, EVENTS
from events.subjects import every, submit
from schemas.errors import ClawdbotError
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.messages import Header
from schemas.submission import pack_inputs
from tests.support.cluster import NatsCluster
from tests.support.disk import Disk
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer
from tests.support.wait import until
from tests.support.workflows import deploy, echo_chain


SHIPPED = "always"
SETTINGS = (SHIPPED, "1s", "2m")
"""`sync_interval` of nats-server; 2m is its own default."""
CUTS = ((1, 1), (3, 2), (3, 3))
"""Servers, and how many of them lose their power at once."""
SUBMITTERS = 16
LOAD_S = 3.0
PATIENCE_S = 60.0
LATE_S = 5.0
ASK_S = 2.0
LIMIT = str(2**26)
SIZES = ("events_bytes_max", "commands_bytes_max", "blobs_bytes_max", "work_bytes_max")


@dataclass(frozen=True)
class Site:
    """Where a round takes place."""

    servers: list[NatsServer]
    disks: list[Disk]
    mesh: Mesh
    url: str
    cluster: NatsCluster | None


@dataclass
class Load:
    """Submits runs until told to stop."""

    nc: Nats
    acknowledged: set[str] = field(default_factory=set)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def submitter(self) -> None:
        """Submit one run after the other."""
        js = self.nc.jetstream(timeout=1)
        while not self.over.is_set():
            run_id = new_id()
            headers = {Header.RUN_ID: run_id, Header.CONTENT_TYPE: "application/msgpack"}
            body = pack_inputs({"text": run_id})
            try:
                await js.publish(submit(DEFAULT_TENANT, "chain"), body, headers=headers)
            except (NatsError, TimeoutError):
                await asyncio.sleep(0.05)
                continue
            self.acknowledged.add(run_id)


async def one_round(site: Site, cut: int) -> tuple[int, int]:
    """Return how many runs were acknowledged, and how many of them are gone."""
    nc = await nats.connect(
        site.url.split(","), reconnect_time_wait=0.05, max_reconnect_attempts=-1
    )
    load = Load(nc)
    try:
        await until(lambda: _deployed(nc), what="a deployed workflow", timeout_s=PATIENCE_S)
        for disk in site.disks:
            subprocess.run(["sync", "-f", str(disk.path)], check=True)  # noqa: ASYNC221, S603, S607
        async with asyncio.TaskGroup() as group:
            for _ in range(SUBMITTERS):
                group.create_task(load.submitter())
            await asyncio.sleep(LOAD_S)
            await asyncio.to_thread(_cut, site, cut)
            load.over.set()
        return len(load.acknowledged), await _gone(site.url, load.acknowledged)
    finally:
        await nc.close()


def _cut(site: Site, count: int) -> None:
    """Cut the power of some servers, kill every process, and start the servers again."""
    for disk in site.disks[:count]:
        disk.cut()
    for server in site.servers[:count]:
        server.kill()
    for service in site.mesh.services.values():
        service.signal(signal.SIGKILL)
    for disk in site.disks[:count]:
        disk.restore()
    if site.cluster is None:
        site.servers[0].start()
    else:
        site.cluster.start(site.servers[:count])


async def _passing(_: Exception) -> None:
    """Say nothing of lost connections: cutting them is the point."""


async def _deployed(nc: Nats) -> bool:
    """Deploy, unless the cluster is still making up its mind."""
    try:
        await deploy(nc.jetstream(), "chain", echo_chain(3))
    except (ClawdbotError, NatsError, TimeoutError):
        return False
    return True


async def _gone(url: str, acknowledged: set[str]) -> int:
    """Return how many runs are neither in the log nor waiting, even after a while."""
    missing = set(acknowledged)
    nc = await nats.connect(url.split(","), max_reconnect_attempts=-1, error_cb=_passing)

    async def read() -> bool:
        try:
            missing.difference_update(await _in_log(nc), await _in_queue(nc))
        except (ClawdbotError, NatsError, TimeoutError):
            return False
        return True

    async def none_missing() -> bool:
        return await read() and not missing  # a copy that is late may have been asked

    try:
        await until(read, what="streams that answer", timeout_s=PATIENCE_S)
        with contextlib.suppress(TimeoutError):
            await until(none_missing, what="the rest", timeout_s=LATE_S)
    finally:
        await nc.close()
    return len(missing)


async def _in_log(nc: Nats) -> set[str]:
    js = nc.jetstream(timeout=ASK_S)
    try:
        info = await js.stream_info(EVENTS, subjects_filter=every("event", "*.*"))
    except NotFoundError:
        return set()
    return {subject.rpartition(".")[2] for subject in info.state.subjects or {}}


async def _in_queue(nc: Nats) -> set[str]:
    try:
        await nc.jetstream(timeout=ASK_S).stream_info(COMMANDS)
    except NotFoundError:
        return set()
    waiting = await read_subject(nc, COMMANDS, every("submit", "*"))
    return {item.headers.get(Header.RUN_ID, "") for item in waiting}


def measure(servers: int, cut: int, sync_interval: str, rounds: int) -> dict[str, Any]:
    """Play some rounds of one setting."""
    counts = [_play(servers, cut, sync_interval) for _ in range(rounds)]
    return {
        "sync_interval": sync_interval,
        "servers": servers,
        "cut": cut,
        "rounds": rounds,
        "acknowledged": sum(acknowledged for acknowledged, _ in counts),
        "lost": sum(lost for _, lost in counts),
        "rounds_with_loss": sum(1 for _, lost in counts if lost),
        "lost_of": counts,
    }


def _play(servers: int, cut: int, sync_interval: str) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        disks = [stack.enter_context(Disk(folder / f"d{number}")) for number in range(servers)]
        stores = [disk.path / "store" for disk in disks]
        cluster = None
        if servers == 1:
            one = NatsServer(folder, store=stores[0], sync_interval=sync_interval)
            stack.enter_context(one)
            nodes, url = [one], one.url
        else:
            folders = [folder / f"n{number}" for number in range(servers)]
            for place in folders:
                place.mkdir()
            cluster = NatsCluster(folders, stores=stores, sync_interval=sync_interval)
            stack.enter_context(cluster)
            nodes, url = cluster.servers, cluster.url
        settings = {"replicas": str(servers), **dict.fromkeys(SIZES, LIMIT)}
        mesh = Mesh(folder / "mesh", url, settings)
        mesh.add_core()
        stack.callback(mesh.stop)
        mesh.start()
        return asyncio.run(one_round(Site(nodes, disks, mesh, url, cluster), cut))


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["| sync_interval | servers | lose power | rounds | acknowledged | lost | in rounds |"]
    lines.append("|---|---|---|---|---|---|---|")
    names = ("sync_interval", "servers", "cut", "rounds", "acknowledged", "lost")
    for row in rows:
        cells = [f"{row[name]:,}" if isinstance(row[name], int) else row[name] for name in names]
        lines.append(f"| {' | '.join(cells)} | {row['rounds_with_loss']} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every setting; the shipped one more often."""
    parser = argparse.ArgumentParser(prog="python -m bench.power", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="of the shipped setting")
    parser.add_argument("--other-rounds", type=int, default=3, help="of each other setting")
    asked = parser.parse_args()
    rows = []
    for sync_interval in SETTINGS:
        rounds = asked.rounds if sync_interval == SHIPPED else asked.other_rounds
        for servers, cut in CUTS:
            rows.append(measure(servers, cut, sync_interval, rounds))
            print(json.dumps(rows[-1]), flush=True)
    print(_table(rows), file=sys.stderr)


if __name__ == "__main__":
    main()

"""Full, slow and failing disks: clients are told at once, nothing is lost, all goes on."""

import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from clawdbot.mesh import Mesh, MeshOptions, running
from tests.support import faulty_disk as faulty
from tests.support.clients import Clients
from tests.support.disk import cannot_mount, small_disk
from tests.support.faulty_disk import faulty_disk


CANNOT = cannot_mount()
NO_FUSE = CANNOT or faulty.unusable()
pytestmark = [pytest.mark.nats, pytest.mark.timeout(240)]
DISK_MIB = 96
LEFT_BYTES = 512 * 1024
TEXT_BYTES = 8 * 1024
REFUSALS = 60
RUNS = 20
ANSWERED_S = 4.0
"""Twice `request_s_max`: the first to find out have waited that long."""
AT_ONCE_S = 1.0
SLOW_S, TOO_SLOW_S = 0.1, 5.0
"""What a flush takes: longer answers; longer than any submission may take."""


@asynccontextmanager
async def _up(folder: Path) -> AsyncIterator[Mesh]:
    """What `clawdbot up` runs, its server's files in `nats` below the folder."""
    options = MeshOptions(folder, http_port=0, nats_port=0)
    async with running(options, lambda _name, _line: None) as mesh:
        yield mesh


def _check_refusals(clients: Clients) -> None:
    assert {status for status, _ in clients.refused} <= {503, 507}
    seconds = [took for _, took in clients.refused]
    assert max(seconds) < ANSWERED_S
    assert statistics.quantiles(seconds, n=4)[2] < AT_ONCE_S, "most are told at once"


@pytest.mark.skipif(bool(CANNOT), reason=CANNOT)
async def test_a_full_disk(tmp_path: Path) -> None:
    """507 or 503 with Retry-After while it is full; then every accepted run completes."""
    with small_disk(tmp_path / "nats", DISK_MIB) as disk:
        async with _up(tmp_path) as mesh:
            clients = Clients(mesh.http_url, TEXT_BYTES)
            with clients.submitting():
                await clients.enough(RUNS)
                disk.fill(LEFT_BYTES)
                await clients.refusals(REFUSALS)
                disk.drop()
                await clients.enough(RUNS)
            _check_refusals(clients)
            await clients.all_complete()


@pytest.mark.slow
@pytest.mark.skipif(bool(NO_FUSE), reason=NO_FUSE)
@pytest.mark.parametrize("what", ["fsync", "write"])
async def test_a_disk_that_fails(tmp_path: Path, what: str) -> None:
    """503 while flushes or writes fail; then every accepted run completes."""
    with faulty_disk(tmp_path / "faulty", tmp_path / "nats") as disk:
        async with _up(tmp_path) as mesh:
            clients = Clients(mesh.http_url)
            with clients.submitting():
                await clients.enough(RUNS)
                disk.fail(what)
                await clients.refusals(REFUSALS)
                disk.mend()
                await clients.enough(RUNS)
            _check_refusals(clients)
            await clients.all_complete()


@pytest.mark.slow
@pytest.mark.skipif(bool(NO_FUSE), reason=NO_FUSE)
async def test_a_slow_disk(tmp_path: Path) -> None:
    """Answers take longer; past `request_s_max` they are 503; nothing accepted is lost."""
    with faulty_disk(tmp_path / "faulty", tmp_path / "nats") as disk:
        async with _up(tmp_path) as mesh:
            clients = Clients(mesh.http_url)
            with clients.submitting():
                await clients.enough(RUNS)
                usual_s = statistics.median(clients.took_s)
                disk.slow(SLOW_S)
                before = len(clients.took_s)
                await clients.enough(RUNS)
                slow_s = statistics.median(clients.took_s[before:])
                assert slow_s > usual_s
                disk.slow(TOO_SLOW_S)
                await clients.refusals(REFUSALS)
                disk.mend()
                await clients.enough(RUNS)
            _check_refusals(clients)
            await clients.all_complete()

"""Processes killed while a model is pushed, fetched or changed: nothing is ever half visible."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from nats.aio.client import Client as Nats

from clawdbot import Client
from events.keys import JetStreamKeyRing
from events.repository import Change, ModelRepository
from events.streams import StreamLimits, ensure
from schemas.catalogue import load
from schemas.errors import NotFound, RetryableError
from schemas.ids import DEFAULT_TENANT
from schemas.repository import PART_BYTES_MAX, ModelControl, ModelRecord, ModelVersion, Push
from tests.support import onnx_models as tiny
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats
MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
LARGE = 2 * PART_BYTES_MAX + 1000
KILLS = 4
WRITERS = 12


def large(folder: Path, name: str) -> Path:
    """Write a model of three parts, another one each time."""
    noise = os.urandom(LARGE)
    weight = tiny.helper.make_tensor("w", tiny.TensorProto.UINT8, [LARGE], noise, raw=True)
    node = tiny.helper.make_node("Identity", ["X"], ["Y"])
    ports = {"X": ("FP32", ("n", 2))}
    path = folder / f"{name}.onnx"
    tiny.save(tiny.model([node], ports, {"Y": ports["X"]}, [weight]), path)
    return path


@pytest.fixture(scope="module")
def mesh(nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A gateway and a worker."""
    extra = {"master_key": MASTER_TEXT}
    mesh = Mesh(tmp_path_factory.mktemp("mesh"), nats_server.url, extra)
    mesh.add("text", "services.workers", modality="text")
    mesh.add("gateway", "services.gateway", http_port="0")
    mesh.start()
    yield mesh
    mesh.stop()


def url(mesh: Mesh) -> str:
    """Return the gateway's address."""
    return f"http://127.0.0.1:{mesh.services['gateway'].fact('listening', 'port')}"


def revived(mesh: Mesh, name: str) -> None:
    """Start a service again."""
    mesh.services[name].start()
    mesh.services[name].wait_ready()


def check_whole(client: Client, name: str, folder: Path) -> int:
    """Pull every version there is, which compares every byte; return how many."""
    try:
        view = client.repository.get(name)
    except NotFound:
        return 0
    for version in view.versions:
        client.repository.pull(f"{name}@{version.version}", folder / f"{version.version}")
    return len(view.versions)


@pytest.mark.slow
def test_a_gateway_killed_in_the_middle_of_pushes(mesh: Mesh, tmp_path: Path) -> None:
    """What the index has is whole; the same push again becomes one version, whatever was lost."""
    chance = random.Random(4)
    path = large(tmp_path, "first")
    begun = time.monotonic()
    with Client(url(mesh)) as client:
        client.repository.push(path, "killed")
    usual_s = time.monotonic() - begun

    def push(at: str, source: Path) -> None:
        try:
            with Client(at) as client:
                client.repository.push(source, "killed")
        except RetryableError:
            pass  # its gateway was killed; it is pushed again below

    for number in range(KILLS):
        source = large(tmp_path, f"model-{number}")
        pushing = Thread(target=push, args=(url(mesh), source))
        pushing.start()
        pushing.join(timeout=usual_s * chance.random())
        mesh.services["gateway"].signal(signal.SIGKILL)
        revived(mesh, "gateway")
        pushing.join()
        with Client(url(mesh)) as client:
            have = check_whole(client, "killed", tmp_path / f"half-{number}")
            assert have in {number + 1, number + 2}
            client.repository.push(source, "killed")
            assert number + 2 == len(client.repository.get("killed").versions)


@pytest.mark.slow
def test_a_client_killed_in_the_middle_of_a_push(mesh: Mesh, tmp_path: Path) -> None:
    """Before the last request there is no such model; the parts it left are used the next time."""
    path = large(tmp_path, "broken")
    code = (
        "import sys, pathlib, clawdbot; from clawdbot.repository import Repository as R;"
        "c = clawdbot.Client(sys.argv[1]); do = c._do\n"
        "def one(call):\n"
        "    found = do(call); print('part', flush=True); input(); return found\n"
        "R(one).push(pathlib.Path(sys.argv[2]))"
    )
    pusher = subprocess.Popen(  # noqa: S603 - our own client
        [sys.executable, "-c", code, url(mesh), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert pusher.stdout is not None
        assert b"part\n" == pusher.stdout.readline()
    finally:
        pusher.kill()
        pusher.communicate()
    with Client(url(mesh)) as client:
        with pytest.raises(NotFound):
            client.repository.get("broken")
        assert "broken" not in [view.name for view in client.repository.list()]
        [pushed] = client.repository.push(path)
        assert (1, True) == (pushed.version, pushed.created)


@pytest.mark.slow
def test_a_worker_killed_while_it_fetches(mesh: Mesh, tmp_path: Path) -> None:
    """Its cache has whole versions only; damaged files are fetched again before they are used."""
    path = large(tmp_path, "fetched")
    cache = mesh.folder / "data" / "model-cache"
    mesh.services["text"].signal(signal.SIGKILL)
    with Client(url(mesh)) as client:
        client.repository.push(path)
        digest = client.repository.get("fetched").versions[0].digest

        def offered() -> bool:
            [version] = client.repository.get("fetched").versions
            return any(offer.available for offer in version.offers)

        mesh.services["text"].start()
        until_sync(lambda: list(cache.glob(".draft-*")), timeout_s=20)
        mesh.services["text"].signal(signal.SIGKILL)
        assert not (cache / digest).exists()
        revived(mesh, "text")
        until_sync(offered, timeout_s=20)
        assert path.read_bytes() == (cache / digest / "fetched.onnx").read_bytes()
        mesh.services["text"].signal(signal.SIGKILL)
        with (cache / digest / "fetched.onnx").open("r+b") as file:
            file.seek(1000)
            file.write(b"damaged")
        revived(mesh, "text")
        whole = path.read_bytes()
        until_sync(lambda: whole == _bytes(cache / digest / "fetched.onnx"), timeout_s=20)


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


async def insist(repository: ModelRepository, change: Change) -> ModelRecord:
    """Change the record, again when told that too many others do."""
    while True:
        try:
            return await repository.change(DEFAULT_TENANT, "raced", change)
        except RetryableError:
            continue


async def test_writers_of_one_record_lose_nothing(patient: Nats) -> None:
    """Every push gets a number of its own, and every order is obeyed, in some order."""
    await ensure(patient, StreamLimits())
    keys = JetStreamKeyRing(patient.jetstream(), bytes(32))
    spec = load().models["echo"]

    async def push(number: int) -> None:
        repository = ModelRepository(patient, keys)
        version = ModelVersion(version=0, digest=str(number), spec=spec, pushed_at=0.0)

        def change(record: ModelRecord) -> ModelRecord:
            numbered = version.model_copy(update={"version": record.next_version})
            return record.pushed(numbered, Push(spec=spec))

        record = await insist(repository, change)
        alias = ModelControl(action="alias", alias=f"a{number}", version=record.current)
        await insist(repository, lambda found: found.obey(alias))

    async with asyncio.TaskGroup() as group:
        for number in range(WRITERS):
            group.create_task(push(number))
    [record] = [
        found
        for found in await ModelRepository(patient, keys).records(DEFAULT_TENANT)
        if found.name == "raced"
    ]
    assert list(range(1, WRITERS + 1)) == [item.version for item in record.versions]
    assert WRITERS == len({item.digest for item in record.versions})
    assert {f"a{number}" for number in range(WRITERS)} == record.aliases.keys()
    assert 2 * WRITERS <= record.change

"""Damage to the log's files: noticed, alarmed, refused; never taken for a clean restart."""

import asyncio
import json
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import nats
import pytest
from nats.aio.client import Client as Nats
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError
from nats.js.errors import NotFoundError

from clawdbot import doctor
from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.marks import MarksFile
from events.streams import COMMANDS, DEAD, EVENTS, SUBMIT_CONSUMER, StreamLimits, ensure
from events.subjects import RunKey, control, part, submit
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.messages import Header
from schemas.submission import pack_inputs
from services.health import well
from tests.support.mesh import Mesh, Service
from tests.support.nats import NatsServer, server_binary
from tests.support.wait import until
from tests.support.workflows import deploy, echo_chain


pytestmark = [pytest.mark.nats, pytest.mark.timeout(120)]
MASTER = bytes(32)
MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
NOTICED_S = 30.0
FINISHED, OPEN, KILLS = 12, 4, 6
LIMITS = StreamLimits(events_bytes_max=2**28, blobs_bytes_max=2**28)


@dataclass
class Case:
    """A server, an orchestrator, and what was written through them."""

    server: NatsServer
    mesh: Mesh
    metrics: str
    nc: Nats
    keys: list[RunKey]

    @property
    def orchestrator(self) -> Service:
        """The first one."""
        return self.mesh.services["orchestrator-0"]

    @property
    def blocks(self) -> list[Path]:
        """The files that hold the log, oldest first."""
        folder = self.server.store_dir / "jetstream" / "$G" / "streams" / EVENTS / "msgs"
        return sorted(folder.glob("*.blk"), key=lambda path: int(path.stem))

    async def submit(self, key: RunKey) -> None:
        """Ask for a run until the server has acknowledged it."""
        headers = {Header.RUN_ID: key.run_id, Header.CONTENT_TYPE: "application/msgpack"}
        body = pack_inputs({"text": key.run_id})
        while True:
            try:
                js = self.nc.jetstream(timeout=1)
                await js.publish(submit(key.tenant, "chain"), body, headers=headers)
                return
            except (NatsError, JetStreamError, TimeoutError):
                await asyncio.sleep(0.05)

    async def write(self, count: int, *, finished: bool) -> list[RunKey]:
        """Start runs; nobody computes anything, so those that shall finish are called off."""
        keys = [RunKey(DEFAULT_TENANT, new_id()) for _ in range(count)]
        for key in keys:
            await self.submit(key)
        await self.commits(keys, 1)
        if finished:
            for key in keys:
                headers = {"content-type": "application/json"}
                body = json.dumps({"action": "cancel"}).encode()
                await self.nc.jetstream().publish(control(key), body, headers=headers)
            await self.commits(keys, 2)
        self.keys += keys
        return keys

    async def commits(self, keys: list[RunKey], count: int) -> None:
        """Wait until runs have so many commits."""
        store = self.store()

        left = set(keys)

        async def there() -> bool:
            for key in list(left):
                if len(await store.stored(key)) < count:
                    return False
                left.discard(key)
            return True

        await until(there, what=f"{count} commits of {len(keys)} runs", timeout_s=30)

    def store(self) -> JetStreamEventStore:
        """Return the log."""
        return JetStreamEventStore(self.nc, JetStreamKeyRing(self.nc.jetstream(), MASTER))

    async def last_sequence(self) -> int:
        """Return where the log ends; one that was deleted is made anew by the services."""
        found: list[int] = []

        async def is_there() -> bool:
            try:
                info = await self.nc.jetstream().stream_info(EVENTS)
            except NotFoundError:
                return False
            found.append(info.state.last_seq)
            return True

        await until(is_there, what="the log", timeout_s=10)
        return found[-1]

    async def waiting(self) -> int:
        """Return how many submissions wait in their queue."""
        return (await self.nc.jetstream().stream_info(COMMANDS)).state.messages

    async def marked(self) -> None:
        """Wait until the orchestrator has written down the whole log."""
        last = await self.last_sequence()
        file = MarksFile(self.mesh.folder / "data" / "history-orchestrator-0.json")

        async def written() -> bool:
            marks = file.read()
            return marks is not None and marks.sequence >= last

        await until(written, what="the marks")

    async def alarmed(self, event_name: str, name: str = "orchestrator-0") -> str:
        """Wait for an alarm; return its reason."""
        service = self.mesh.services[name]

        async def seen() -> bool:
            return bool(_lines(service, event_name))

        await until(seen, what=event_name, timeout_s=NOTICED_S)
        assert "critical" == _lines(service, event_name)[0]["level"]
        return str(_lines(service, event_name)[0]["reason"])

    def regressed(self, scope: str) -> float:
        """Return the metric."""
        text = httpx.get(self.metrics).text
        name = f'clawdbot_history_regressed{{scope="{scope}"}} '
        return float(next(line for line in text.splitlines() if line.startswith(name)).split()[1])


def _lines(service: Service, event_name: str) -> list[dict[str, object]]:
    text = service.log.read_text(errors="replace")
    return [json.loads(line) for line in text.splitlines() if f'"event":"{event_name}"' in line]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server whose store may be hurt."""
    if server_binary() is None:
        pytest.skip("there is no nats-server here")
    folder = tmp_path / "nats"
    folder.mkdir()
    with NatsServer(folder) as server:
        yield server


@pytest.fixture
async def case(server: NatsServer, tmp_path: Path) -> AsyncIterator[Case]:
    """A log of finished and open runs, marked to its end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nc = await nats.connect(server.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1)
    await ensure(nc, LIMITS)
    await deploy(nc.jetstream(), "chain", echo_chain(2))
    extra = {"master_key": MASTER_TEXT, "history_check_s": "1", "ack_wait_s": "2"}
    mesh = Mesh(tmp_path / "mesh", server.url, extra)
    mesh.add("orchestrator-0", "services.orchestrator", metrics_port=str(port))
    mesh.start()
    case = Case(server, mesh, f"http://127.0.0.1:{port}/metrics", nc, [])
    try:
        await case.write(FINISHED, finished=True)
        await case.write(OPEN, finished=False)
        await case.marked()
        yield case
    finally:
        try:
            mesh.stop()
        finally:
            await nc.close()


def flip(path: Path, offset: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def flip_the_middle(case: Case) -> None:
    """Flip a bit in the body of a commit in the middle of the newest file."""
    data = case.blocks[-1].read_bytes()
    record = data.index(b"clawdbot.v1", len(data) // 2)
    flip(case.blocks[-1], data.index(b"\r\n\r\n", record) + 20)


def flip_a_length(case: Case) -> None:
    """Flip a bit in the head of a record in the middle of the newest file."""
    data = case.blocks[-1].read_bytes()
    flip(case.blocks[-1], data.index(b"clawdbot.v1", len(data) // 2) - 20)


def flip_the_first_header(case: Case) -> None:
    """Flip a bit in the length of the first record."""
    flip(case.blocks[0], 1)


def truncate(case: Case) -> None:
    """Cut off the last bytes."""
    data = case.blocks[-1].read_bytes()
    case.blocks[-1].write_bytes(data[:-50])


def truncate_half(case: Case) -> None:
    """Cut off the second half."""
    data = case.blocks[-1].read_bytes()
    case.blocks[-1].write_bytes(data[: len(data) // 2])


def delete_the_file(case: Case) -> None:
    """Delete the newest file."""
    case.blocks[-1].unlink()


def delete_the_stream(case: Case) -> None:
    """Delete everything that belongs to the stream."""
    shutil.rmtree(case.blocks[0].parents[1])


DAMAGES = [
    flip_a_length,
    flip_the_first_header,
    truncate,
    truncate_half,
    delete_the_file,
    delete_the_stream,
]


async def refuses_everything(case: Case) -> None:
    """Check that the whole log is refused: a submission waits in its queue, nothing is written."""
    before = await case.last_sequence()
    await case.submit(RunKey(DEFAULT_TENANT, new_id()))

    async def held() -> bool:
        info = await case.nc.jetstream().consumer_info(COMMANDS, SUBMIT_CONSUMER)
        return bool(info.num_ack_pending == 1)

    await until(held, what="the delivery of a submission", timeout_s=20)
    assert (1.0, False) == (case.regressed("log"), well(case.metrics))
    assert (1, before) == (await case.waiting(), await case.last_sequence())


async def refuses_the_run(case: Case, damaged: RunKey) -> None:
    """Check that one run is refused, and that others go on."""
    held = [item.data for item in await case.store().stored(damaged)]
    js = case.nc.jetstream()
    buried = (await js.stream_info(DEAD)).state.messages
    await case.submit(damaged)

    async def refused() -> bool:
        return (await js.stream_info(DEAD)).state.messages > buried

    await until(refused, what="the refusal of a submission", timeout_s=20)
    assert held == [item.data for item in await case.store().stored(damaged)]
    assert (1.0, 0.0, True) == (case.regressed("runs"), case.regressed("log"), well(case.metrics))
    await case.write(1, finished=True)


@pytest.mark.parametrize("how", ["kill", pytest.param("stop", marks=pytest.mark.slow)])
@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_is_noticed_and_refused(
    case: Case, damage: Callable[[Case], None], how: str
) -> None:
    """Whatever was done to the files while the server was down, nobody writes on top of it."""
    getattr(case.server, how)()
    damage(case)
    case.server.start()
    assert "the event log" in await case.alarmed("history_regressed")
    await refuses_everything(case)


async def test_a_flipped_bit_after_a_clean_stop(case: Case) -> None:
    """The server trusts its index and leaves out that one commit, without a word."""
    case.server.stop()
    flip_the_middle(case)
    case.server.start()
    await case.alarmed("history_damaged")
    run_id = str(_lines(case.orchestrator, "history_damaged")[0]["run_id"])
    await refuses_the_run(case, RunKey(DEFAULT_TENANT, run_id))


async def test_an_older_copy_is_noticed_by_all_and_may_be_accepted(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One orchestrator's own file is enough for all to refuse; an operator's word ends it."""
    case.server.stop()
    shutil.copytree(case.server.store_dir, tmp_path / "copy")
    case.server.start()
    lost = await case.write(3, finished=False)
    await case.marked()
    case.server.kill()
    shutil.rmtree(case.server.store_dir)
    shutil.copytree(tmp_path / "copy", case.server.store_dir)
    case.server.start()
    assert "was seen" in await case.alarmed("history_regressed")
    newcomer = case.mesh.add("orchestrator-1", "services.orchestrator")
    gateway = case.mesh.add("gateway", "services.gateway", http_port="0")
    newcomer.start()
    gateway.start()
    await case.alarmed("history_regressed", "orchestrator-1")
    await refuses_everything(case)
    await asyncio.to_thread(gateway.wait_ready)
    readyz = f"http://127.0.0.1:{gateway.fact('listening', 'port')}/readyz"
    assert (503, True) == (ask(readyz).status_code, "; submissions wait" in ask(readyz).text)

    monkeypatch.setenv("CLAWDBOT_NATS_URL", case.server.url)
    findings = {finding.subject: finding for finding in await asyncio.to_thread(examine)}
    assert "fail" == findings["history"].level
    accepted = await asyncio.to_thread(doctor.accept_history)
    assert "it was refused: the event log ends at" in accepted.text

    async def taken_up() -> bool:
        return await case.waiting() == 0

    await until(taken_up, what="the submission that had to wait", timeout_s=NOTICED_S)
    await case.submit(lost[0])
    await case.commits(lost[:1], 1)
    assert (0.0, 200) == (case.regressed("log"), ask(readyz).status_code)
    findings = {finding.subject: finding for finding in await asyncio.to_thread(examine)}
    assert "ok" == findings["history"].level


def ask(url: str) -> httpx.Response:
    """Return an answer."""
    return httpx.get(url)


def examine() -> list[doctor.Finding]:
    """Return what the doctor says of the bus."""
    return doctor.examine("http://127.0.0.1:1")


@pytest.mark.slow
async def test_the_right_copy_ends_the_alarm(case: Case, tmp_path: Path) -> None:
    """Once the log holds again what was seen of it, work goes on by itself."""
    case.server.stop()
    shutil.copytree(case.server.store_dir, tmp_path / "copy")
    truncate_half(case)
    case.server.start()
    await case.alarmed("history_regressed")
    case.server.stop()
    shutil.rmtree(case.server.store_dir)
    shutil.copytree(tmp_path / "copy", case.server.store_dir)
    case.server.start()
    await case.write(1, finished=True)
    assert 0.0 == case.regressed("log")


async def test_a_stream_deleted_under_way_is_noticed(case: Case) -> None:
    """Without any restart: the stream that takes its place is another one."""
    js = case.nc.jetstream()
    await js.delete_stream(EVENTS)
    await case.alarmed("history_regressed")
    await ensure(case.nc, LIMITS)
    await refuses_everything(case)


async def test_a_run_that_lost_its_end_is_refused(case: Case) -> None:
    """What is left is a sound beginning; only what was seen of the run tells."""
    key = case.keys[0]
    twin = new_id()
    while part(twin) != part(key.run_id):  # or the lost commit is the one that is marked
        twin = new_id()
    await case.submit(RunKey(DEFAULT_TENANT, twin))
    await case.commits([RunKey(DEFAULT_TENANT, twin)], 1)
    await case.marked()
    last = (await case.store().stored(key))[-1]
    await case.nc.jetstream().delete_msg(EVENTS, last.sequence)
    case.orchestrator.signal(signal.SIGKILL)
    case.orchestrator.start()
    assert "ends after commit 1; 2 were seen" in await case.alarmed("history_damaged")
    await refuses_the_run(case, key)


def assert_no_alarm(case: Case) -> None:
    """Check that nobody was even suspicious."""
    for name in ("history_suspected", "history_regressed", "history_damaged"):
        assert [] == _lines(case.orchestrator, name)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "restart"])
async def test_restarts_are_no_alarm(case: Case, how: str) -> None:
    """Under load the server ends again and again, with or without warning: nobody is suspicious."""
    done = asyncio.Event()
    keys: list[RunKey] = []

    async def load() -> None:
        while not done.is_set():
            keys.append(RunKey(DEFAULT_TENANT, new_id()))
            await case.submit(keys[-1])

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(load())
        for _ in range(KILLS):
            await asyncio.sleep(0.7)
            if how == "kill":
                await asyncio.to_thread(case.server.kill)
                await asyncio.to_thread(case.server.start)
            else:
                await asyncio.to_thread(case.server.restart)
        done.set()
    await case.commits(keys, 1)
    await case.marked()
    case.orchestrator.signal(signal.SIGKILL)
    case.orchestrator.start()
    await case.write(1, finished=True)
    assert_no_alarm(case)
    assert len(keys) > KILLS


async def test_retirement_is_no_alarm(case: Case) -> None:
    """A purged run leaves its tombstone, and that is as good as the commit that was marked."""
    for key in case.keys[:FINISHED]:
        store = case.store()
        await store.retire(key, (await store.load(key)).head, 1.0)
    case.server.restart()
    await case.write(1, finished=True)
    case.orchestrator.signal(signal.SIGKILL)
    case.orchestrator.start()
    await case.write(1, finished=True)
    with pytest.raises(NotFoundError):
        await case.nc.jetstream().get_msg(EVENTS, 1)
    assert_no_alarm(case)

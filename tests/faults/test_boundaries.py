"""A process is killed the moment a commit is stored: at every boundary between events of a run."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.subjects import RunKey, live, submit
from schemas.errors import RetryableError
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.messages import Header
from schemas.submission import pack_inputs
from tests.support.checker import Submission, check, recorded
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer
from tests.support.play import control, graph, model
from tests.support.wait import until
from tests.support.workflows import deploy


pytestmark = pytest.mark.nats

MASTER = bytes(32)
MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
SMALL = {"events_bytes_max": "268435456", "blobs_bytes_max": "268435456"}
OUTPUTS = {"end": {"text": "x!"}}
COMMITS_MIN = 8


def winding() -> dict[str, object]:
    """Return a workflow that is stored in many commits: a node, a list, a try, a wait, a choice."""
    definition = graph(
        model("a", "input.text"),
        control(
            "each",
            "foreach",
            items='["p", "q"]',
            max_parallel=1,
            body=graph(model("say", "input.item")),
        ),
        control(
            "guard",
            "try",
            body=graph(model("work", "run.text")),
            finally_=graph(model("tidy", '"tidied"')),
        ),
        control("wait", "delay", seconds=0.05),
        control("route", "switch", cases={"two": "each.count == 2"}, default="other"),
        model("end", 'a.text + "!"'),
        model("never", '"never"'),
        edges="a>each each>guard guard>wait wait>route",
    )
    definition["edges"] += [
        {"source": "route", "target": "end", "case": "two"},
        {"source": "route", "target": "never", "case": "other"},
    ]
    return definition


@pytest.fixture
def mesh(nats_server: NatsServer, tmp_path: Path) -> Iterator[Mesh]:
    """One of each; the worker hands in each result by itself."""
    extra = {"ack_wait_s": "1", "master_key": MASTER_TEXT, "chain_ms": "0", **SMALL}
    mesh = Mesh(tmp_path, nats_server.url, extra)
    mesh.add_core()
    mesh.start()
    yield mesh
    mesh.stop()


async def run_and_kill(
    nc: Nats, mesh: Mesh, server: NatsServer, victim: str, boundary: int
) -> tuple[RunKey, int]:
    """Run once; kill the victim when commit number `boundary` is stored.

    Returns:
        The run, and how many commits it has in the end; 0 for `boundary` kills nobody.
    """
    key, seen, reached = RunKey(DEFAULT_TENANT, new_id()), [0], asyncio.Event()

    async def on_commit(_: Msg) -> None:
        seen[0] += 1
        if seen[0] == boundary:
            if victim == "nats-server":
                server.kill()
            else:
                mesh.services[victim].signal(signal.SIGKILL)
            reached.set()

    subscription = await nc.subscribe(live(key), cb=on_commit)
    await nc.flush()
    headers = {Header.RUN_ID: key.run_id, Header.CONTENT_TYPE: "application/msgpack"}
    body = pack_inputs({"text": "x"})
    await nc.jetstream().publish(submit(key.tenant, "winding"), body, headers=headers)
    if boundary:
        await asyncio.wait_for(reached.wait(), 30)
        if victim == "nats-server":
            await asyncio.to_thread(server.start)
        else:
            mesh.services[victim].start()
    store = JetStreamEventStore(nc, JetStreamKeyRing(nc.jetstream(), MASTER))

    async def over() -> bool:
        try:
            state = (await store.load(key)).state()
        except RetryableError:
            return False
        return state is not None and state.terminal

    await until(over, what=f"the end after {victim} died at commit {boundary}", timeout_s=40)
    await subscription.unsubscribe()
    return key, (await store.head(key)).version


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "victim",
    [
        "orchestrator-0",
        pytest.param("text-0", marks=pytest.mark.slow),
        pytest.param("nats-server", marks=pytest.mark.slow),
    ],
)
async def test_a_death_at_any_commit_changes_nothing(
    mesh: Mesh, nats_server: NatsServer, patient: Nats, victim: str
) -> None:
    """The run ends as if nobody had died, whichever commit was the last thing it saw."""
    await deploy(patient.jetstream(), "winding", winding())
    undisturbed, commits = await run_and_kill(patient, mesh, nats_server, victim, 0)
    assert commits >= COMMITS_MIN
    keys = [undisturbed]
    for boundary in range(1, commits):
        key, _ = await run_and_kill(patient, mesh, nats_server, victim, boundary)
        keys.append(key)
    store = JetStreamEventStore(patient, JetStreamKeyRing(patient.jetstream(), MASTER))
    told = [Submission(key.run_id, "winding", {"text": "x"}, True, OUTPUTS) for key in keys]
    assert [] == check(await recorded(store, keys), told)

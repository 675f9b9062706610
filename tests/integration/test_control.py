"""A run that is under way can be called off over NATS."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client as Nats

from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.state import RunState
from events.subjects import RunKey, control, submit
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.messages import Header
from schemas.submission import pack_inputs
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer
from tests.support.wait import until
from tests.support.workflows import deploy, echo_chain


pytestmark = pytest.mark.nats
MASTER = bytes(32)
MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


@pytest.fixture
def orchestrator(nats_server: NatsServer, tmp_path: Path) -> Iterator[Mesh]:
    """One orchestrator and no worker: runs start and wait."""
    mesh = Mesh(tmp_path, nats_server.url, {"master_key": MASTER_TEXT})
    mesh.add("orchestrator", "services.orchestrator")
    mesh.start()
    yield mesh
    mesh.stop()


async def test_cancel_ends_a_run_and_a_malformed_control_message_ends_nothing(
    orchestrator: Mesh, nc: Nats
) -> None:
    """A cancel is recorded with its reason; what cannot be read is dropped and said."""
    js = nc.jetstream()
    await deploy(js, "chain", echo_chain(2))
    store = JetStreamEventStore(nc, JetStreamKeyRing(js, MASTER))
    key = RunKey(DEFAULT_TENANT, new_id())

    async def state() -> RunState | None:
        return (await store.load(key)).state()

    async def started() -> bool:
        return await state() is not None

    async def over() -> bool:
        found = await state()
        return found is not None and found.terminal

    headers = {Header.RUN_ID: key.run_id, Header.CONTENT_TYPE: "application/msgpack"}
    await js.publish(submit(key.tenant, "chain"), pack_inputs({"text": "hi"}), headers=headers)
    await until(started, what="the start of the run")
    kind = {"content-type": "application/json"}
    for body in (b"not json", b'{"action":"explode"}'):
        await js.publish(control(key), body, headers=kind)
    cancel = json.dumps({"action": "cancel", "reason": "enough"}).encode()
    await js.publish(control(key), cancel, headers=kind)
    await until(over, what="the end of the run")
    found = await state()
    assert found is not None
    assert found.status == "cancelled"
    assert "explode" in orchestrator.services["orchestrator"].log.read_text()


@pytest.mark.usefixtures("orchestrator")
async def test_nats_micro_sees_the_orchestrator(nc: Nats) -> None:
    """By name, although it takes no requests."""
    answer = await nc.request("$SRV.INFO.clawdbot-orchestrator", b"", timeout=5)
    assert "orchestrator" in json.loads(answer.data)["metadata"]["instance"]

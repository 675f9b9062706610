"""A tenant that floods a queue does not keep another one waiting; measured beside no sharing."""

import asyncio
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client as Nats

from events.jetstream import JetStreamEventStore
from events.keys import JetStreamKeyRing
from events.state import RunState
from events.subjects import RunKey, submit
from schemas.ids import new_id
from schemas.messages import Header
from schemas.submission import pack_inputs
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer
from tests.support.wait import until
from tests.support.workflows import deploy


pytestmark = pytest.mark.nats

MASTER = bytes(32)
MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
FLOOD, OTHERS = 200, 5
WORDS = " ".join(["weather"] * 60)
"""Something to say that keeps an engine busy for a moment."""


SPEECH = {"nodes": [{"id": "say", "type": "model", "params": {"model": "espeak-ng"}}]}
"""A workflow that speaks."""


async def start(nc: Nats, key: RunKey) -> None:
    """Submit a run."""
    headers = {Header.RUN_ID: key.run_id, Header.CONTENT_TYPE: "application/msgpack"}
    await nc.jetstream().publish(
        submit(key.tenant, "say"), pack_inputs({"text": WORDS}), headers=headers
    )


async def flooded(folder: Path, **settings: str) -> dict[str, Any]:
    """Let one tenant ask for much and another for little; return how long the other waited."""
    folder.mkdir()  # noqa: ASYNC240 - a test has the loop for itself
    with NatsServer(folder) as server:
        mesh = Mesh(folder / "mesh", server.url, {"master_key": MASTER_TEXT})
        mesh.add("orchestrator", "services.orchestrator", **settings)
        mesh.add("audio", "services.workers", modality="audio")
        mesh.start()
        nc = await nats.connect(server.url)
        store = JetStreamEventStore(nc, JetStreamKeyRing(nc.jetstream(), MASTER))

        async def state(key: RunKey) -> RunState | None:
            return (await store.load(key)).state()

        async def ended(key: RunKey) -> bool:
            found = await state(key)
            return found is not None and found.terminal

        try:
            for tenant in ("loud", "quiet"):
                await deploy(nc.jetstream(), "say", SPEECH, tenant)
            flood = [RunKey("loud", new_id()) for _ in range(FLOOD)]
            async with asyncio.TaskGroup() as group:
                for key in flood:
                    group.create_task(start(nc, key))
            await until(lambda: ended(flood[0]), what="the beginning of the flood", timeout_s=30)
            waits = []
            for _ in range(OTHERS):
                key = RunKey("quiet", new_id())
                await start(nc, key)
                await until(lambda key=key: ended(key), what="a quiet run", timeout_s=90)  # type: ignore[misc]
                found = await state(key)
                assert found is not None
                assert "completed" == found.status
                waits.append(found.updated_at - found.started_at)
            left = sum([not await ended(key) for key in flood])
            return {"waits_s": [round(wait, 2) for wait in waits], "left_of_the_flood": left}
        finally:
            await nc.close()
            mesh.stop()


@pytest.mark.timeout(240)
async def test_a_flood_does_not_starve_others(tmp_path: Path) -> None:
    """Who asks for little waits for a part of what the flood takes, not for all of it."""
    fair = await flooded(tmp_path / "fair", share_tasks_min="4", share_s="0.5")
    unfair = await flooded(tmp_path / "unfair", share_tasks_min="100000")
    print(f"fair {fair}, unfair {unfair}")  # noqa: T201 - the figures
    assert sorted(fair["waits_s"])[2] < unfair["waits_s"][0] / 2
    assert fair["left_of_the_flood"] > 0

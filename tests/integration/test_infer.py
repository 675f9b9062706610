"""Unlogged inference straight over NATS, as `nats request` does it."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client as Nats

from events.subjects import infer
from schemas.ids import DEFAULT_TENANT
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer


pytestmark = pytest.mark.nats
MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


@pytest.fixture
def mesh(nats_server: NatsServer, tmp_path: Path) -> Iterator[Mesh]:
    """One text worker."""
    mesh = Mesh(tmp_path, nats_server.url, {"master_key": MASTER_TEXT})
    mesh.add("text", "services.workers", modality="text", infer_queue_max="4")
    mesh.start()
    yield mesh
    mesh.stop()


@pytest.mark.usefixtures("mesh")
async def test_infer_answers_refuses_and_is_seen_by_nats_micro(nc: Nats) -> None:
    """Good bodies are answered, bad ones named, more than the queue holds refused with 503."""
    subject = infer(DEFAULT_TENANT, "text", "echo")
    good_body = b'{"inputs":{"text":"hi"}}'
    good = await nc.request(subject, good_body, timeout=5)
    assert json.loads(good.data) == {"outputs": {"text": "hi"}, "model": "echo"}

    for body, word in ((b"{", "JSON"), (b'{"inputs":{}}', "text"), (b'{"inputs":7}', "inputs")):
        bad = await nc.request(subject, body, timeout=5)
        assert bad.headers is not None
        assert bad.headers["Nats-Service-Error-Code"] == "400"
        assert word in bad.headers["Nats-Service-Error"]
    unknown = await nc.request(infer(DEFAULT_TENANT, "text", "nope"), b"{}", timeout=5)
    assert unknown.headers is not None
    assert "nope" in unknown.headers["Nats-Service-Error"]

    busy = infer(DEFAULT_TENANT, "text", "intent-small")
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(nc.request(busy, good_body, timeout=10)) for _ in range(200)]
    codes = [(task.result().headers or {}).get("Nats-Service-Error-Code") for task in asked]
    assert set(codes) == {None, "503"}

    found = await nc.request("$SRV.INFO.clawdbot-worker-text", b"", timeout=5)
    info = json.loads(found.data)
    assert [endpoint["name"] for endpoint in info["endpoints"]] == ["infer"]
    stats = json.loads((await nc.request("$SRV.STATS.clawdbot-worker-text", b"", timeout=5)).data)
    assert stats["endpoints"][0]["num_requests"] >= 205

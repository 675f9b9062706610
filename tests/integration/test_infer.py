"""Unlogged inference straight over NATS, as `nats request` does it."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from events.subjects import infer
from schemas.api import ErrorBody
from schemas.ids import DEFAULT_TENANT
from tests.support.mesh import Mesh
from tests.support.nats import NatsServer


pytestmark = pytest.mark.nats
MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


@pytest.fixture(scope="module")
def mesh(nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One text worker."""
    mesh = Mesh(tmp_path_factory.mktemp("mesh"), nats_server.url, {"master_key": MASTER_TEXT})
    mesh.add("text", "services.workers", modality="text", infer_queue_max="4")
    mesh.start()
    yield mesh
    mesh.stop()


def error_of(answer: Msg) -> tuple[str, str | None]:
    """Return status and field of a refusal, whose body has the one shape of every error."""
    assert answer.headers is not None
    fault = ErrorBody.model_validate_json(answer.data).error
    assert answer.headers["Nats-Service-Error"] == fault.message
    return answer.headers["Nats-Service-Error-Code"], fault.field


async def figures(nc: Nats) -> dict[str, Any]:
    """Return what `nats micro stats` shows of the worker's endpoint."""
    answer = await nc.request("$SRV.STATS.clawdbot-worker-text", b"", timeout=5)
    found: dict[str, Any] = json.loads(answer.data)["endpoints"][0]
    return found


@pytest.mark.usefixtures("mesh")
async def test_infer_takes_json_and_raw_bodies(nc: Nats) -> None:
    """As submit does: `{"inputs": ...}`, or the one input itself under its content type."""
    subject = infer(DEFAULT_TENANT, "text", "echo")
    headers = {"Content-Type": "text/plain"}
    for body, kind in ((b'{"inputs":{"text":"hi"}}', None), (b"hi", headers)):
        good = await nc.request(subject, body, timeout=5, headers=kind)
        assert json.loads(good.data) == {"outputs": {"text": "hi"}, "model": "echo"}


@pytest.mark.usefixtures("mesh")
@pytest.mark.parametrize(
    ("model", "body", "status", "field"),
    [
        ("echo", b"{", "400", "body"),
        ("echo", b'{"inputs":{}}', "400", "inputs.text"),
        ("echo", b'{"inputs":7}', "400", "inputs"),
        ("echo", b'{"inputs":{"text":7}}', "400", "inputs.text"),
        ("echo", b'{"inputs":{"text":"a","x":7}}', "400", "inputs.x"),
        ("no.such/model", b"{}", "404", "model"),
    ],
)
async def test_infer_refuses_and_names_the_field(
    nc: Nats, model: str, body: bytes, status: str, field: str
) -> None:
    """A status as over HTTP, a message, the field."""
    answer = await nc.request(infer(DEFAULT_TENANT, "text", model), body, timeout=5)
    assert (status, field) == error_of(answer)


@pytest.mark.usefixtures("mesh")
async def test_infer_refuses_a_token_that_is_no_name(nc: Nats) -> None:
    """A client that encodes names by itself may get it wrong."""
    answer = await nc.request(f"{infer(DEFAULT_TENANT, 'text', 'a')}=ff", b"{}", timeout=5)
    assert ("400", "subject") == error_of(answer)


async def test_a_full_queue_answers_503_and_nats_micro_sees_it(nc: Nats, mesh: Mesh) -> None:
    """STATS counts the refusals and the time that inference took; each request has its line."""
    busy = infer(DEFAULT_TENANT, "text", "intent-small")
    body = b'{"inputs":{"text":"hi"}}'
    ours = {"ce-correlationid": "ours"}
    before = await figures(nc)
    async with asyncio.TaskGroup() as group:
        asked = [
            group.create_task(nc.request(busy, body, timeout=10, headers=ours)) for _ in range(200)
        ]
    codes = [(task.result().headers or {}).get("Nats-Service-Error-Code") for task in asked]
    assert {None, "503"} == set(codes)

    info = json.loads((await nc.request("$SRV.INFO.clawdbot-worker-text", b"", timeout=5)).data)
    assert ["infer"] == [endpoint["name"] for endpoint in info["endpoints"]]
    after = await figures(nc)
    grown = [after[name] - before[name] for name in ("num_requests", "num_errors")]
    assert [200, codes.count("503")] == grown
    assert after["last_error"].startswith("503:")
    lines = [
        json.loads(line)
        for line in mesh.services["text"].log.read_text().splitlines()
        if '"correlation_id":"ours"' in line
    ]
    assert 200 == len(lines)
    handled_ms = sum(line["handle_ms"] for line in lines)
    busy_ms = (after["processing_time"] - before["processing_time"]) / 1e6
    assert pytest.approx(handled_ms, rel=0.01) == busy_ms

"""Runs asked for straight over NATS, with no SDK: publish, JetStream's ack, then the run."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest
from nats.js import JetStreamContext

from clawdbot import AsyncClient
from events.subjects import submit
from schemas.ids import DEFAULT_TENANT, new_id
from tests.integration.conftest import Running
from tests.support.wait import until


pytestmark = pytest.mark.nats
WEATHER = Path(__file__).resolve().parents[2] / "examples" / "voice_assistant" / "weather.wav"
HI = b'{"inputs":{"text":"hi"}}'


def definition(model: str) -> dict[str, Any]:
    """Return a workflow of one node."""
    return {"nodes": [{"id": "a", "type": "model", "params": {"model": model}}]}


@pytest.fixture
def deployed(http: httpx.Client) -> None:
    """`submit_echo` and `submit_hear`."""
    for name, model in (("submit_echo", "echo"), ("submit_hear", "pocketsphinx")):
        document = {"name": name, "definition": definition(model)}
        assert http.post("/v1/workflows", json=document).is_success


@pytest.fixture
async def js(running: Running, deployed: None) -> AsyncIterator[JetStreamContext]:
    """A client that knows nothing of clawdbot."""
    connection = await nats.connect(running.server.url)
    yield connection.jetstream()
    await connection.close()


async def ended(running: Running, run_id: str) -> dict[str, Any]:
    """Wait for a run's end and return it."""
    found: dict[str, Any] = {}

    async def over() -> bool:
        answer = await client.get(f"/v1/runs/{run_id}")
        found.update(answer.json())
        return answer.is_success and found["status"] not in {"accepted", "running"}

    async with httpx.AsyncClient(base_url=running.url()) as client:
        await until(over, what=f"the end of {run_id}", timeout_s=30)
    return found


async def test_the_ack_names_the_run(running: Running, js: JetStreamContext) -> None:
    """Without an id of one's own the run's id is the stream's name and the sequence of the ack."""
    ack = await js.publish(submit(DEFAULT_TENANT, "submit_echo"), HI)
    run = await ended(running, f"{ack.stream}-{ack.seq}")
    assert {"a": {"text": "hi"}} == run["outputs"]


async def test_an_id_of_ones_own_is_one_run(running: Running, js: JetStreamContext) -> None:
    """Sent again it is the same run; other inputs under its name change nothing."""
    run_id = new_id()
    headers = {"Clawdbot-Run-Id": run_id, "ce-correlationid": "ours"}
    for body in (HI, HI, b'{"inputs":{"text":"other"}}'):
        await js.publish(submit(DEFAULT_TENANT, "submit_echo"), body, headers=headers)
    last = await js.publish(submit(DEFAULT_TENANT, "submit_echo"), HI)
    await ended(running, f"{last.stream}-{last.seq}")
    run = await ended(running, run_id)
    assert ({"a": {"text": "hi"}}, "ours") == (run["outputs"], run["correlation_id"])


async def test_sound_is_sent_raw_or_by_reference(running: Running, js: JetStreamContext) -> None:
    """Bytes with their content type, or a blob uploaded before."""
    subject, sound = submit(DEFAULT_TENANT, "submit_hear"), WEATHER.read_bytes()
    async with AsyncClient(running.url()) as client:
        blob = await client.put_blob(sound, "audio/wav")
    by_reference = json.dumps({"inputs": {"audio": {"$blob": blob.model_dump()}}}).encode()
    for body, kind in ((sound, "audio/wav"), (by_reference, "application/json")):
        ack = await js.publish(subject, body, headers={"Content-Type": kind})
        run = await ended(running, f"{ack.stream}-{ack.seq}")
        assert "how is the weather" == run["outputs"]["a"]["text"]


@pytest.mark.parametrize(
    ("workflow", "body", "headers", "refusal"),
    [
        ("nowhere", HI, {}, ("NOT_FOUND", "workflow")),
        ("submit_echo", b"{", {}, ("INVALID_ARGUMENT", "body")),
        ("submit_echo", b"[]", {}, ("INVALID_ARGUMENT", "inputs")),
        ("submit_echo", b'{"text":"hi"}', {}, ("INVALID_ARGUMENT", "text")),
        ("submit_echo", b'{"inputs":{}}', {}, ("INVALID_ARGUMENT", "inputs.text")),
        ("submit_echo", HI, {"Clawdbot-Version": "99"}, ("NOT_FOUND", "version")),
        ("submit_echo", HI, {"Clawdbot-Version": "new"}, ("INVALID_ARGUMENT", "Clawdbot-Version")),
        ("submit_echo", HI, {"Clawdbot-Run-Id": "a.b"}, ("INVALID_ARGUMENT", "Clawdbot-Run-Id")),
        ("submit_echo", b"\xff", {"Content-Type": "text/plain"}, ("INVALID_ARGUMENT", "body")),
        ("submit_echo", b"x", {"Content-Type": "so so"}, ("INVALID_ARGUMENT", "Content-Type")),
    ],
)
async def test_what_cannot_work_is_a_rejected_run(
    running: Running,
    js: JetStreamContext,
    workflow: str,
    body: bytes,
    headers: dict[str, str],
    refusal: tuple[str, str],
) -> None:
    """It was acknowledged, so the answer is in the log, under the id that the ack tells."""
    ack = await js.publish(submit(DEFAULT_TENANT, workflow), body, headers=headers)
    run = await ended(running, f"{ack.stream}-{ack.seq}")
    assert ("rejected", *refusal) == (run["status"], run["error"]["code"], run["error"]["field"])

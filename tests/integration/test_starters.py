"""Runs that nobody submits: schedules fire, messages trigger."""

import json
from typing import Any

import httpx
import nats

from events.subjects import topic
from schemas.ids import DEFAULT_TENANT, new_id
from tests.integration.conftest import Running
from tests.support.play import control, graph, model
from tests.support.wait import until_sync


def deploy(http: httpx.Client, definition: dict[str, Any], **rest: Any) -> str:
    """Deploy under a name of its own."""
    name = f"starts_{new_id().lower()}"
    answer = http.post("/v1/workflows", json={"name": name, "definition": definition, **rest})
    assert answer.is_success, answer.text
    return name


def runs_of(http: httpx.Client, name: str) -> list[dict[str, Any]]:
    """Return the runs of a workflow, newest first."""
    found: list[dict[str, Any]] = http.get("/v1/runs", params={"workflow": name}).json()["runs"]
    return found


def texts_of(http: httpx.Client, name: str) -> set[str]:
    """Return what the runs of a workflow were given."""
    ids = [run["run_id"] for run in runs_of(http, name)]
    return {http.get(f"/v1/runs/{run_id}").json()["inputs"]["text"] for run_id in ids}


def test_a_schedule_starts_runs_until_it_is_gone(running: Running, http: httpx.Client) -> None:
    """Every second; a version without it ends it."""
    schedules = {"tick": {"cron": "@every 1s", "inputs": {"text": "tick"}}}
    name = deploy(http, graph(model("a")), schedules=schedules)
    until_sync(lambda: len(runs_of(http, name)) >= 2, timeout_s=15)
    run = http.get(f"/v1/runs/{runs_of(http, name)[-1]['run_id']}").json()
    assert run["inputs"] == {"text": "tick"}
    http.post("/v1/workflows", json={"name": name, "definition": graph(model("a"))})
    count = len(runs_of(http, name))
    probe = deploy(http, graph(model("a")), schedules=schedules)
    until_sync(lambda: len(runs_of(http, probe)) >= 3, timeout_s=15)
    assert len(runs_of(http, name)) <= count + 1
    http.post("/v1/workflows", json={"name": probe, "definition": graph(model("a"))})


async def test_a_message_starts_a_run_of_who_listens(running: Running, http: httpx.Client) -> None:
    """From a client without SDK; patterns and expressions decide what becomes of it."""
    triggers = {"order": {"subject": "orders.*.new", "inputs": {"text": "event.payload.item"}}}
    name = deploy(http, graph(model("a")), triggers=triggers)
    nc = await nats.connect(running.server.url)
    try:
        for subject, body in (
            ("orders.eu.new", b'{"item": "book"}'),
            ("orders.eu.old", b'{"item": "nothing"}'),
            ("orders.us.new", b"not JSON"),
            ("orders.us.new", b'{"item": "pen"}'),
        ):
            await nc.jetstream().publish(topic(DEFAULT_TENANT, subject), body)
    finally:
        await nc.close()
    until_sync(lambda: len(runs_of(http, name)) == 2, timeout_s=15)
    assert texts_of(http, name) == {"book", "pen"}


def test_one_workflow_starts_another(running: Running, http: httpx.Client) -> None:
    """What an `emit` node says, another workflow hears."""
    subject = f"said.{new_id().lower()}"
    listener = deploy(http, graph(model("b")), triggers={"heard": {"subject": subject}})
    say = {**control("out", "emit", subject=subject), "inputs": {"payload": '= {"text": a.text}'}}
    speaker = deploy(http, graph(model("a"), say, edges="a>out"))
    answer = http.post(f"/v1/workflows/{speaker}/runs?wait=20", json={"inputs": {"text": "hi"}})
    assert answer.json()["status"] == "completed", answer.text
    until_sync(lambda: len(runs_of(http, listener)) == 1, timeout_s=15)


def test_what_cannot_start_anything_is_refused(running: Running, http: httpx.Client) -> None:
    """With the field."""
    for rest, field in (
        ({"schedules": {"x": {"cron": "now and then"}}}, "schedules.x.cron"),
        ({"schedules": {"x": {"cron": "99 99 * * *"}}}, "schedules.x.cron"),
        ({"triggers": {"x": {"subject": "a..b"}}}, "triggers.x.subject"),
        ({"triggers": {"x": {"subject": "a", "inputs": {"t": "run.x"}}}}, "triggers.x.inputs.t"),
    ):
        body = {"name": "bad_start", "definition": graph(model("a")), **rest}
        answer = http.post("/v1/workflows", json=body)
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, field), json.dumps(
            answer.json()
        )

"""The HTTP API and `call`, against a whole mesh."""

import base64
import itertools
import json
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest

from clawdbot import Client
from events.subjects import call, submit
from schemas.ids import DEFAULT_TENANT, new_id
from schemas.messages import Header
from tests.integration.conftest import GATEWAYS, Running
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ECHO = {"id": "a", "type": "model", "params": {"model": "echo"}}


def deploy(http: httpx.Client, *nodes: dict[str, Any], name: str = "", **rest: Any) -> str:
    """Deploy nodes as a chain under a name of its own; return the name."""
    name = name or f"w-{new_id()}"
    ids = [node["id"] for node in nodes]
    edges = [{"source": left, "target": right} for left, right in itertools.pairwise(ids)]
    definition = {"nodes": list(nodes), "edges": edges}
    answer = http.post("/v1/workflows", json={"name": name, "definition": definition, **rest})
    assert answer.status_code in {200, 201}, answer.text
    return name


def template(text: str) -> dict[str, Any]:
    """Return a template node."""
    return {"id": "t", "type": "template", "params": {"template": text}}


def test_deploying_the_same_again_is_a_no_op_and_a_change_is_a_version(http: httpx.Client) -> None:
    """Runs keep the version they started with; old versions stay to be seen."""
    name = deploy(http, ECHO)
    document = {"name": name, "definition": {"nodes": [ECHO]}}
    again = http.post("/v1/workflows", json=document)
    assert (again.status_code, again.json()["version"]) == (200, 1)
    first = http.post(f"/v1/workflows/{name}/runs?wait=20", json={"inputs": {"text": "x"}}).json()
    changed = {"name": name, "definition": {"nodes": [ECHO, template("Hi {{a.text}}")]}}
    changed["definition"]["edges"] = [{"source": "a", "target": "t"}]  # type: ignore[index]
    new = http.post("/v1/workflows", json=changed)
    assert (new.status_code, new.json()["version"]) == (201, 2)
    second = http.post(f"/v1/workflows/{name}/runs?wait=20", json={"inputs": {"text": "x"}}).json()
    assert (first["version"], first["outputs"]) == (1, {"a": {"text": "x"}})
    assert (second["version"], second["outputs"]) == (2, {"t": {"text": "Hi x"}})
    assert http.get(f"/v1/runs/{first['run_id']}").json()["version"] == 1
    assert http.get(f"/v1/workflows/{name}?version=1").json()["definition"]["edges"] == []
    assert name in {item["name"] for item in http.get("/v1/workflows").json()["workflows"]}


def test_the_json_of_the_brief_runs_with_a_visible_stand_in(http: httpx.Client) -> None:
    """A model without weights is served by its fallback: warned of, and named in the event."""
    definition = json.loads((EXAMPLES / "voice_assistant" / "brief.json").read_text())
    view = http.post("/v1/workflows", json={"name": "brief", "definition": definition}).json()
    assert any("'pocketsphinx' serves for 'whisper-large'" in text for text in view["warnings"])
    audio = (EXAMPLES / "voice_assistant" / "weather.wav").read_bytes()
    run = http.post(
        "/v1/workflows/brief/runs?wait=60", content=audio, headers={"Content-Type": "audio/wav"}
    ).json()
    assert run["outputs"]["response"]["text"] == (
        "Hello! I heard 'how is the weather' and took it for weather."
    )
    assert [node["model"] for node in run["nodes"]] == ["pocketsphinx", "intent-small", "template"]


def test_inputs_come_as_json_form_or_raw_body(http: httpx.Client) -> None:
    """All three ways are the same run input."""
    name = deploy(http, ECHO)
    url = f"/v1/workflows/{name}/runs?wait=20"
    answers = [
        http.post(url, json={"inputs": {"text": "hé"}}),
        http.post(url, files={"text": (None, "hé")}),
        http.post(url, files={"text": ("a.txt", "hé".encode(), "text/plain")}),
        http.post(url, content="hé".encode(), headers={"Content-Type": "text/plain"}),
    ]
    assert [answer.json()["outputs"] for answer in answers] == [{"a": {"text": "hé"}}] * 4


def test_large_binaries_are_blobs_and_small_ones_travel_inline(http: httpx.Client) -> None:
    """A recording may come as bytes in JSON, as a file, or as a blob that is there already."""
    vad = {"id": "v", "type": "model", "params": {"model": "silero-vad"}}
    name = deploy(http, vad)
    audio = (EXAMPLES / "voice_assistant" / "weather.wav").read_bytes()
    blob = http.post("/v1/blobs", content=audio, headers={"Content-Type": "audio/wav"}).json()
    inline = {"media_type": "audio/wav", "data": base64.b64encode(audio).decode()}
    url = f"/v1/workflows/{name}/runs?wait=30"
    for inputs in ({"audio": {"$binary": inline}}, {"audio": {"$blob": blob}}):
        run = http.post(url, json={"inputs": inputs}).json()
        assert run["outputs"]["v"]["speech"] is True, run
    run = http.post(url, files={"audio": ("weather.wav", audio * 4, "audio/wav")}).json()
    assert run["status"] == "completed", run
    assert set(run["inputs"]["audio"]) == {"$blob"}


def test_a_file_without_a_type_is_what_its_name_says(http: httpx.Client) -> None:
    """Curl sends a WAV file as application/octet-stream."""
    name = deploy(http, {"id": "v", "type": "model", "params": {"model": "silero-vad"}})
    audio = (EXAMPLES / "voice_assistant" / "weather.wav").read_bytes()
    form = {"audio": ("weather.wav", audio, "application/octet-stream")}
    run = http.post(f"/v1/workflows/{name}/runs?wait=30", files=form).json()
    assert "audio/wav" == run["inputs"]["audio"]["$binary"]["media_type"]


def test_an_idempotency_key_is_one_run_for_ever(running: Running, http: httpx.Client) -> None:
    """At whichever gateway: the same key and inputs are one run, other inputs are refused."""
    name = deploy(http, ECHO)
    key = {"Idempotency-Key": new_id()}
    url = f"/v1/workflows/{name}/runs"
    first = http.post(f"{url}?wait=20", json={"inputs": {"text": "x"}}, headers=key)
    other = httpx.post(
        f"{running.url('gateway-1')}{url}?wait=20", json={"inputs": {"text": "x"}}, headers=key
    )
    assert first.json() == other.json()
    refused = http.post(url, json={"inputs": {"text": "y"}}, headers=key)
    assert (refused.status_code, refused.json()["error"]["field"]) == (409, "Idempotency-Key")
    own = http.post(
        url, json={"inputs": {"text": "x"}}, headers={"Clawdbot-Run-Id": f"mine-{name}"}
    )
    assert own.json()["run_id"] == f"mine-{name}"


def test_without_wait_the_answer_is_202_and_the_run_is_there(http: httpx.Client) -> None:
    """The location answers at once."""
    name = deploy(http, ECHO)
    answer = http.post(f"/v1/workflows/{name}/runs", json={"inputs": {"text": "x"}})
    assert answer.status_code == 202
    assert http.get(answer.headers["Location"]).status_code == 200


def test_runs_are_listed_page_by_page(http: httpx.Client) -> None:
    """Newest first, no run twice and none left out."""
    name = deploy(http, ECHO)
    ids = [
        http.post(f"/v1/workflows/{name}/runs?wait=20", json={"inputs": {"text": str(n)}}).json()[
            "run_id"
        ]
        for n in range(5)
    ]

    def page(cursor: str | None) -> dict[str, Any]:
        params = {"workflow": name, "limit": "2", "status": "completed"}
        wanted = params | ({"cursor": cursor} if cursor else {})
        answer: dict[str, Any] = http.get("/v1/runs", params=wanted).json()
        return answer

    # The list is a projection: it follows the log within milliseconds.
    until_sync(lambda: page(None)["runs"][:1] and page(None)["runs"][0]["run_id"] == ids[-1])
    found: list[str] = []
    cursor: str | None = None
    while len(found) < len(ids):
        shown = page(cursor)
        found += [run["run_id"] for run in shown["runs"]]
        cursor = shown["next"]
    assert (found, cursor) == (ids[::-1], None)


def test_replay_shows_the_run_as_it_was_after_an_event(http: httpx.Client) -> None:
    """Event by event, without a model."""
    name = deploy(http, ECHO, template("{{a.text}}!"))
    run = http.post(f"/v1/workflows/{name}/runs?wait=20", json={"inputs": {"text": "x"}}).json()
    url = f"/v1/runs/{run['run_id']}"
    events = http.get(f"{url}/events").json()["events"]
    assert [event["id"] for event in events] == list(range(1, run["events"] + 1))
    states = [
        http.get(f"{url}/replay?until={event['id']}").json()["nodes"][0]["status"]
        for event in events
    ]
    assert states[0] == "pending"
    assert states[-1] == "completed"
    assert http.get(f"{url}/replay").json() == http.get(url).json()


def _sse(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    event: dict[str, str] = {}
    for line in lines:
        if not line and event:
            yield event
            event = {}
        elif line.startswith(":"):
            yield {"comment": line}
        elif line:
            name, _, value = line.partition(": ")
            event[name] = value


def test_a_stream_resumes_at_another_gateway(running: Running, http: httpx.Client) -> None:
    """Cut after the second event, resumed elsewhere with Last-Event-ID: nothing lost or twice."""
    name = deploy(http, ECHO, template("{{a.text}}!"))
    run = http.post(f"/v1/workflows/{name}/runs?wait=20", json={"inputs": {"text": "x"}}).json()
    path = f"/v1/runs/{run['run_id']}/events"
    sse = {"Accept": "text/event-stream"}
    seen: list[str] = []
    with http.stream("GET", path, headers=sse) as stream:
        for event in _sse(stream.iter_lines()):
            if "id" in event:
                seen.append(event["id"])
            if len(seen) == 2:
                break
    resumed = {**sse, "Last-Event-ID": seen[-1]}
    with httpx.stream("GET", running.url("gateway-1") + path, headers=resumed) as stream:
        rest = [event for event in _sse(stream.iter_lines()) if "id" in event]
    assert seen + [event["id"] for event in rest] == [str(n + 1) for n in range(run["events"])]
    assert rest[-1]["event"] == "RunCompleted"
    ended = http.get(path, headers={**sse, "Last-Event-ID": str(run["events"])})
    assert ended.status_code == 204, "an EventSource would come back for ever"


def test_a_stream_is_live_keeps_alive_and_ends_with_a_cancelled_run(
    running: Running, http: httpx.Client
) -> None:
    """While no worker takes the task, comments show that the stream lives."""
    name = deploy(http, ECHO)
    worker = running.mesh.services["text-0"]
    worker.signal(signal.SIGSTOP)
    try:
        run = http.post(f"/v1/workflows/{name}/runs", json={"inputs": {"text": "x"}}).json()
        path = f"/v1/runs/{run['run_id']}"
        types: list[str] = []
        with http.stream("GET", f"{path}/events", headers={"Accept": "text/event-stream"}) as live:
            for event in _sse(live.iter_lines()):
                if "comment" in event and "cancel" not in types:
                    body = {"action": "cancel", "reason": "enough"}
                    assert http.post(f"{path}/control", json=body).status_code == 202
                    types.append("cancel")
                elif "event" in event:
                    types.append(event["event"])
    finally:
        worker.signal(signal.SIGCONT)
    assert types == ["RunStarted", "NodeScheduled", "cancel", "RunCancelled"]
    assert http.get(path).json()["status"] == "cancelled"


def test_blobs_have_ranges(http: httpx.Client) -> None:
    """As RFC 9110 wants them."""
    data = bytes(range(256)) * 4
    kept = http.post("/v1/blobs", content=data, headers={"Content-Type": "image/x-raw"})
    path = kept.headers["Location"]
    whole = http.get(path)
    assert (whole.content, whole.headers["Content-Type"]) == (data, "image/x-raw")
    for header, part in (
        ("bytes=0-9", data[:10]),
        ("bytes=1000-", data[1000:]),
        ("bytes=-24", data[-24:]),
        ("bytes=1000-9999", data[1000:]),
    ):
        answer = http.get(path, headers={"Range": header})
        assert (answer.status_code, answer.content) == (206, part), header
    assert http.get(path, headers={"Range": "bytes=1024-"}).status_code == 416
    assert http.get(path, headers={"Range": "nonsense"}).content == data
    head = http.head(path)
    assert (head.content, head.headers["Content-Length"]) == (b"", str(len(data)))
    again = http.get(path, headers={"If-None-Match": whole.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert http.post("/v1/blobs", content=data).json()["sha256"] == kept.json()["sha256"]


def test_models_docs_probes_and_metrics(http: httpx.Client) -> None:
    """What operators look at."""
    models = {model["name"]: model for model in http.get("/v1/models").json()["models"]}
    assert models["echo"]["served_by"] == ["echo"]
    assert models["whisper-tiny"]["get"]
    assert {path: http.get(path).status_code for path in ("/livez", "/readyz", "/docs")} == {
        "/livez": 200,
        "/readyz": 200,
        "/docs": 200,
    }
    page = http.get("/docs").text
    assert "https://" not in page, "the page must work without the internet"
    assert http.get("/").headers["location"] == "/docs"
    assert http.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200
    assert "clawdbot_http_requests_total" in http.get("/metrics").text


def test_one_correlation_id_from_http_to_the_worker(running: Running, http: httpx.Client) -> None:
    """And the trace of the caller goes on."""
    name = deploy(http, ECHO)
    ours = f"corr-{new_id()}"
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = http.post(
        f"/v1/workflows/{name}/runs?wait=20",
        json={"inputs": {"text": "x"}},
        headers={"ce-correlationid": ours, "traceparent": f"00-{trace}-{'1' * 16}-01"},
    )
    assert answer.json()["correlation_id"] == ours
    for service in ("gateway-0", "orchestrator-0", "text-0"):
        log = running.mesh.services[service].log
        until_sync(partial(_holds, log, ours))
        found = [json.loads(line) for line in log.read_text().splitlines() if ours in line]
        assert all(line["correlation_id"] == ours for line in found)


async def test_a_call_without_a_reply_subject_harms_nobody(
    running: Running, http: httpx.Client
) -> None:
    """As `nats pub` sends it; both gateways get some."""
    name = deploy(http, ECHO)
    nc = await nats.connect(running.server.url)
    try:
        for _ in range(20):
            await nc.publish(call(DEFAULT_TENANT, name), b'{"inputs":{"text":"x"}}')
        await nc.flush()
        logs = [running.mesh.services[gateway].log for gateway in GATEWAYS]
        until_sync(lambda: sum(log.read_text().count('"answered":false') for log in logs) == 20)
    finally:
        await nc.close()
    async with httpx.AsyncClient() as client:
        for gateway in GATEWAYS:
            assert (await client.get(f"{running.url(gateway)}/readyz")).status_code == 200


async def test_call_answers_over_nats(running: Running, http: httpx.Client) -> None:
    """Outputs, refusals, and 504 with the run's id while nobody works."""
    name = deploy(http, ECHO)
    nc = await nats.connect(running.server.url)
    try:
        good = await nc.request(call(DEFAULT_TENANT, name), b'{"inputs":{"text":"x"}}', timeout=20)
        assert json.loads(good.data) == {"a": {"text": "x"}}
        assert (good.headers or {})[Header.STATUS] == "completed"
        for subject, body, code in (
            (call(DEFAULT_TENANT, name), b"{", "400"),
            (call(DEFAULT_TENANT, name), b'{"inputs":{}}', "400"),
            (call(DEFAULT_TENANT, "nowhere"), b"{}", "404"),
            (call("nobody", name), b"{}", "400"),
        ):
            bad = await nc.request(subject, body, timeout=20)
            assert (bad.headers or {})["Nats-Service-Error-Code"] == code, bad
        for header, value in ((Header.CONTENT_TYPE, ""), (Header.TIMEOUT_S, "nan")):
            bad = await nc.request(
                call(DEFAULT_TENANT, name), b"x", timeout=20, headers={header: value}
            )
            assert (bad.headers or {})["Nats-Service-Error-Code"] == "400", bad
            assert json.loads(bad.data)["error"]["field"] == header
        worker = running.mesh.services["text-0"]
        worker.signal(signal.SIGSTOP)
        try:
            late = await nc.request(
                call(DEFAULT_TENANT, name),
                b'{"inputs":{"text":"x"}}',
                timeout=20,
                headers={Header.TIMEOUT_S: "0.5"},
            )
        finally:
            worker.signal(signal.SIGCONT)
        assert (late.headers or {})["Nats-Service-Error-Code"] == "504"
        run_id = (late.headers or {})[Header.RUN_ID]
        assert json.loads(late.data)["error"]["run_id"] == run_id
        info = await nc.request("$SRV.INFO.clawdbot-gateway", b"", timeout=5)
        assert json.loads(info.data)["endpoints"][0]["name"] == "call"
    finally:
        await nc.close()
    with Client(running.url()) as client:
        assert [event.type for event in client.follow(run_id)][-1] == "RunCompleted"


async def test_a_large_input_is_the_same_by_every_way(running: Running, http: httpx.Client) -> None:
    """Submitted raw, then called under the same id: one run, though the gateway makes a blob."""
    name, body = deploy(http, template("{{file}}")), bytes(100_000)
    headers = {
        Header.RUN_ID: new_id(),
        Header.CONTENT_TYPE: "application/octet-stream",
        Header.INPUT: "file",
    }
    nc = await nats.connect(running.server.url)
    try:
        await nc.jetstream().publish(submit(DEFAULT_TENANT, name), body, headers=headers)
        reply = await nc.request(call(DEFAULT_TENANT, name), body, timeout=20, headers=headers)
    finally:
        await nc.close()
    assert json.loads(reply.data) == {"t": {"text": "[application/octet-stream, 100000 bytes]"}}


def test_fifty_clients_wait_at_once(running: Running, http: httpx.Client) -> None:
    """Each gets its own answer."""
    name = deploy(http, ECHO)
    answers: dict[int, str] = {}

    def one(number: int) -> None:
        url = f"{running.url(f'gateway-{number % 2}')}/v1/workflows/{name}/runs?wait=30"
        run = httpx.post(url, json={"inputs": {"text": str(number)}}, timeout=40).json()
        answers[number] = run["outputs"]["a"]["text"]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: str(number) for number in range(50)}


def _holds(log: Path, text: str) -> bool:
    return text in log.read_text()

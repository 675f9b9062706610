"""Steps that say what they give while they compute: to clients of the run, and on the bus."""

import asyncio
import json
import queue
from collections.abc import Iterator
from typing import Any

import httpx
import nats
import numpy as np
import pytest
import tritonclient.grpc as triton
from typer.testing import CliRunner, Result

from clawdbot import AsyncClient, Client, WorkflowBuilder
from clawdbot.cli.main import app
from clawdbot.cli.output import ExitCode
from events.subjects import RunKey, chunk, chunks
from schemas.api import EventView, NodePart
from schemas.errors import InvalidArgument, NotFound
from tests.integration.conftest import GATEWAYS, Running
from tests.support.openai_server import USAGE, OpenaiServer
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats
PATHS = ("each[0]/say", "each[1]/say")
STREAM = {"accept": "text/event-stream"}


@pytest.fixture
def llm(running: Running) -> Iterator[OpenaiServer]:
    """Return the server behind `writer`, as it was before."""
    yield running.llm
    running.llm.hold_after, running.llm.pieces, running.llm.cuts = None, None, 0
    running.llm.go.set()
    running.llm.go.clear()
    running.llm.left.clear()


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    """Return a client, and deploy a workflow whose second step is a language model."""
    with Client(running.url()) as client:
        (
            WorkflowBuilder()
            .add_node("ask", template="{{input.text}}")
            .add_node("llm", model="writer", inputs={"text": "ask.text"})
            .add_node("out", template="<{{llm.text}}>")
            .connect("ask", "llm")
            .connect("llm", "out")
            .deploy("talk", client=client)
        )
        WorkflowBuilder().add_node("a", model="echo").deploy("sole", client=client)
        yield client


def said(items: list[Any], attempt: int = 1) -> list[str]:
    """Return the texts of the parts of an attempt."""
    parts = [item for item in items if isinstance(item, NodePart) and item.attempt == attempt]
    assert list(range(1, len(parts) + 1)) == [part.part for part in parts]
    return [part.outputs["text"] for part in parts]


def test_tokens_reach_the_client_while_they_come(client: Client, llm: OpenaiServer) -> None:
    """The first word is here before the server says the second; the log has the whole."""
    llm.hold_after = 2
    items: list[EventView | NodePart] = []
    for item in client.stream("talk", {"text": "one two three"}):
        items.append(item)
        if isinstance(item, NodePart):
            assert "llm" == item.node
            llm.go.set()
    assert ["ONE", " TWO", " THREE"] == said(items)
    kinds = [item.type if isinstance(item, EventView) else "part" for item in items]
    assert "RunStarted" == kinds[0]
    assert "RunCompleted" == kinds[-1]
    [done] = [
        item.data for item in items
        if isinstance(item, EventView) and item.type == "NodeCompleted"
        and item.data["node_id"] == "llm"
    ]  # fmt: skip
    assert "ONE TWO THREE" == done["outputs"]["text"]
    ends = [number for number, kind in enumerate(kinds) if kind == "NodeCompleted"]
    assert max(n for n, kind in enumerate(kinds) if kind == "part") < ends[1]


@pytest.mark.usefixtures("client")
async def test_asynchronously(running: Running) -> None:
    """The same from asyncio, at another gateway."""
    async with AsyncClient(running.url(GATEWAYS[1])) as asynchronous:
        stream = asynchronous.stream("talk", {"text": "one two"}, run_id="streamed-1")
        assert ["ONE", " TWO"] == said([item async for item in stream])
        follow = asynchronous.follow("streamed-1")
        assert "RunCompleted" == [event.type async for event in follow][-1]


def test_a_second_attempt_begins_anew(client: Client, llm: OpenaiServer) -> None:
    """What a server said before it died is of the first attempt; the log has the second one."""
    llm.cuts = 1
    items: list[Any] = list(client.stream("talk", {"text": "one two"}))
    assert ["ONE", " TWO"] == said(items, 1) == said(items, 2)
    assert "RunCompleted" == items[-1].type


def test_whoever_comes_later_hears_what_follows(
    running: Running, client: Client, llm: OpenaiServer
) -> None:
    """At any gateway, with `parts=true`; without it the stream has the events alone."""
    llm.hold_after = 2
    before = len(llm.seen)
    run = client.run("talk", {"text": "one two"}, wait_s=0)
    until_sync(lambda: len(llm.seen) > before, timeout_s=30)
    address = f"{running.url(GATEWAYS[1])}/v1/runs/{run.run_id}/events"
    with (
        httpx.stream("GET", address, headers=STREAM, params={"parts": "true"}, timeout=30) as late,
        httpx.stream("GET", address, headers=STREAM, timeout=30) as plain,
    ):
        lines, seen = late.iter_lines(), ""
        while "NodeScheduled" not in seen or '"llm"' not in seen:
            seen += next(lines)
        llm.go.set()
        rest = list(lines)
        assert "event: part" not in list(plain.iter_lines())
    parts = [rest[n + 1] for n, line in enumerate(rest) if line == "event: part"]
    found = [json.loads(line.removeprefix("data: ")) for line in parts]
    assert {"node": "llm", "attempt": 1, "part": 2, "outputs": {"text": " TWO"}} == found[-1]


@pytest.mark.usefixtures("client")
def test_a_client_that_was_cut_off_goes_on(http: httpx.Client, llm: OpenaiServer) -> None:
    """Sent again, the same request is the same run, after the event that was seen."""
    address, body = "/v1/workflows/talk/runs", {"inputs": {"text": "one"}}
    headers = {**STREAM, "idempotency-key": "cut-off-1"}
    with http.stream("POST", address, headers=headers, json=body) as first:
        assert 200 == first.status_code
        location = first.headers["location"]
        first.read()
    asked = len(llm.seen)
    again = http.post(address, headers={**headers, "last-event-id": "3"}, json=body)
    assert location == again.headers["location"]
    ids = [int(line[4:]) for line in again.text.splitlines() if line.startswith("id: ")]
    assert list(range(4, 4 + len(ids))) == ids
    assert "RunCompleted" in again.text
    assert asked == len(llm.seen)


@pytest.mark.parametrize(
    ("name", "inputs", "kind"),
    [("sole", {}, InvalidArgument), ("nowhere", {}, NotFound)],
)
def test_what_cannot_start(name: str, inputs: Any, kind: type[Exception], client: Client) -> None:
    """Has a status of its own, and no stream."""
    with pytest.raises(kind):
        next(client.stream(name, inputs))


@pytest.mark.usefixtures("client")
def test_a_bad_last_event_id(http: httpx.Client) -> None:
    """Is refused before anything starts."""
    headers = {**STREAM, "last-event-id": "x"}
    answer = http.post("/v1/workflows/talk/runs", json={"inputs": {}}, headers=headers)
    assert (400, "Last-Event-ID") == (answer.status_code, answer.json()["error"]["field"])


def test_a_run_that_is_cancelled(client: Client, llm: OpenaiServer) -> None:
    """Stops the server: its connection is closed."""
    llm.hold_after = 2
    for item in client.stream("talk", {"text": "one two"}, run_id="cancelled-1"):
        if isinstance(item, NodePart):
            client.cancel("cancelled-1")
    assert isinstance(item, EventView)
    assert "RunCancelled" == item.type
    assert llm.left.wait(30)


def generated(url: str, name: str, words: str) -> list[dict[str, Any]]:
    """Return the events of generate_stream, without what names the model."""
    address = f"{url}/v2/models/{name}/generate_stream"
    answer = httpx.post(address, json={"text_input": words}, timeout=30)
    assert 200 == answer.status_code, answer.text
    found = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data:")]
    head = ("model_name", "model_version", "run_id", "text_output")
    return [{name: item[name] for name in item if name not in head} for item in found]


def test_a_model_with_other_outputs(running: Running) -> None:
    """Its text comes in parts, the others with the last one; over HTTP and gRPC."""
    expected = [{"text": "ONE"}, {"text": " TWO"}, {"usage": USAGE}]
    assert expected == generated(running.url(), "writer", "one two")
    port = running.mesh.services["gateway-0"].fact("grpc_listening", "port")
    answers: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as rpc:
        rpc.start_stream(lambda result, error: answers.put(error or result))
        text = triton.InferInput("text", [1], "BYTES")
        text.set_data_from_numpy(np.array(["one two"], np.object_))
        rpc.async_stream_infer("writer", [text])
        found = [answers.get(timeout=30) for _ in range(3)]
    parts = [[output.name for output in item.get_response().outputs] for item in found]
    assert [["text"], ["text"], ["usage"]] == parts
    assert b" TWO" == found[1].as_numpy("text")[0]
    assert found[2].get_response().parameters["triton_final_response"].bool_param


def test_a_workflow_as_a_model(running: Running, client: Client, llm: OpenaiServer) -> None:
    """What its sink says comes in parts; what is said inside of it is no part of its answer."""
    builder = WorkflowBuilder().add_node("llm", model="writer")
    builder.deploy("wrote", client=client)
    llm.hold_after = 2
    address = f"{running.url()}/v2/models/wrote/generate_stream"
    with httpx.stream("POST", address, json={"text_input": "one two"}, timeout=30) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data:"))
        assert "ONE" == json.loads(next(lines)[6:])["llm.text"]
        llm.go.set()
        assert " TWO" == "".join(json.loads(line[6:]).get("llm.text", "") for line in lines)
    llm.hold_after, llm.cuts = None, 1  # the second attempt says the same
    items = generated(running.url(), "wrote", "one two")
    assert "ONE TWO" == "".join(item.get("llm.text", "") for item in items)
    assert USAGE == items[-1]["llm.usage"]
    assert [{"out.text": "<ONE TWO>"}] == generated(running.url(), "talk", "one two")


@pytest.mark.usefixtures("client")
def test_from_a_shell(running: Running, llm: OpenaiServer) -> None:
    """Nothing but the words; events and parts as JSON; why there are none as an exit status."""

    def stream(*words: str) -> Result:
        return CliRunner().invoke(app, ["stream", *words, "--url", running.url()])

    asked = ("talk", "-i", "text=one two")
    assert "ONE TWO\n" == stream(*asked).stdout
    lines = stream(*asked, "--json").stdout.splitlines()
    kinds = [json.loads(line).get("type", "part") for line in lines]
    assert 2 == kinds.count("part")
    assert "RunCompleted" == kinds[-1]
    assert "x\n" == stream("sole", "-i", "text=x").stdout
    llm.pieces = [b"data: {oops\n\n"]
    failed = stream(*asked)
    assert ExitCode.RUN_FAILED == failed.exit_code
    assert "no part of an answer" in " ".join(failed.stderr.split())


async def test_on_the_bus(running: Running) -> None:
    """Any NATS client hears them, by the paths of nodes; models that do not stream say none."""
    key = RunKey("default", "heard-on-the-bus")
    heard: list[tuple[str, Any]] = []
    bus = await nats.connect(running.server.url)
    try:

        async def hear(message: Any) -> None:
            heard.append((message.subject, json.loads(message.data)))

        await bus.subscribe(chunks(key), cb=hear)
        await bus.flush()
        definition = {
            "nodes": [
                {"id": "each", "type": "foreach", "params": {
                    "items": "input.lines", "as": "item",
                    "body": {"nodes": [{"id": "say", "type": "model",
                                        "params": {"model": "repeat"},
                                        "inputs": {"text": "input.item"}}]}}},
                {"id": "quiet", "type": "model", "params": {"model": "echo"},
                 "inputs": {"text": "= 'x'"}},
            ]
        }  # fmt: skip
        async with httpx.AsyncClient(base_url=running.url(), timeout=30) as http:
            deployed = await http.post(
                "/v1/workflows", json={"name": "chorus", "definition": definition}
            )
            assert deployed.is_success, deployed.text
            answer = await http.post(
                "/v1/workflows/chorus/runs?wait=30",
                json={"inputs": {"lines": ["a b", "c"]}},
                headers={"clawdbot-run-id": key.run_id},
            )
        assert "completed" == answer.json()["status"], answer.text
        async with asyncio.timeout(30):
            while len(heard) < 3:  # noqa: ASYNC110 - the subscription's callback fills it
                await asyncio.sleep(0.01)
    finally:
        await bus.close()
    paths = {path: [part for _, part in heard if part["node"] == path] for path in PATHS}
    assert ["a", " b"] == [part["outputs"]["text"] for part in paths["each[0]/say"]]
    assert ["c"] == [part["outputs"]["text"] for part in paths["each[1]/say"]]
    assert {chunk(key, path) for path in PATHS} == {subject for subject, _ in heard}

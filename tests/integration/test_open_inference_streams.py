"""Answers in parts, generate, and clients that go away: over HTTP, gRPC and NATS."""

import asyncio
import json
import queue
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import nats
import numpy as np
import ormsgpack
import pytest
import tritonclient.grpc as triton
import tritonclient.http as web
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.support.inference import Served
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats
SUBJECT = "clawdbot.v1.default.infer.text.repeat"


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    """Return a plain client."""
    with httpx.Client(base_url=f"http://{served.address}", timeout=30) as client:
        yield client


def events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """Yield the objects of a stream of server-sent events, as they come."""
    for line in answer.iter_lines():
        if line and not line.startswith(":"):
            assert line.startswith("data: ")
            yield json.loads(line.removeprefix("data: "))


def text_of(words: str) -> Any:
    """Return a text as an input of Triton's client."""
    tensor = triton.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([words], np.object_))
    return tensor


def test_generate(http: httpx.Client) -> None:
    """One object in, one out; the one text by its name or as text_input; other keys are params."""
    for document in (
        {"text_input": "a b", "parameters": {"delay_ms": 1}, "id": "mine"},
        {"text": "a b", "delay_ms": 1, "id": "mine"},
    ):
        answer = http.post("/v2/models/repeat/generate", json=document)
        assert {
            "id": "mine",
            "model_name": "repeat",
            "model_version": "1",
            "text": "a b",
            "text_output": "a b",
        } == answer.json()
    answer = http.post("/v2/models/intent-small/versions/1/generate", json={"text": "lights on"})
    assert ("lights", {"lights": True}) == (answer.json()["intent"], answer.json()["is"])
    answer = http.post("/v2/models/iris/generate", json={"X": [5.1, 3.5, 1.4, 0.2]})
    assert 3 == len(answer.json()["probabilities"])


@pytest.mark.parametrize(
    ("model", "body", "status", "says"),
    [
        ("repeat", b"{", 400, "not JSON"),
        ("repeat", b"[]", 400, "JSON object"),
        ("repeat", b"{}", 400, "input 'text' is missing"),
        ("repeat", b'{"text": 7}', 400, "input 'text': send a text"),
        ("repeat", b'{"text_input": "a", "warmth": 1}', 400, "no parameter 'warmth'"),
        ("repeat", b'{"text_input": "a", "delay_ms": -1}', 400, "delay_ms"),
        ("repeat", b'{"text_input": "a", "delay_ms": []}', 400, "delay_ms: send a text"),
        ("repeat", b'{"text_input": "a", "parameters": 7}', 400, "parameters: send an object"),
        ("repeat", b'{"text_input": "a", "id": 7}', 400, "id: send at most"),
        ("iris", b'{"text_input": "a"}', 400, "text_input: the model has not one text"),
        ("iris", b'{"X": ["a", 1, 2, 3]}', 400, "input 'X'"),
        ("iris", b'{"X": [1, 2, 3]}', 400, "input 'X'"),
        ("nobody", b"{}", 404, "no model"),
        ("absent", b'{"X": [1, 2]}', 503, "no file"),
    ],
)
def test_generate_refuses(
    http: httpx.Client, model: str, body: bytes, status: int, says: str
) -> None:
    """With a status of its own, in both forms: nothing was sent yet."""
    for way in ("generate", "generate_stream"):
        answer = http.post(f"/v2/models/{model}/{way}", content=body)
        assert status == answer.status_code, answer.text
        assert says in answer.json()["error"]


def test_a_stream_grows(served: Served, http: httpx.Client) -> None:
    """Each word comes when it is there, while the worker is at the next one."""
    document = {"text_input": "one two three", "parameters": {"delay_ms": 1}}
    with http.stream("POST", "/v2/models/repeat/generate_stream", json=document) as answer:
        assert "text/event-stream; charset=utf-8" == answer.headers["content-type"]
        assert ["one", " two", " three"] == [part["text_output"] for part in events(answer)]
    document = {"text_input": "one two", "parameters": {"delay_ms": 1500}}
    with http.stream("POST", "/v2/models/repeat/generate_stream", json=document) as answer:
        parts = events(answer)
        assert "one" == next(parts)["text_output"]
        assert running(served) == 1
    until_sync(lambda: running(served) == 0)
    slow = {"text_input": "a b", "delay_ms": 500}
    with http.stream("POST", "/v2/models/repeat/generate_stream", json=slow) as answer:
        assert ": keep-alive" in list(answer.iter_lines())
    with http.stream("POST", "/v2/models/echo/generate_stream", json={"text": "whole"}) as answer:
        assert ["whole"] == [part["text_output"] for part in events(answer)]


def test_an_error_after_the_first_part(http: httpx.Client) -> None:
    """The status is sent already: the error is a part."""
    document = {"text_input": "a b c d e f", "delay_ms": 300, "timeout": 1_000_000}
    with http.stream("POST", "/v2/models/repeat/generate_stream", json=document) as answer:
        found = list(events(answer))
    assert "did not answer within 1 seconds" in found[-1]["error"]
    assert "a" == found[0]["text_output"]


def test_a_stream_over_grpc(served: Served) -> None:
    """Triton's client: words as responses, in order; the final one is marked where it is wanted."""
    heard: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(served.grpc) as client:
        client.start_stream(lambda result, error: heard.put((result, error)))
        client.async_stream_infer(
            "repeat", [text_of("x y z")], request_id="1", enable_empty_final_response=True
        )
        found = [heard.get(timeout=10)[0].get_response() for _ in range(4)]
        assert [False, False, False, True] == [
            item.parameters["triton_final_response"].bool_param for item in found
        ]
        assert [b"x", b" y", b" z"] == [item.raw_output_contents[0][4:] for item in found[:3]]
        assert (0, "1") == (len(found[3].outputs), found[3].id)
        client.async_stream_infer("repeat", [text_of("a b")], request_id="2")
        client.async_stream_infer("nobody", [text_of("a b")], request_id="3")
        client.async_stream_infer("echo", [text_of("whole")], request_id="4")
        found = [heard.get(timeout=10) for _ in range(4)]
        assert [b"a", b" b"] == [item.as_numpy("text")[0] for item, _ in found[:2]]
        assert "no model 'nobody'" in str(found[2][1])
        assert b"whole" == found[3][0].as_numpy("text")[0]
        assert found[3][0].get_response().parameters["triton_final_response"].bool_param
        client.stop_stream()
        whole = client.infer("repeat", [text_of("x y z")])
        assert b"x y z" == whole.as_numpy("text")[0]


def test_statistics_of_responses(served: Served, http: httpx.Client) -> None:
    """By their index, the same over both protocols, as Triton's client reads them."""

    def counts() -> dict[str, dict[str, int]]:
        with triton.InferenceServerClient(served.grpc) as rpc:
            [found] = rpc.get_inference_statistics("repeat", as_json=True)["model_stats"]
        with web.InferenceServerClient(served.address) as plain:
            [same] = plain.get_inference_statistics("repeat")["model_stats"]
            [echo] = plain.get_inference_statistics("echo")["model_stats"]
        assert {} == echo["response_stats"]
        stats: dict[str, Any] = same["response_stats"]
        told = found.get("response_stats", {})
        assert stats.keys() == told.keys()
        for index, figures in stats.items():
            for figure, item in figures.items():
                said = told[index][figure]
                assert (item["count"], item["ns"]) == (
                    int(said.get("count", 0)),
                    int(said.get("ns", 0)),
                )
        return {
            index: {figure: item["count"] for figure, item in figures.items()}
            for index, figures in stats.items()
        }

    before = counts()
    document = {"text_input": "one two", "parameters": {"delay_ms": 1}}
    http.post("/v2/models/repeat/generate_stream", json=document).raise_for_status()
    http.post("/v2/models/repeat/generate", json=document).raise_for_status()
    after = counts()

    def more(index: str) -> dict[str, int]:
        old = before.get(index, {})
        return {
            figure: count - old.get(figure, 0)
            for figure, count in after[index].items()
            if count > old.get(figure, 0)
        }

    assert {"compute_infer": 2, "compute_output": 2, "success": 2} == more("0")
    assert {"compute_infer": 1, "compute_output": 1, "success": 1} == more("1")
    assert {"compute_infer": 1, "empty_response": 1} == more("2")


def test_requests_of_a_stream_are_computed_side_by_side(served: Served) -> None:
    """Two hundred sent at once: answered in their order, in fewer calls of the engine."""
    heard: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(served.grpc) as client:
        [before] = client.get_inference_statistics("doubling").model_stats
        client.start_stream(lambda result, error: heard.put((result, error)))
        for number in range(200):
            inputs = []
            for name in ("A", "B"):
                inputs.append(triton.InferInput(name, [1, 3], "FP32"))
                inputs[-1].set_data_from_numpy(np.full((1, 3), number, np.float32))
            client.async_stream_infer("doubling", inputs, request_id=str(number))
        found = [heard.get(timeout=20) for _ in range(200)]
        client.stop_stream()
        [after] = client.get_inference_statistics("doubling").model_stats
    assert [None] * 200 == [error for _, error in found]
    assert [2 * number for number in range(200)] == [
        int(result.as_numpy("SUM")[0, 0]) for result, _ in found
    ]
    assert 200 == after.inference_count - before.inference_count
    assert after.execution_count - before.execution_count < 190


async def test_a_stream_over_nats(served: Served) -> None:
    """Parts are numbered; the last answer has no number."""
    nc = await nats.connect(served.nats_url)
    inbox = nc.new_inbox()
    answers = await nc.subscribe(inbox)
    headers = {"Clawdbot-Stream": "true", "Accept": "application/msgpack"}
    await nc.publish(SUBJECT, b'{"inputs": {"text": "a b"}}', reply=inbox, headers=headers)
    found = [await answers.next_msg(timeout=5) for _ in range(3)]
    assert ["1", "2", None] == [(item.headers or {}).get("Clawdbot-Part") for item in found]
    assert ["a", " b"] == [ormsgpack.unpackb(item.data)["outputs"]["text"] for item in found[:2]]
    assert {} == ormsgpack.unpackb(found[2].data)["outputs"]
    await nc.close()


def handled(served: Served) -> Callable[[], list[dict[str, Any]]]:
    """Return what returns the worker's lines about `repeat` from now on."""
    log = served.mesh.services["text"].log
    begin = log.stat().st_size

    def lines() -> list[dict[str, Any]]:
        text = log.read_bytes()[begin:].decode()
        found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [line for line in found if line.get("subject", "").startswith(SUBJECT)]

    return lines


SLOW = {"text": "a b c", "delay_ms": 20_000}


@pytest.mark.parametrize("way", ["infer", "generate", "generate_stream"])
def test_a_client_that_goes_over_http(served: Served, way: str) -> None:
    """Its inference is called off at the worker, at once."""
    document: dict[str, Any] = SLOW
    if way == "infer":
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a b c"]}
        document = {"inputs": [tensor], "parameters": {"delay_ms": 20_000}}
    if way == "generate_stream":
        document = {"text": "a b c", "delay_ms": 300}
    body, lines = json.dumps(document).encode(), handled(served)
    host, _, port = served.address.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v2/models/repeat/%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
            % (way.encode(), len(body), body)
        )
        if way == "generate_stream":
            assert connection.recv(9).startswith(b"HTTP/1.1 ")  # the first part is there
        else:
            until_sync(lambda: running(served) > 0)
    until_sync(lines)
    [line] = lines()
    assert ("499", "the caller withdrew this inference") == (line["code"], line["error"])
    assert line["handle_ms"] < 10_000
    text = served.mesh.services["gateway"].log.read_text()
    assert "crashed" not in text
    assert "Traceback" not in text


def running(served: Served) -> int:
    """Return how many inferences the worker has under way, by its own word."""

    async def ask() -> int:
        nc = await nats.connect(served.nats_url)
        answer = await nc.request("$SRV.STATS.clawdbot-worker-text", b"", timeout=5)
        await nc.close()
        return int(json.loads(answer.data)["endpoints"][0]["data"]["in_flight"])

    return asyncio.run(ask())


def test_a_client_that_goes_over_grpc(served: Served) -> None:
    """One that cancels its call, and one that cancels its stream."""
    request = service_pb2.ModelInferRequest(model_name="repeat")
    request.inputs.add(name="text", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(b"\5\0\0\0a b c")
    request.parameters["delay_ms"].int64_param = 20_000
    with grpc.insecure_channel(served.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        begins: list[Callable[[], Any]] = [
            lambda: stub.ModelInfer.future(request),
            lambda: stub.ModelStreamInfer(iter([request])),
        ]
        for begin in begins:
            lines = handled(served)
            call = begin()
            until_sync(lambda: running(served) > 0)
            call.cancel()
            until_sync(lines)
            assert ["499"] == [line["code"] for line in lines()]


async def test_a_client_that_goes_over_nats(served: Served) -> None:
    """It says so itself, by the id it gave; also before the request, which then does not begin."""
    nc = await nats.connect(served.nats_url)
    body = json.dumps({"inputs": {"text": "a " * 500}}).encode()
    headers = {"Clawdbot-Request-Id": "ours-1", "Clawdbot-Stream": "true"}
    inbox = nc.new_inbox()
    answers = await nc.subscribe(inbox)
    lines = handled(served)
    packed = ormsgpack.packb({"inputs": {"text": "a b c"}, "params": {"delay_ms": 20_000}})
    await nc.publish(
        SUBJECT,
        packed,
        reply=inbox,
        headers={**headers, "Content-Type": "application/msgpack"},
    )
    await nc.publish("clawdbot.v1.default.withdraw.ours-1", b"")
    answer = await answers.next_msg(timeout=5)
    assert "499" == (answer.headers or {})["Nats-Service-Error-Code"]
    await nc.publish("clawdbot.v1.default.withdraw.ours-2", b"")
    await nc.flush()
    headers["Clawdbot-Request-Id"] = "ours-2"
    answer = await nc.request(SUBJECT, body, timeout=5, headers=headers)
    assert "499" == (answer.headers or {})["Nats-Service-Error-Code"]
    assert ["499", "499"] == [line["code"] for line in lines()]
    await nc.close()


def test_one_in_line_is_never_computed(served: Served) -> None:
    """Clients that go while another one's request is computed: the engine never sees theirs."""
    tensor = {"name": "TIMES", "shape": [1], "datatype": "INT64", "data": [600_000]}
    body = json.dumps({"inputs": [tensor]}).encode()
    message = (
        b"POST /v2/models/counting/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
        % (len(body), body)
    )
    host, _, port = served.address.partition(":")

    def ask() -> socket.socket:
        connection = socket.create_connection((host, int(port)), timeout=30)
        connection.sendall(message)
        return connection

    first = ask()
    until_sync(lambda: running(served) == 1)
    others = [ask() for _ in range(3)]
    until_sync(lambda: running(served) == 4)
    for connection in others:
        connection.close()
    until_sync(lambda: running(served) == 1)
    assert first.recv(12) == b"HTTP/1.1 200"
    first.close()
    with triton.InferenceServerClient(served.grpc) as client:
        [found] = client.get_inference_statistics("counting").model_stats
    assert (1, 1, 3) == (
        found.execution_count,
        found.inference_stats.success.count,
        found.inference_stats.fail.count,
    )

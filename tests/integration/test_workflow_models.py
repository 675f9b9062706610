"""Workflows as models of the Open Inference Protocol: an inference is a run."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import nats
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from clawdbot import Client, WorkflowBuilder
from tests.integration.conftest import Running


pytestmark = pytest.mark.nats


@pytest.fixture
def client(running: Running) -> Iterator[triton.InferenceServerClient]:
    """Deploy what is asked below; return Triton's client."""
    asked = (
        WorkflowBuilder()
        .add_node("nlu", model="intent-small")
        .add_node("say", template="{{nlu.intent}} for {{name}}")
        .add_node("vector", model="embedding-small")
        .connect("nlu", "say")
    )
    clash = WorkflowBuilder().add_node("shout", template="{{text}}!")
    failing = WorkflowBuilder().add_node("say", model="ranking")
    branch = (
        WorkflowBuilder()
        .add_node("nlu", model="intent-small")
        .switch("route", cases={"sure": "nlu.confidence > 0.999999"}, default="not")
        .add_node("yes", template="yes")
        .add_node("no", template="no")
        .connect("nlu", "route")
        .connect("route", "yes", case="sure")
        .connect("route", "no", case="not")
    )
    workflows = {"asked": asked, "echo": clash, "failing": failing, "branch": branch}
    with Client(running.url()) as deployer:
        for name, builder in workflows.items():
            builder.deploy(name, client=deployer)
    client = triton.InferenceServerClient(running.url().removeprefix("http://"))
    yield client
    client.close()


def text(name: str, words: str, kind: Any = triton) -> Any:
    """Return a text as an input."""
    tensor = kind.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([words], np.object_))
    return tensor


def test_its_signature(client: triton.InferenceServerClient) -> None:
    """The run's inputs, and what each sink gives; its version, and readiness of its models."""
    metadata = client.get_model_metadata("asked")
    assert {"name", "text"} == {item["name"] for item in metadata["inputs"]}
    outputs = {item["name"]: (item["datatype"], item["shape"]) for item in metadata["outputs"]}
    assert {"say.text": ("BYTES", [1]), "vector.embedding": ("FP32", [-1, 64])} == outputs
    [version] = metadata["versions"]
    assert "clawdbot_workflow" == metadata["platform"]
    assert client.is_model_ready("asked")
    assert client.is_model_ready("asked", version)
    assert not client.is_model_ready("asked", "999")
    assert "TYPE_STRING" == client.get_model_config("asked")["input"][0]["data_type"]
    with pytest.raises(InferenceServerException, match="is a workflow"):
        client.get_inference_statistics("asked")


def test_an_inference_is_a_run(client: triton.InferenceServerClient, http: httpx.Client) -> None:
    """Recorded, and its id is in the answer."""
    inputs = [text("text", "turn on the lights"), text("name", "Ada")]
    answer = client.infer("asked", inputs, request_id="mine")
    assert b"lights for Ada" == answer.as_numpy("say.text")[0]
    assert (1, 64) == answer.as_numpy("vector.embedding").shape
    response = answer.get_response()
    run = http.get(f"/v1/runs/{response['parameters']['run_id']}").json()
    assert ("asked", "completed") == (run["workflow"], run["status"])
    with pytest.raises(InferenceServerException, match="input 'text' is missing"):
        client.infer("asked", inputs[1:])
    with pytest.raises(InferenceServerException, match="no parameter 'warmth'"):
        client.infer("asked", inputs, parameters={"warmth": 1})
    with pytest.raises(InferenceServerException, match="keeps no state"):
        client.infer("asked", inputs, sequence_id=7)


def test_over_grpc_and_generate(
    client: triton.InferenceServerClient, running: Running, http: httpx.Client
) -> None:
    """The same over gRPC, one by one and in a stream, and as plain JSON."""
    port = running.mesh.services["gateway-0"].fact("grpc_listening", "port")
    inputs = [text(name, "lights on", triton_grpc) for name in ("text", "name")]
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{port}") as rpc:
        answer = rpc.infer("asked", inputs)
        assert b"lights for lights on" == answer.as_numpy("say.text")[0]
        assert answer.get_response().parameters["run_id"].string_param
        heard: list[Any] = []
        rpc.start_stream(lambda result, error: heard.append(error or result))
        rpc.async_stream_infer("asked", inputs)
        rpc.stop_stream()
        assert b"lights for lights on" == heard[0].as_numpy("say.text")[0]
    document = {"text": "lights on", "name": "Ada"}
    found = http.post("/v2/models/asked/generate", json=document).json()
    assert ("lights for Ada", 64) == (found["text_output"], len(found["vector.embedding"]))
    streamed = http.post("/v2/models/asked/generate_stream", json=document).text
    assert "lights for Ada" == json.loads(streamed.removeprefix("data: "))["say.text"]


def test_a_model_comes_before_a_workflow(client: triton.InferenceServerClient) -> None:
    """Of two with one name; with its prefix the workflow is there too."""
    assert b"hi" == client.infer("echo", [text("text", "hi")]).as_numpy("text")[0]
    found = client.infer("workflow:echo", [text("text", "hi")])
    assert b"hi!" == found.as_numpy("shout.text")[0]


def test_a_sink_that_was_skipped(client: triton.InferenceServerClient) -> None:
    """Gives nothing; the others are there."""
    found = client.infer("branch", [text("text", "turn on the lights")])
    assert ["no.text"] == [item["name"] for item in found.get_response()["outputs"]]


def test_what_goes_wrong(client: triton.InferenceServerClient, http: httpx.Client) -> None:
    """The run's own error; too late; no such workflow."""
    array = np.ones((1, 2), np.float32)
    tensors = [triton.InferInput(name, [1, 2], "FP32") for name in ("query", "items")]
    for tensor in tensors:
        tensor.set_data_from_numpy(array)
    tensors[1] = triton.InferInput("items", [1, 3], "FP32")
    tensors[1].set_data_from_numpy(np.ones((1, 3), np.float32))
    with pytest.raises(InferenceServerException) as caught:
        client.infer("failing", tensors)
    assert "400" == caught.value.status()
    with pytest.raises(InferenceServerException, match="it goes on") as caught:
        client.infer("asked", [text("text", "hi"), text("name", "x")], timeout=1)
    assert "504" == caught.value.status()
    for name in ("nobody", "workflow:nobody", "workflow:", "a*b"):
        answer = http.post(f"/v2/models/{name}/infer", json={"inputs": []})
        assert 404 == answer.status_code


def test_statistics_are_of_the_whole_mesh(
    client: triton.InferenceServerClient, running: Running, http: httpx.Client
) -> None:
    """Any gateway gives the same; a node of a workflow counts, and what came over NATS does."""
    others = triton.InferenceServerClient(running.url("gateway-1").removeprefix("http://"))

    def counts() -> tuple[int, int]:
        pair = [item.get_inference_statistics("intent-small") for item in (client, others)]
        [first], [second] = (item["model_stats"] for item in pair)
        return first["inference_stats"]["success"]["count"], second["execution_count"]

    def ask() -> None:
        client.infer("intent-small", [text("text", "hi")])
        client.infer("asked", [text("text", "hi"), text("name", "x")])
        subject = "clawdbot.v1.default.infer.text.intent-small"
        asyncio.run(_ask(running.server.url, subject, b'{"inputs": {"text": "hi"}}'))

    success, executions = counts()
    ask()
    assert (success + 3, executions + 3) == counts()
    others.close()


async def _ask(url: str, subject: str, body: bytes) -> None:
    nc = await nats.connect(url)
    await nc.request(subject, body, timeout=10)
    await nc.close()

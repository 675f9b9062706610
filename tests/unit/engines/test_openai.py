"""Servers that speak OpenAI's protocol, really asked; keys that go nowhere else."""

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.catalogue import ModelSpec
from schemas.errors import (
    ClawdbotError,
    EngineFailed,
    FailedPrecondition,
    InvalidArgument,
    ModelUnavailable,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from schemas.values import Binary
from services.workers.app import engine_settings
from services.workers.engine import Request
from services.workers.engines.openai import OpenaiEngine, parse_keys
from services.workers.settings import WorkerSettings
from tests.support.openai_server import OpenaiServer, serving


KEY = "sk-canary-0123456789"
TEXT = {"name": "text", "kind": "text"}
CHAT = [TEXT, {"name": "usage", "kind": "json"}, {"name": "finish_reason", "kind": "json"}]
VECTORS = [{"name": "embedding", "kind": "tensor", "datatype": "FP32", "shape": [-1, 2]}]


@pytest.fixture
def server() -> Iterator[OpenaiServer]:
    """Run a server."""
    with serving() as server:
        yield server


def spec(url: Any, outputs: Any = CHAT, **params: Any) -> ModelSpec:
    """Return a catalogue entry."""
    return ModelSpec.model_validate(
        {
            "modality": "text",
            "engine": "openai",
            "inputs": [TEXT],
            "outputs": outputs,
            "params": {"url": url, "model": "tiny", "allow": "127.0.0.1", **params},
        }
    )


def engine(url: Any, outputs: Any = CHAT, **params: Any) -> OpenaiEngine:
    """Return a loaded engine."""
    made = OpenaiEngine(spec(url, outputs, **params), Path())
    made.load()
    return made


async def test_a_chat(server: OpenaiServer) -> None:
    """Text, options and the key go out as the protocol has them; what is declared comes back."""
    server.key = KEY
    made = engine(server.url, keys={f"127.0.0.1:{server.port}": KEY})
    params = {"system": "Shout.", "temperature": 0, "max_tokens": 5, "seed": 7, "stop": "."}
    found = await made.answer(Request({"text": "hello"}, params, "work-1"))
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    assert {"text": "HELLO", "usage": usage, "finish_reason": "stop"} == found
    [seen] = server.seen
    messages = [{"role": "system", "content": "Shout."}, {"role": "user", "content": "hello"}]
    assert {
        "model": "tiny", "messages": messages, "stream": False, "temperature": 0,
        "max_tokens": 5, "seed": 7, "stop": ["."],
    } == seen["body"]  # fmt: skip
    assert "/v1/chat/completions" == seen["path"]
    assert "work-1" == seen["headers"]["idempotency-key"]


async def test_messages_and_pictures(server: OpenaiServer) -> None:
    """A conversation as it is; an image beside the text, inside the request."""
    made = engine(server.url)
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert "B" == (await made.answer(Request({"messages": conversation})))["text"]
    assert conversation == server.seen[0]["body"]["messages"]
    image = Binary(media_type="image/png", data=b"\x89PNG")
    assert "SEE" == (await made.answer(Request({"text": "see", "image": image})))["text"]
    [message] = server.seen[1]["body"]["messages"]
    url = message["content"][1]["image_url"]["url"]
    assert f"data:image/png;base64,{base64.b64encode(image.data).decode()}" == url


async def test_embeddings(server: OpenaiServer) -> None:
    """A vector for each text, in their order, whatever the order of the answer."""
    made = engine(server.url, VECTORS, task="embeddings")
    found = await made.answer(Request({"text": ["a", "bcd"]}))
    assert (2, 2) == found["embedding"].shape
    assert (1.0, 1.0, 3.0, 1.0) == struct.unpack("<4f", found["embedding"].data)
    assert "/v1/embeddings" == server.seen[0]["path"]


@pytest.mark.parametrize(
    ("status", "answer", "kind", "says"),
    [
        (400, '{"error": {"message": "too long"}}', InvalidArgument, "says 400: too long"),
        (422, '{"detail": "x"}', InvalidArgument, "says 422"),
        (401, "", FailedPrecondition, "refuses the key"),
        (403, "", FailedPrecondition, "refuses the key"),
        (404, '{"error": "no model tiny"}', FailedPrecondition, "says 404: no model tiny"),
        (302, "", FailedPrecondition, "says 302"),
        (429, "", ResourceExhausted, "says 429"),
        (500, "<html>" + "x" * 5000, Unavailable, "says 500: <html>x"),
        (503, "", Unavailable, "says 503"),
        (200, "no JSON", EngineFailed, "is no JSON"),
        (200, "[]", EngineFailed, "has no message"),
        (200, '{"choices": [{"message": {"content": 7}}]}', EngineFailed, "is no text"),
    ],
)
async def test_refusals(
    status: int, answer: str, kind: type[ClawdbotError], says: str, server: OpenaiServer
) -> None:
    """Say whose fault it is and whether it may pass; and are short."""
    server.status, server.answer = status, answer or " "
    server.headers = {"retry-after": "7", "location": "http://127.0.0.1:1/"}
    with pytest.raises(ClawdbotError, match=says) as caught:
        await engine(server.url, keys={"127.0.0.1": KEY}).answer(Request({"text": "hi"}))
    assert kind is type(caught.value)
    assert len(caught.value.message) < 300
    assert KEY not in caught.value.message
    if isinstance(caught.value, ResourceExhausted | Unavailable):
        assert 7 == caught.value.retry_after_s
    assert 1 == len(server.seen)  # a redirect is not followed, nor anything tried twice


@pytest.mark.parametrize(
    "data",
    [
        [],
        [{"index": 0, "embedding": []}],
        [{"index": 0, "embedding": ["x"]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0]}],
        [{"index": 0}],
        7,
    ],
)
async def test_vectors_that_are_none(data: Any, server: OpenaiServer) -> None:
    """One for each text, or it is the server's failure."""
    server.answer = json.dumps({"data": data})
    made = engine(server.url, VECTORS, task="embeddings")
    with pytest.raises(EngineFailed):
        await made.answer(Request({"text": "a"}))


async def test_a_key_goes_to_its_host_only(server: OpenaiServer) -> None:
    """A catalogue entry that names another server gets none, whatever it claims."""
    with serving() as other:
        keys = {f"127.0.0.1:{server.port}": KEY}
        await engine(server.url, keys=keys).answer(Request({"text": "hi"}))
        await engine(other.url, keys=keys).answer(Request({"text": "hi"}))
    assert f"Bearer {KEY}" == server.seen[0]["headers"]["authorization"]
    assert "authorization" not in other.seen[0]["headers"]


async def test_private_addresses_need_to_be_allowed(server: OpenaiServer) -> None:
    """By whoever runs the workers; nothing is sent before."""
    with pytest.raises(PermissionDenied, match="CLAWDBOT_OPENAI_ALLOW"):
        await engine(server.url, allow="").answer(Request({"text": "hi"}))
    assert [] == server.seen


async def test_a_server_that_is_away() -> None:
    """May be there later."""
    with serving() as gone:
        url = gone.url
    with pytest.raises(Unavailable, match="cannot be reached"):
        await engine(url).answer(Request({"text": "hi"}))


async def test_an_answer_may_be_too_large(server: OpenaiServer) -> None:
    """It is cut off where the setting says."""
    server.answer = "x" * 5000
    with pytest.raises(EngineFailed, match="more than 1024 bytes"):
        await engine(server.url, bytes_max=1024).answer(Request({"text": "hi"}))


@pytest.mark.parametrize(
    ("inputs", "params", "field"),
    [
        ({}, {}, "inputs.text"),
        ({"messages": []}, {}, "inputs.messages"),
        ({"messages": [{"content": "a"}]}, {}, "inputs.messages"),
        ({"messages": "hi"}, {}, "inputs.messages"),
        ({"text": "a", "image": "b"}, {}, "inputs.image"),
        ({"text": "a"}, {"temperature": 3}, "params.temperature"),
        ({"text": "a"}, {"max_tokens": "many"}, "params.max_tokens"),
        ({"text": "a"}, {"stop": 7}, "params.stop"),
        ({"text": "a"}, {"system": 7}, "params.system"),
    ],
)
async def test_bad_inputs(inputs: Any, params: Any, field: str, server: OpenaiServer) -> None:
    """Are refused by name, before anything is sent."""
    with pytest.raises(InvalidArgument) as caught:
        await engine(server.url).answer(Request(inputs, params))
    assert (field, []) == (caught.value.field, server.seen)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"url": None}, "a url is a text"),
        ({"url": "ftp://example.com/"}, "only http and https"),
        ({"url": "http://key@example.com/v1"}, "no credentials"),
        ({"model": None}, "names the model"),
        ({"task": "dance"}, "one of chat, embeddings"),
        ({"outputs": [{"name": "mood", "kind": "text"}]}, "no output 'mood', only finish_reason"),
        ({"task": "embeddings"}, "no output 'text', only embedding, usage"),
    ],
)
def test_mistakes_of_the_catalogue(changes: dict[str, Any], says: str) -> None:
    """Stand on the worker's card."""
    made = OpenaiEngine(spec(**{"url": "http://example.com/v1", **changes}), Path())
    assert says in (made.missing() or "")
    with pytest.raises(ModelUnavailable):
        made.load()


def test_keys_come_from_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting names them; one that is not set keeps the worker from starting."""
    monkeypatch.setenv("EXAMPLE_KEY", KEY)
    settings = WorkerSettings(openai_keys="api.example.com = EXAMPLE_KEY, h:8000=EXAMPLE_KEY")
    assert {"api.example.com": KEY, "h:8000": KEY} == engine_settings(settings)["openai"]["keys"]
    assert KEY not in repr(settings)
    with pytest.raises(FailedPrecondition, match="ABSENT_KEY is not set"):
        engine_settings(WorkerSettings(openai_keys="a=ABSENT_KEY"))


@pytest.mark.parametrize("text", ["api.example.com", "=KEY", "a=", "a=sk-secret-key"])
def test_keys_are_not_in_the_setting(text: str) -> None:
    """A key in the place of a variable's name is no variable's name."""
    with pytest.raises(FailedPrecondition, match="HOST=VARIABLE") as caught:
        parse_keys(text, lambda _: None)
    assert "secret" not in caught.value.message


def test_a_key_that_no_header_can_carry() -> None:
    """Is refused at start, and not shown."""
    with pytest.raises(FailedPrecondition, match="no header can carry") as caught:
        parse_keys("a=KEY", lambda _: "secret\nX: y")
    assert "secret" not in caught.value.message

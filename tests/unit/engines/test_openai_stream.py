"""Chats that come in parts, from a server that really sends them; and streams that go wrong."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.catalogue import ModelSpec
from schemas.errors import (
    ClawdbotError,
    EngineFailed,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from services.workers.app import engine_settings
from services.workers.engine import Request
from services.workers.engines.openai import OpenaiEngine
from services.workers.engines.openai_stream import GrowingChat
from services.workers.settings import WorkerSettings
from tests.support.openai_server import DONE, USAGE, OpenaiServer, event, serving, stream_of


OUTPUTS = ("text", "finish_reason", "usage", "message")


@pytest.fixture
def server() -> Iterator[OpenaiServer]:
    """Run a server."""
    with serving() as server:
        yield server


def engine(url: str, outputs: tuple[str, ...] = OUTPUTS, **params: Any) -> OpenaiEngine:
    """Return a loaded engine that streams."""
    kinds = {"text": "text"}
    spec = ModelSpec.model_validate(
        {
            "modality": "text",
            "engine": "openai",
            "inputs": [{"name": "text", "kind": "text"}],
            "outputs": [{"name": name, "kind": kinds.get(name, "json")} for name in outputs],
            "streams": True,
            "params": {"url": url, "model": "tiny", "allow": "127.0.0.1", **params},
        }
    )
    made = OpenaiEngine(spec, Path())
    made.load()
    return made


async def test_parts_and_the_whole(server: OpenaiServer) -> None:
    """Each text that the server adds is handed over; the answer is that of a server without."""
    parts: list[Any] = []
    found = await engine(server.url).answer(Request({"text": "one two three"}, emit=parts.append))
    assert [{"text": "ONE"}, {"text": " TWO"}, {"text": " THREE"}] == parts
    message = {"role": "assistant", "content": "ONE TWO THREE"}
    said = {"text": "ONE TWO THREE", "finish_reason": "stop", "usage": USAGE, "message": message}
    assert said == found
    body = server.seen[0]["body"]
    assert (True, {"include_usage": True}) == (body["stream"], body["stream_options"])


async def test_nobody_needs_to_take_the_parts(server: OpenaiServer) -> None:
    """Then the answer comes whole; nor are there any where the model gives no text."""
    assert "A B" == (await engine(server.url).answer(Request({"text": "a b"})))["text"]
    parts: list[Any] = []
    made = engine(server.url, ("message",))
    await made.answer(Request({"text": "a b"}, emit=parts.append))
    assert [] == parts


async def test_a_part_comes_before_the_next_one_is_there(server: OpenaiServer) -> None:
    """The server says no more until the first word was handed over."""
    server.hold_after = 2
    parts: list[Any] = []

    def emit(part: Any) -> None:
        parts.append(part)
        server.go.set()

    async with asyncio.timeout(20):
        await engine(server.url).answer(Request({"text": "one two"}, emit=emit))
    assert [{"text": "ONE"}, {"text": " TWO"}] == parts


async def test_one_that_is_called_off(server: OpenaiServer) -> None:
    """Is told to the server, whose connection is closed."""
    server.hold_after = 3
    begun = asyncio.Event()
    request = Request({"text": "one two three"}, emit=lambda _: begun.set())
    answering = asyncio.ensure_future(engine(server.url).answer(request))
    async with asyncio.timeout(20):
        await begun.wait()
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
        assert await asyncio.to_thread(server.left.wait, 20)


async def test_calls_of_tools(server: OpenaiServer) -> None:
    """Are put together from their pieces, in order, and are in the message."""
    server.pieces = [
        event({"role": "assistant", "content": None}),
        event({"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g"}}]}),
        event({"tool_calls": [{"index": 0, "id": "a", "type": "function",
                               "function": {"name": "f", "arguments": '{"x'}}]}),
        event({"tool_calls": [{"index": 0, "function": {"arguments": '": 1}'}}]}),
        event({"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]}),
        event({}, finish_reason="tool_calls"), DONE,
    ]  # fmt: skip
    found = await engine(server.url).answer(Request({"text": "hi"}))
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    assert {"text": "", "finish_reason": "tool_calls", "usage": None, "message": message} == found


async def test_what_a_model_thought(server: OpenaiServer) -> None:
    """Is in the message, and no part of the text."""
    server.pieces = [
        event({"role": "assistant", "reasoning_content": "Hm"}),
        event({"reasoning_content": "m."}),
        event({"content": "Yes."}),
        event({"content": ""}, finish_reason="length", usage=USAGE),
        DONE,
    ]
    parts: list[Any] = []
    found = await engine(server.url).answer(Request({"text": "hi"}, emit=parts.append))
    assert [{"text": "Yes."}] == parts
    message = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hmm."}
    assert (message, "length", USAGE) == (found["message"], found["finish_reason"], found["usage"])


async def test_a_stream_in_any_pieces(server: OpenaiServer) -> None:
    """Bytes of one event come in several, characters are cut, and comments lie between."""
    whole = b": alive\n\n" + b"".join(stream_of("één twee")).replace(b"\n", b"\r\n")
    server.pieces = [whole[start : start + 5] for start in range(0, len(whole), 5)]
    parts: list[Any] = []
    found = await engine(server.url).answer(Request({"text": "x"}, emit=parts.append))
    assert "één twee" == found["text"] == "".join(part["text"] for part in parts)


async def test_a_server_that_gives_no_streams(server: OpenaiServer) -> None:
    """Answers whole, and that is taken."""
    message = {"role": "assistant", "content": "Hi"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    server.answer = json.dumps({"choices": [choice]})
    server.headers = {"content-type": "application/json"}
    assert "Hi" == (await engine(server.url).answer(Request({"text": "x"})))["text"]


WORD = event({"content": "a"})
ENDS = event({}, finish_reason="stop")


@pytest.mark.parametrize(
    ("pieces", "kind", "says"),
    [
        ([WORD], Unavailable, "ended its stream before its answer was whole"),
        ([WORD, ENDS], Unavailable, "ended its stream before its answer was whole"),
        ([WORD, DONE], Unavailable, "ended its stream before its answer was whole"),
        ([], Unavailable, "ended its stream before its answer was whole"),
        ([WORD, b"data: {oops\n\n"], EngineFailed, "no part of an answer"),
        ([WORD, b"data: 7\n\n"], EngineFailed, "no part of an answer"),
        ([b"<html>\n\n", DONE], Unavailable, "ended its stream"),
        ([event({"content": 7})], EngineFailed, "no part of an answer"),
        ([event({"tool_calls": [{"id": "a"}]})], EngineFailed, "no part of an answer"),
        ([event({"tool_calls": [{"index": 9999}]})], EngineFailed, "more than 128 tools"),
        ([b"data: \xff\n\n"], EngineFailed, "no UTF-8"),
        ([b"data: " + b"x" * 2_000_000], EngineFailed, "more than 1048576 characters"),
        ([WORD, event(error={"message": "out of memory"})], Unavailable, "out of memory"),
        ([WORD, event(error="gone")], Unavailable, "gone"),
        ([event(error={"message": "no", "code": 429})], ResourceExhausted, "says 429: no"),
        ([event(error={"message": "long", "code": 400})], InvalidArgument, "says 400: long"),
    ],
)
async def test_streams_that_go_wrong(
    pieces: list[bytes], kind: type[ClawdbotError], says: str, server: OpenaiServer
) -> None:
    """Are told for what they are: to be tried again, or the server's failure."""
    server.pieces = pieces
    with pytest.raises(ClawdbotError, match=says) as caught:
        await engine(server.url).answer(Request({"text": "hi"}))
    assert kind is type(caught.value)
    assert len(caught.value.message) < 300


async def test_a_server_that_dies_in_its_answer(server: OpenaiServer) -> None:
    """May be there later."""
    server.cuts = 1
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1 broke off its answer"):
        await engine(server.url).answer(Request({"text": "hi"}))


async def test_a_server_that_falls_silent(server: OpenaiServer) -> None:
    """Is waited for as long as the setting says."""
    server.hold_after = 2
    settings = engine_settings(WorkerSettings(openai_silence_s=0.5, openai_allow="127.0.0.1"))
    with pytest.raises(Unavailable, match=r"silent for 0\.5 s|not answer in time"):
        await engine(server.url, **settings["openai"]).answer(Request({"text": "one two"}))
    assert await asyncio.to_thread(server.left.wait, 20)


async def test_a_stream_may_be_too_large(server: OpenaiServer) -> None:
    """It is cut off where the setting says; the same addresses are allowed as for other answers."""
    with pytest.raises(EngineFailed, match="more than 1024 bytes"):
        await engine(server.url, bytes_max=1024).answer(Request({"text": "many words " * 50}))
    with pytest.raises(PermissionDenied, match="CLAWDBOT_OPENAI_ALLOW"):
        await engine(server.url, allow="").answer(Request({"text": "hi"}))


async def test_refusals_come_before_the_stream(server: OpenaiServer) -> None:
    """With their status, as ever."""
    server.status, server.answer = 429, '{"error": {"message": "slow down"}}'
    with pytest.raises(ResourceExhausted, match="says 429: slow down"):
        await engine(server.url).answer(Request({"text": "hi"}))


def test_only_chats_stream() -> None:
    """A mistake of the catalogue stands on the card."""
    spec = engine("http://example.com/v1").spec
    params = {**spec.params, "task": "embeddings"}
    changes = {"params": params, "outputs": spec.outputs[2:3]}
    made = OpenaiEngine(spec.model_copy(update=changes), Path())
    assert "'embeddings' gives no answers in parts" in (made.missing() or "")


def test_other_choices_are_left_out() -> None:
    """Only the first one is ours."""
    growing = GrowingChat()
    other = json.dumps({"choices": [{"index": 1, "delta": {"content": "b"}}]})
    assert ("", "a") == (growing.add(other), growing.add(WORD.decode()[6:]))

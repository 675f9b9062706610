"""Calls to a server that is really there, and addresses that are never reached."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from schemas import catalogue
from schemas.errors import (
    ClawdbotError,
    EngineFailed,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from schemas.values import Binary, Value
from services.workers.engine import AsyncEngine, Request
from services.workers.engines import addresses, engine_class
from services.workers.engines.calls import Caller


Answer = Callable[[str, bytes], Awaitable[bytes]]
"""Takes the head and the body of a request; gives the raw answer."""
LOCAL = "127.0.0.0/8,::1"


def engine(allow: str = LOCAL, **params: Any) -> AsyncEngine:
    """Return a loaded engine."""
    spec = catalogue.load().models["http"]
    spec = spec.model_copy(update={"params": {"allow": allow, **params}})
    made = engine_class("http")(spec, Path())
    assert isinstance(made, AsyncEngine)
    made.load()
    return made


def reply(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    """Return a raw answer."""
    head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


@asynccontextmanager
async def serving(answer: Answer, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """Serve one answer after the other; yields the address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = [line.partition(": ") for line in head.split("\r\n")]
            size = next(
                (value for name, _, value in lines if name.lower() == "content-length"), "0"
            )
            writer.write(await answer(head, await reader.readexactly(int(size))))
            await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, host, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def call(url: str, *, allow: str = LOCAL, key: str = "", **rest: Any) -> Any:
    """Call once."""
    params: dict[str, Any] = {
        name: rest.pop(name) for name in ("method", "headers", "accept") if name in rest
    }
    inputs: dict[str, Value] = {"url": url, **rest}
    return await engine(allow).answer(Request(inputs, params, key))


async def mirror(head: str, body: bytes) -> bytes:
    """Answer with the request."""
    document = {"head": head, "body": body.decode(errors="replace")}
    return reply(json.dumps(document).encode(), "content-type: application/json")


async def test_what_is_sent() -> None:
    """Method, query, headers, a JSON body, and a key that is the same for every attempt."""
    async with serving(mirror) as url:
        found = await call(
            f"{url}/a?x=1#part",
            method="POST",
            headers={"X-Mine": "yes"},
            key="k1",
            query={"y": "2 3", "z": True},
            body={"text": "hi"},
        )
    head = found["body"]["head"].lower()
    assert (200, '{"text":"hi"}') == (found["status"], found["body"]["body"])
    for line in ("x-mine: yes", "idempotency-key: k1", "content-type: application/json"):
        assert f"\r\n{line}\r\n" in head
    assert head.startswith("post /a?x=1&y=2+3&z=true http/1.1") or "y=2%203" in head
    assert f"host: {url.removeprefix('http://')}" in head


@pytest.mark.parametrize(
    ("body", "sent", "media_type"),
    [
        ("text", "text", "text/plain; charset=utf-8"),
        ([1, None], "[1,null]", "application/json"),
        (Binary(media_type="audio/wav", data=b"RIFF"), "RIFF", "audio/wav"),
    ],
)
async def test_bodies(body: Value, sent: str, media_type: str) -> None:
    """JSON, text and bytes, each with its type."""
    async with serving(mirror) as url:
        found = await call(url, method="PUT", body=body)
    assert sent == found["body"]["body"]
    assert f"content-type: {media_type}\r\n" in found["body"]["head"].lower()


@pytest.mark.parametrize(
    ("media_type", "body", "wanted"),
    [
        ("application/json", b'{"a": 1}', {"a": 1}),
        ("application/problem+json; charset=utf-8", b"[]", []),
        ("text/plain; charset=latin-1", b"\xe9", "é"),
        ("text/plain; charset=none-such", b"e", "e"),
        ("image/png", b"\x89PNG", Binary(media_type="image/png", data=b"\x89PNG")),
        ("nonsense", b"x", Binary(media_type="application/octet-stream", data=b"x")),
        ("application/json", b"", None),
    ],
)
async def test_answers(media_type: str, body: bytes, wanted: Value) -> None:
    """JSON becomes what it says, text text, anything else bytes."""

    async def answer(head: str, _: bytes) -> bytes:
        return reply(body, f"content-type: {media_type}")

    async with serving(answer) as url:
        assert wanted == (await call(url))["body"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, FailedPrecondition),
        (401, Unauthenticated),
        (403, PermissionDenied),
        (404, NotFound),
        (408, Unavailable),
        (409, FailedPrecondition),
        (429, ResourceExhausted),
        (500, Unavailable),
        (501, FailedPrecondition),
        (503, Unavailable),
        (304, FailedPrecondition),
    ],
)
async def test_statuses(status: int, kind: type[ClawdbotError]) -> None:
    """Each is the error that says whether to try again; or no error, where the node accepts it."""

    async def answer(head: str, _: bytes) -> bytes:
        return reply(b"so sorry", status=f"{status} No")

    async with serving(answer) as url:
        with pytest.raises(kind, match=f"{status}"):
            await call(url)
        assert status == (await call(url, accept=[status]))["status"]


async def test_an_answer_that_is_too_long_or_compressed_is_not_read_on() -> None:
    """The limit counts bytes as they come, whatever the answer says of its length."""
    read = asyncio.Event()

    async def endless(head: str, _: bytes) -> bytes:
        read.set()
        return b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200_000

    async def squeezed(head: str, _: bytes) -> bytes:
        return reply(b"\x1f\x8b", "content-encoding: gzip")

    small = engine(bytes_max=100_000)
    async with serving(endless) as url:
        with pytest.raises(EngineFailed, match="more than 100000 bytes"):
            await small.answer(Request({"url": url}))
    async with serving(squeezed) as url:
        with pytest.raises(EngineFailed, match="compressed"):
            await call(url)


async def test_nobody_there_is_worth_another_try() -> None:
    """A refused connection, a connection that is cut, a name that does not resolve."""

    async def cut(head: str, _: bytes) -> bytes:
        return b""

    async with serving(cut) as url:
        with pytest.raises(Unavailable):
            await call(url)
    with pytest.raises(Unavailable):
        await call(url)
    with pytest.raises(Unavailable, match="cannot be resolved"):
        await call("http://no-such-host.invalid/")


async def test_redirects_are_followed_and_checked() -> None:
    """A POST becomes a GET where it should, secrets stay with their origin, circles end."""
    heads: list[str] = []

    async def answer(head: str, body: bytes) -> bytes:
        heads.append(head)
        path = head.split()[1]
        if path == "/circle":
            return reply(b"", "location: /circle", status="302 Found")
        if path == "/away":
            return reply(b"", "location: http://10.0.0.1/", status="302 Found")
        if path in {"/303", "/307"}:
            return reply(b"", f"location: {other}/end", status=f"{path[1:]} Go")
        return reply(b"end", "content-type: text/plain")

    async with serving(answer) as url, serving(answer) as other:
        secret = {"Authorization": "secret", "X-Mine": "1"}
        found = await call(f"{url}/303", method="POST", headers=secret, body="b")
        assert "end" == found["body"]
        assert heads[-1].startswith("GET /end")
        assert "secret" not in heads[-1]
        assert "X-Mine" in heads[-1]
        await call(f"{url}/307", method="POST", headers=secret, body="b")
        assert heads[-1].startswith("POST /end")
        with pytest.raises(FailedPrecondition, match="redirects"):
            await call(f"{url}/circle")
        with pytest.raises(PermissionDenied, match=r"10\.0\.0\.1"):
            await call(f"{url}/away")


async def test_a_call_that_nobody_waits_for_ends() -> None:
    """Cancelled, it leaves its connection."""
    came, left = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        came.set()
        await reader.read()
        left.set()
        writer.close()

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    async with server, asyncio.TaskGroup() as group:
        port = server.sockets[0].getsockname()[1]
        task = group.create_task(call(f"http://127.0.0.1:{port}"))
        async with asyncio.timeout(10):
            await came.wait()
            task.cancel()
            await left.wait()


HOSTILE = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://0/",
    "http://0.0.0.0/",
    "http://localhost/",
    "http://LOCALHOST./",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[2001:0:7f00:1::]/",
    "http://[fe80::1]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://100.100.100.200/latest/meta-data",
    "http://169.254.169.254/latest/meta-data",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    "http://198.18.0.1/",
    "http://192.0.2.1/",
    "http://224.0.0.1/",
    "http://239.255.255.250/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "https://10.0.0.1:8443/",
    "http://user:pass@example.com/",
    "http://example.com@127.0.0.1/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "HtTp://127.0.0.1/",
    "http://①②⑦.⓪.⓪.①/",
]
MALFORMED = [
    "",
    "//127.0.0.1/",
    "http://",
    "http:///path",
    "http://[fe80::1%25eth0]/",
    "http://exa mple.com/",
    "http://example.com:99999/",
    "http://a\r\nHost: b/",
    "http://" + "a" * 9000,
    "http://[::1",
    17,
]


@pytest.mark.parametrize("url", HOSTILE)
async def test_hostile_addresses_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever way a private address is written, nothing is ever sent to it."""
    monkeypatch.setattr(Caller, "_send", never_sent)
    with pytest.raises((PermissionDenied, InvalidArgument, Unavailable)):
        await call(url, allow="")


async def never_sent(*_: object) -> None:
    """Stand where a request would go out."""
    pytest.fail("it was called")


@pytest.mark.parametrize("url", MALFORMED, ids=lambda url: str(url)[:30])
async def test_malformed_addresses_are_refused(url: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an error of ours, before anything is sent."""
    monkeypatch.setattr(Caller, "_send", never_sent)
    with pytest.raises((InvalidArgument, PermissionDenied)):
        await call(url, allow="")


async def test_a_name_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection goes to the address that was checked, whatever the name says later."""
    answers = iter(["127.0.0.1", "10.0.0.1", "10.0.0.1"])
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def rebinding(host: Any, port: Any, **rest: Any) -> Any:
        return await real(next(answers) if host == "rebind.test" else host, port, **rest)

    monkeypatch.setattr(loop, "getaddrinfo", rebinding)
    async with serving(mirror) as url:
        port = url.rpartition(":")[2]
        found = await call(f"http://rebind.test:{port}/")
        assert f"host: rebind.test:{port}" in found["body"]["head"].lower()
        with pytest.raises(PermissionDenied, match=r"10\.0\.0\.1"):
            await call(f"http://rebind.test:{port}/")


async def test_one_bad_address_spoils_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a public and a private address is refused."""
    with pytest.raises(PermissionDenied, match="CLAWDBOT_HTTP_ALLOW"):
        addresses.check("mixed.test", ["93.184.215.14", "10.0.0.1"], addresses.Allowed())
    addresses.check("fine.test", ["93.184.215.14", "2606:2800:21f::1"], addresses.Allowed())


def test_what_an_operator_allows() -> None:
    """Names and ranges; nonsense is refused at the start."""
    allowed = addresses.Allowed.parse(" vault.internal , 10.1.0.0/16,::1 ")
    addresses.check("vault.internal", ["10.9.9.9"], allowed)
    addresses.check("other", ["10.1.2.3", "::1"], allowed)
    for host, address in (("other", "10.9.9.9"), ("xvault.internal", "10.9.9.9")):
        with pytest.raises(PermissionDenied):
            addresses.check(host, [address], allowed)
    with pytest.raises(FailedPrecondition, match=r"10\.0\.0\.0/99"):
        addresses.Allowed.parse("10.0.0.0/99")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Host", "x"),
        ("Content-Length", "1"),
        ("X\r\nY", "1"),
        ("X", "a\r\nb"),
        ("X", "é"),
        ("", ""),
    ],
)
async def test_headers_that_are_not_the_senders(name: str, value: str) -> None:
    """Neither smuggled nor forged."""
    async with serving(mirror) as url:
        with pytest.raises(InvalidArgument, match="header"):
            await call(url, headers={name: value})


async def test_ipv6() -> None:
    """An address in brackets is called as such."""
    try:
        async with serving(mirror, "::1") as url:
            assert 200 == (await call(url))["status"]
    except OSError:
        pytest.skip("there is no IPv6 here")

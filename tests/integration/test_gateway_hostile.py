"""Clients that break the protocol below HTTP's meaning: too large, too slow, cut short."""

import re
import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.support.mesh import Mesh
from tests.support.nats import NatsServer
from tests.support.wait import until_sync


pytestmark = pytest.mark.nats
MASTER_TEXT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
HOST = b"Host: x\r\n"
PIECE = b"x" * 65536
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def port(nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a gateway listens that has little patience."""
    mesh = Mesh(tmp_path_factory.mktemp("mesh"), nats_server.url, {"master_key": MASTER_TEXT})
    limits = {"head_s_max": "0.5", "body_s_max": "1", "body_bytes_max": "1000000"}
    gateway = mesh.add("gateway", "services.gateway", http_port="0", **limits)
    mesh.start()
    yield gateway.fact("listening", "port")
    mesh.stop()


@pytest.fixture
def address(port: int) -> Iterator[tuple[str, int]]:
    """Where the gateway is; it must be alive at the end."""
    yield "127.0.0.1", port
    assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200


def _exchange(address: tuple[str, int], *pieces: bytes) -> bytes:
    """Send what the other side takes, then read until it closes or the answer is whole."""
    with socket.create_connection(address, timeout=PATIENCE_S) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except ConnectionError:
            return b"refused while it was sent"
        received = b""
        try:
            while b"\r\n\r\n" not in received and (chunk := connection.recv(65536)):
                received += chunk
        except ConnectionError:
            return received or b"refused while it was sent"
        return received


def _chunks(pieces: int) -> list[bytes]:
    return [b"%x\r\n%b\r\n" % (len(PIECE), PIECE)] * pieces


def _post(path: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"POST %b HTTP/1.1" % path, HOST.strip(), *headers, b"", b""])


def test_a_head_without_end_is_refused(address: tuple[str, int]) -> None:
    """100 MB in one header, or in many, would otherwise stop everybody for seconds."""
    begun = b"GET /livez HTTP/1.1\r\n" + HOST
    for pieces in (
        [begun + b"X-Long: ", *[PIECE] * 1600],
        [begun, *[b"X-Another: one\r\n" * 4096] * 1600],
        [b"GET /livez?", *[PIECE] * 1600],
    ):
        answer = _exchange(address, *pieces)
        assert answer.startswith(b"HTTP/1.1 400") or answer == b"refused while it was sent"


def test_a_head_that_does_not_come_is_not_waited_for(address: tuple[str, int]) -> None:
    """Neither in silence nor letter by letter."""
    for begun in (b"", b"GET /livez HTT", b"GET /livez HTTP/1.1\r\nX-Slow: a"):
        assert _exchange(address, begun).startswith(b"HTTP/1.1 400")


def test_a_body_that_does_not_come_is_not_waited_for(address: tuple[str, int]) -> None:
    """Whether its length was promised or not."""
    for headers, body in (
        ([b"Content-Length: 100"], b'{"name"'),
        ([b"Transfer-Encoding: chunked"], b'7\r\n{"name"\r\n'),
    ):
        head = _post(b"/v1/workflows", b"Content-Type: application/json", *headers)
        assert _exchange(address, head, body).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("path", ["/v1/workflows", "/v1/blobs", "/v2/models/m/infer"])
def test_who_leaves_before_the_end_of_a_body_is_no_failure(
    address: tuple[str, int], path: str
) -> None:
    """It is counted as what it is, not as an error of ours."""
    before = _left(address)
    with socket.create_connection(address, timeout=PATIENCE_S) as connection:
        connection.sendall(_post(path.encode(), b"Content-Length: 100") + b"{")
    until_sync(lambda: _left(address) > before)


def _left(address: tuple[str, int]) -> float:
    """Return how many requests ended as their clients were gone."""
    text = httpx.get(f"http://{address[0]}:{address[1]}/metrics").text
    [sample] = re.findall(r'http_requests_total{method="POST",status="499"} (\S+)', text) or ["0"]
    return float(sample)


def test_a_body_without_end_is_refused(address: tuple[str, int]) -> None:
    """By what it says of itself, or as soon as it is too much."""
    declared = _post(b"/v1/blobs", b"Content-Length: 99999999999")
    assert _exchange(address, declared).startswith(b"HTTP/1.1 413")
    streamed = _post(b"/v1/blobs", b"Transfer-Encoding: chunked")
    assert _exchange(address, streamed, *_chunks(64)).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "head",
    [
        _post(b"/v1/blobs", b"Content-Length: -5"),
        _post(b"/v1/blobs", b"Content-Length: 5", b"Content-Length: 6") + b"hello",
        _post(b"/v1/blobs", b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
        _post(b"/v1/blobs", b"Transfer-Encoding: chunked") + b"zz\r\n",
        b"GET /livez HTTP/1.1\r\nX-Nul: a\x00b\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["negative", "two lengths", "length and chunks", "no chunk", "NUL", "version", "TLS"],
)
def test_what_is_not_http_is_refused(address: tuple[str, int], head: bytes) -> None:
    """Above all what two readers could read in two ways."""
    assert _exchange(address, head).startswith(b"HTTP/1.1 400")


def test_a_body_of_tiny_chunks_is_a_body(address: tuple[str, int]) -> None:
    """20,000 chunks of 6 bytes."""
    head = _post(b"/v1/blobs", b"Transfer-Encoding: chunked")
    answer = _exchange(address, head, b"6\r\nabcdef\r\n" * 20_000, b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 201")


def test_large_bodies_do_not_count_as_heads(address: tuple[str, int]) -> None:
    """One connection, one large body after the other, and idle time longer than a head may take."""
    with httpx.Client(base_url="http://{}:{}".format(*address), timeout=PATIENCE_S) as client:
        for size in (900_000, 500_000, 70_000, 900_000):
            assert client.post("/v1/blobs", content=b"x" * size).status_code == 201
        with pytest.raises(TimeoutError):
            until_sync(lambda: client.is_closed, timeout_s=0.7)
        assert client.post("/v1/blobs", content=b"y" * 900_000).status_code == 201

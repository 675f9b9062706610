import asyncio
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.express import Frame, Refused, decode_head, delivered, encode_head, pub_ack
from events.inlet import Inlet
from tests.support.sim.network import give


HEADERS = {"Clawdbot-Version": "3", "traceparent": "00-1-2-01"}
HEAD = encode_head(HEADERS)
FRAMES = [
    Frame("a.b", "", b"", b"plain"),
    Frame("a.b", "inbox.1", b"", b""),
    Frame("a.b", "", HEAD, b"PING\r\nMSG a.b 1 3\r\n"),
    Frame("a.c", "$JS.ACK.S.c.1.2.3.4.5", HEAD, bytes(range(256)) * 20),
    Frame("a.d", "", b"NATS/1.0 503\r\n\r\n", b""),
    Frame("a.e", "", HEAD, bytes(range(256)) * 1200),
]
OTHER = b"MSG a.b 2 300000\r\n" + 100_000 * b"\r\n." + b"\r\n"
"""Of a subscription that is nats-py's."""


def on_the_wire(frame: Frame) -> bytes:
    """Return a frame of subscription 1 as the server writes it."""
    target = f"{frame.subject} 1 {frame.reply}" if frame.reply else f"{frame.subject} 1"
    size = len(frame.head) + len(frame.data)
    head = f"HMSG {target} {len(frame.head)} {size}" if frame.head else f"MSG {target} {size}"
    return head.encode() + b"\r\n" + frame.head + frame.data + b"\r\n"


STREAM = OTHER + b"".join(b"+OK\r\n" + on_the_wire(frame) for frame in FRAMES)


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_frames_are_cut_out_however_the_bytes_arrive(cuts: list[int]) -> None:
    """The same frames come out wherever reads split them."""
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[left:right] for left, right in itertools.pairwise(edges)]
    assert FRAMES == frames_of(pieces)


def frames_of(pieces: Sequence[bytes]) -> list[Frame]:
    """Return the frames that come out of pieces of a connection."""
    seen, left = list[Frame](), list[bytes]()

    def deliver(_: str, subject: str, reply: str, head: bytes, data: bytes) -> None:
        seen.append(Frame(subject, reply, head, data))

    inlet = Inlet(asyncio.Protocol(), {"1"}, deliver, left.append)
    for piece in pieces:
        give(inlet, piece)
    assert [b"+OK\r\n"] * len(FRAMES) == [line for line in left if line == b"+OK\r\n"]
    assert [OTHER] == [message for message in left if message != b"+OK\r\n"]
    return seen


def test_headers_come_back() -> None:
    """What is encoded is decoded."""
    assert HEADERS == decode_head(encode_head(HEADERS))
    assert {} == decode_head(encode_head({}))
    assert {} == decode_head(b"")


@pytest.mark.parametrize("text", ["x\r\nNats-Msg-Id: 7", "x\nNats-Msg-Id: 7", "x\rNats-Msg-Id: 7"])
def test_a_line_break_smuggles_no_header(text: str) -> None:
    """A value stays one value."""
    head = encode_head({"ce-id": text, "last": "1"})
    assert {"ce-id": "x Nats-Msg-Id: 7", "last": "1"} == decode_head(head)
    assert head.count(b"\r\n") == head.count(b"\r") == head.count(b"\n") == 4


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"NATS/1.0 503\r\n\r\n", {"Status": "503"}),
        (b"NATS/1.0 100 Idle Heartbeat\r\n\r\n", {"Status": "100"}),
        (
            b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 12\r\n\r\n",
            {"Status": "408", "Nats-Pending-Messages": "12"},
        ),
        (b"NATS/1.0\r\na:b\r\nnonsense\r\nc:  d:e \r\n\r\n", {"a": "b", "c": "d:e"}),
        (b"NATS/1.0\r\nx: \xff\r\n\r\n", {"x": "\ufffd"}),
    ],
)
def test_headers_of_others(head: bytes, expected: dict[str, str]) -> None:
    """Status lines, loose spacing and bytes that are no text are read as well as can be."""
    assert expected == decode_head(head)


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.TASKS.worker.3.17.21.1764040000500000000.9",
        "$JS.ACK._.hash.TASKS.worker.3.17.21.1764040000500000000.9.random",
        "$JS.ACK.hub.hash.TASKS.worker.3.17.21.1764040000500000000.9",
    ],
)
def test_what_a_consumer_says_of_a_message(reply: str) -> None:
    """Both forms of the ack subject are read."""
    assert (3, 17, 1764040000.5, 9) == delivered(reply)


def test_an_ack_is_read_and_a_refusal_raised() -> None:
    """A refusal carries JetStream's codes."""
    assert 12 == pub_ack(b'{"stream":"EVENTS","seq":12}')["seq"]
    error = b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 3"}}'
    with pytest.raises(Refused, match="wrong last sequence") as caught:
        pub_ack(error)
    assert (400, 10071) == (caught.value.status, caught.value.code)

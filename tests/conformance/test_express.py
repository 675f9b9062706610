"""The express beside nats-py on one connection to a real server."""

import asyncio
import datetime as dt
import ipaddress
import ssl
from pathlib import Path

import nats
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.errors import MaxPayloadError, NoRespondersError
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import StreamConfig

from events.express import Express, Frame, Refused, encode_head, pub_ack
from tests.support.nats import PAYLOAD_BYTES_MAX, NatsServer
from tests.support.wait import until


pytestmark = pytest.mark.nats
HEADERS = {"a": "1", "traceparent": "00-1-2-01"}


async def test_there_is_one_of_a_connection(nc: Nats) -> None:
    """Whoever asks first or last, at once or later, gets the same."""
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(Express.of(nc)) for _ in range(3)]
    assert 1 == len({id(task.result()) for task in asked})
    assert asked[0].result() is await Express.of(nc)


@pytest.mark.parametrize("size", [0, 1, 100_000, PAYLOAD_BYTES_MAX - 1000])
@pytest.mark.parametrize("headers", [{}, HEADERS], ids=["bare", "headed"])
async def test_it_talks_to_nats_py_and_back(nc: Nats, headers: dict[str, str], size: int) -> None:
    """Messages of any size go from the express to nats-py and from nats-py to the express."""
    express = await Express.of(nc)
    data = bytes(size)
    by_express: asyncio.Queue[Frame] = asyncio.Queue()
    by_nats: asyncio.Queue[Msg] = asyncio.Queue()
    await express.subscribe("to.express", by_express.put_nowait)
    await nc.subscribe("to.nats", cb=by_nats.put)
    express.publish("to.nats", data, encode_head(headers) if headers else b"", reply="back")
    message = await asyncio.wait_for(by_nats.get(), 10)
    assert ("back", data, headers) == (message.reply, message.data, message.headers or {})
    await nc.publish("to.express", data, reply="back", headers=headers or None)
    frame = await asyncio.wait_for(by_express.get(), 10)
    assert ("to.express", "back", data) == (frame.subject, frame.reply, frame.data)
    assert headers == frame.headers()


async def test_the_express_overtakes_nothing(nc: Nats) -> None:
    """What nats-py was given before arrives before."""
    express = await Express.of(nc)
    seen: list[bytes] = []
    await express.subscribe("both", lambda frame: seen.append(frame.data))
    for number in range(0, 200, 2):
        await nc.publish("both", b"%d" % number)
        express.publish("both", b"%d" % (number + 1))
    await until(lambda: _is(len(seen) == 200), what="every message")
    for number in range(0, 200, 2):
        assert seen.index(b"%d" % number) < seen.index(b"%d" % (number + 1))


async def test_answers_find_who_asked(nc: Nats) -> None:
    """A thousand questions at once, each with its own answer."""
    express = await Express.of(nc)
    await express.subscribe("echo", lambda frame: express.publish(frame.reply, frame.data))
    asked = [express.ask("echo", b"%d" % number) for number in range(1000)]
    assert [b"%d" % number for number in range(1000)] == [await answer for answer in asked]
    assert 0 == express.unanswered


async def test_a_stream_acks_or_refuses(nc: Nats) -> None:
    """An ack brings the sequence; a broken expectation is a refusal with its code."""
    await nc.jetstream().add_stream(StreamConfig("EXPRESS", subjects=["express.*"]))
    express = await Express.of(nc)
    head = encode_head({"Nats-Expected-Last-Subject-Sequence": "0"})
    first = pub_ack(await express.ask("express.a", b"x", head))
    assert ("EXPRESS", 1) == (first["stream"], first["seq"])
    with pytest.raises(Refused) as caught:
        pub_ack(await express.ask("express.a", b"x", head))
    assert 10071 == caught.value.code


async def test_what_cannot_be_answered(nc: Nats) -> None:
    """Nobody there, and too large: known at once."""
    express = await Express.of(nc)
    with pytest.raises(NoRespondersError):
        await express.ask("nobody.there", b"")
    with pytest.raises(MaxPayloadError):
        await express.ask("nobody.there", bytes(PAYLOAD_BYTES_MAX + 1))


async def test_a_handler_that_fails_does_not_end_the_connection(nats_server: NatsServer) -> None:
    """Its error goes where nats-py's errors go; the next message is handled."""
    errors: list[Exception] = []
    seen: list[bytes] = []

    async def noted(error: Exception) -> None:
        errors.append(error)

    def handle(frame: Frame) -> None:
        seen.append(frame.data)
        if frame.data == b"bad":
            raise ValueError("bad")

    nc = await nats.connect(nats_server.url, error_cb=noted)
    express = await Express.of(nc)
    await express.subscribe("handled", handle)
    express.publish("handled", b"bad")
    express.publish("handled", b"good")
    await until(lambda: _is(seen == [b"bad", b"good"]), what="both messages")
    assert ["bad"] == [str(error) for error in errors]
    await nc.close()


async def test_an_ended_subscription_is_silent(nc: Nats) -> None:
    """After `unsubscribe` nothing is handed over."""
    express = await Express.of(nc)
    seen: list[bytes] = []
    subscription = await express.subscribe("ended", lambda frame: seen.append(frame.data))
    express.publish("ended", b"1")
    await until(lambda: _is(seen == [b"1"]), what="the message before")
    await express.unsubscribe(subscription)
    express.publish("ended", b"2")
    await nc.flush()
    assert [b"1"] == seen


async def test_it_outlives_the_server(nats_server: NatsServer) -> None:
    """Silence is a timeout; what is published while the server is away arrives after it."""
    nc = await nats.connect(
        nats_server.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1, ping_interval=1
    )
    express = await Express.of(nc)
    seen: list[bytes] = []
    await express.subscribe("outlived", lambda frame: seen.append(frame.data))
    await nc.flush()
    express.timeout_s = 0.2
    nats_server.pause()
    with pytest.raises(NatsTimeout):
        await express.ask("outlived", b"unheard")
    nats_server.kill()
    await until(lambda: _is(not nc.is_connected), what="the end of the connection")
    express.publish("outlived", b"meanwhile")
    nats_server.start()
    await until(lambda: _is(b"meanwhile" in seen), what="the message of the outage")
    await nc.close()


async def test_it_may_begin_while_the_server_is_away(nats_server: NatsServer) -> None:
    """It reads from the connection that comes, not from the one that is no more."""
    nc = await nats.connect(
        nats_server.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1, ping_interval=1
    )
    nats_server.kill()
    await until(lambda: _is(not nc.is_connected), what="the end of the connection")
    express = await Express.of(nc)
    seen: list[bytes] = []
    await express.subscribe("begun", lambda frame: seen.append(frame.data))
    nats_server.start()
    await until(lambda: _is(nc.is_connected), what="the new connection")
    express.publish("begun", b"heard")
    await until(lambda: _is(seen == [b"heard"]), what="the message")
    await nc.close()


async def test_it_knows_which_connection_it_reads_from(nc: Nats) -> None:
    """nats-py makes another one, without a word, when what it made was lost at once."""
    express = await Express.of(nc)
    first, reads_first = nc._transport._io_writer, express.is_before_parser  # type: ignore[union-attr]
    await nc._connect_to_server(nc._current_server)  # type: ignore[arg-type]
    assert (True, False) == (reads_first, express.is_before_parser)
    first.close()


async def test_it_leaves_a_silent_server_with_a_full_socket(tmp_path: Path) -> None:
    """What can be sent no more is given up with the connection, and another server is asked."""
    for name in ("stopped", "other"):
        (tmp_path / name).mkdir()
    with NatsServer(tmp_path / "stopped") as stopped, NatsServer(tmp_path / "other") as other:
        nc = await nats.connect(
            [stopped.url, other.url],
            dont_randomize=True,
            reconnect_time_wait=0.05,
            max_reconnect_attempts=-1,
            connect_timeout=1,
            ping_interval=0.2,
        )
        express = await Express.of(nc)
        stopped.pause()
        try:
            for _ in range(8):
                express.publish("lost", bytes(PAYLOAD_BYTES_MAX - 1000))
            there = other.url.removeprefix("nats://")
            await until(
                lambda: _is(nc.connected_url is not None and nc.connected_url.netloc == there),
                what="the connection to the other server",
            )
        finally:
            stopped.resume()
        await nc.close()


async def test_whatever_comes_is_a_sign_of_life(nc: Nats) -> None:
    """A server that sends is not silent, even while its pongs are late."""
    express = await Express.of(nc)
    seen: list[bytes] = []
    await express.subscribe("alive", lambda frame: seen.append(frame.data))
    await nc.flush()
    nc._pings_outstanding = 2  # as if two pongs were late
    express.publish("alive", b"1")
    await until(lambda: _is(seen == [b"1"]), what="the message")
    assert 0 == nc._pings_outstanding


async def test_it_goes_over_tls(tmp_path: Path) -> None:
    """Large messages and small ones, in both directions, also on a second connection."""
    context = ssl.create_default_context(cafile=certificate(tmp_path))
    files = f'cert_file: "{tmp_path}/cert.pem", key_file: "{tmp_path}/key.pem"'
    with NatsServer(tmp_path, options=f"tls {{ {files} }}") as server:
        url = server.url.replace("nats://", "tls://")
        again = {"reconnect_time_wait": 0.05, "max_reconnect_attempts": -1}
        nc = await nats.connect(url, tls=context, **again)
        express = await Express.of(nc)
        frames: asyncio.Queue[Frame] = asyncio.Queue()
        messages: asyncio.Queue[Msg] = asyncio.Queue()
        await express.subscribe("to.express", frames.put_nowait)
        await nc.subscribe("to.nats", cb=messages.put)
        for _ in range(2):
            for body in (b"x", bytes(PAYLOAD_BYTES_MAX - 1000)):
                express.publish("to.nats", body)
                assert body == (await asyncio.wait_for(messages.get(), 20)).data
                await nc.publish("to.express", body)
                assert body == (await asyncio.wait_for(frames.get(), 20)).data
            server.kill()
            await until(lambda: _is(not nc.is_connected), what="the end of the connection")
            express.publish("to.express", b"meanwhile")
            server.start()
            assert b"meanwhile" == (await asyncio.wait_for(frames.get(), 20)).data
        await nc.close()


def certificate(folder: Path) -> Path:
    """Write a certificate for 127.0.0.1 and its key; return the certificate's path."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    draft = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    draft = draft.not_valid_before(dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    draft = draft.not_valid_after(dt.datetime(2120, 1, 1, tzinfo=dt.UTC))
    draft = draft.add_extension(host, critical=False)
    path = folder / "cert.pem"
    path.write_bytes(draft.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(text)
    return path


async def _is(value: bool) -> bool:
    return value

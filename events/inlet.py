"""What a connection receives: messages of the express are cut out, all else goes on to nats-py.

nats-py reads through a stream of asyncio, which keeps at most 64 KiB, and copies each byte four
times until a message is whole; for one of 5 MiB it stops and resumes the socket eighty times. Here
a large message is written by the kernel into a buffer of its own, and small ones are cut out of
what one read brought.
"""

import asyncio
from collections.abc import Callable, Container
from dataclasses import dataclass

from typing_extensions import override


READ_BYTES = 256 * 1024
"""Most that one read brings, beside large messages."""
LARGE_BYTES = 64 * 1024
"""A message of more bytes that is not there as a whole gets a buffer of its own."""
CRLF = b"\r\n"
_MESSAGES = (b"HMSG ", b"MSG ")

Deliver = Callable[[str, str, str, bytes, bytes], None]
"""Takes a message of the express: subscription, subject, reply, header block and body."""


@dataclass
class _Large:
    """A message that is not there as a whole."""

    line: list[str]
    """Its first line, in words."""
    body: int
    """Where the first line ends."""
    buffer: bytearray
    filled: int


class Inlet(asyncio.BufferedProtocol):
    """Takes the place of a connection's protocol, and hands on all but what the express takes.

    Args:
        inner: The protocol that was there.
        subscriptions: Those of the express.
        deliver: Takes their messages.
        pass_on: Takes the bytes of everything else: lines and messages, always whole.
        heard: Told of every read.
    """

    def __init__(
        self,
        inner: asyncio.Protocol,
        subscriptions: Container[str],
        deliver: Deliver,
        pass_on: Callable[[bytes], None],
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        self._inner = inner
        self._subscriptions = subscriptions
        self._deliver = deliver
        self._pass_on = pass_on
        self._heard = heard
        self._read = memoryview(bytearray(READ_BYTES))
        self._held = b""
        """What was read of a line, or of a small message, that goes on."""
        self._large: _Large | None = None

    @override
    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go: never beyond the end of a large message."""
        if self._large is None:
            return self._read
        return memoryview(self._large.buffer)[self._large.filled :]

    @override
    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        self._heard()
        large = self._large
        if large is None:
            self.take(bytes(self._read[:nbytes]))
            return
        large.filled += nbytes
        if large.filled == len(large.buffer):
            self._large = None
            self._hand_on(large.line, large.buffer, 0, large.body, large.filled)

    def take(self, data: bytes) -> None:
        """Hand on what is whole in bytes that were read, and hold the rest.

        Raises:
            ValueError: No line of NATS.
        """
        if self._held:
            data = self._held + data
        begin = 0
        while (end := data.find(CRLF, begin)) >= 0:
            body = end + len(CRLF)
            if data.startswith(_MESSAGES, begin):
                line = data[begin:end].decode(errors="replace").split(" ")
                whole = body + int(line[-1]) + len(CRLF)
                if whole > len(data):
                    self._begin_large(line, data[begin:], body - begin, whole - begin)
                    break
                self._hand_on(line, data, begin, body, whole)
                begin = whole
            else:
                self._pass_on(data[begin:body])
                begin = body
        self._held = b"" if self._large is not None else data[begin:]

    @override
    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)

    @override
    def pause_writing(self) -> None:
        self._inner.pause_writing()

    @override
    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def _begin_large(self, line: list[str], there: bytes, body: int, size: int) -> None:
        """Make a buffer for a large message of which some is there."""
        if size <= LARGE_BYTES:
            return
        buffer = bytearray(size)
        buffer[: len(there)] = there
        self._large = _Large(line, body, buffer, len(there))

    def _hand_on(
        self, line: list[str], data: bytes | bytearray, begin: int, body: int, end: int
    ) -> None:
        """Hand on one whole message, which begins with its line, and ends behind its body."""
        if line[2] not in self._subscriptions:
            self._pass_on(bytes(data[begin:end]))
            return
        with_head = line[0] == "HMSG"
        split = body + int(line[-2]) if with_head else body
        reply = line[3] if len(line) == 5 + with_head else ""
        whole: bytes | memoryview = memoryview(data) if isinstance(data, bytearray) else data
        head, rest = bytes(whole[body:split]), bytes(whole[split : end - len(CRLF)])
        self._deliver(line[2], line[1], reply, head, rest)

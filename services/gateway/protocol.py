"""HTTP/1.1 as uvicorn reads it, with a bound on what comes before a request is one.

uvicorn's httptools reader collects the head of a request without limit and in quadratic time: a
header of 100 MB stops the whole process for seconds. It also waits for ever for a head that never
ends. And it writes head and body of an answer with two system calls, which for a short answer are
the largest part of the work.
"""

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

from typing_extensions import override
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.gateway.departures import ARRIVED, DEPARTURES


HEAD_BYTES_MAX = 64 * 1024
"""Of the request line and all headers; what arrives in one piece with it may exceed it."""


class Gathered(asyncio.Transport):
    """A connection on which what one turn of the loop writes leaves in one system call.

    That is at its end, or before when told so.

    Args:
        transport: The connection.
        loop: Its loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []

    @override
    def write(self, data: bytes) -> None:  # type: ignore[override] # what uvicorn writes
        if not self._pieces:
            self._loop.call_soon(self.leave)
        self._pieces.append(data)

    @override
    def close(self) -> None:
        self.leave()
        self._transport.close()

    @override
    def is_closing(self) -> bool:
        return self._transport.is_closing()

    @override
    def pause_reading(self) -> None:
        self._transport.pause_reading()

    @override
    def resume_reading(self) -> None:
        self._transport.resume_reading()

    @override
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def leave(self) -> None:
        """Hand on what was written so far."""
        if self._pieces:
            self._transport.writelines(self._pieces)
            self._pieces = []


class BoundedHttp(HttpToolsProtocol):
    """One connection; it is closed when the head of a request is too large or too slow."""

    head_s_max: ClassVar[float]
    """How long a connection may take to send a whole head, seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._turned = False
        self._head_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._departures: set[Callable[[], None]] = set()

    @override
    def on_message_begin(self) -> None:
        """Let whoever serves the request hear when it is all here, and when the client goes."""
        super().on_message_begin()
        scope: Any = self.scope
        scope[ARRIVED], scope[DEPARTURES] = False, self._departures

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(Gathered(transport, self.loop))
        self._deadline = self.loop.call_later(self.head_s_max, self._too_slow)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline, and call off what the client waited for."""
        self._stop_waiting()
        super().connection_lost(exc)
        for leave in tuple(self._departures):
            leave()

    @override
    def data_received(self, data: bytes) -> None:
        """Read on, unless the head does not end."""
        if self._in_head and self._head_bytes > HEAD_BYTES_MAX:
            self.send_400_response(f"The head of a request holds at most {HEAD_BYTES_MAX} bytes.")
            return
        self._turned = False
        super().data_received(data)
        if self._in_head and not self._turned:  # else most of it belonged to the request before
            self._head_bytes += len(data)
            if self._deadline is None:
                self._deadline = self.loop.call_later(self.head_s_max, self._too_slow)

    @override
    def on_headers_complete(self) -> None:
        """Take the head for read."""
        self._stop_waiting()
        self._in_head, self._turned, self._head_bytes = False, True, 0
        super().on_headers_complete()

    @override
    def on_body(self, body: bytes) -> None:
        """Take a piece of the body; the first one since the last was read is not copied."""
        cycle: Any = self.cycle
        is_first = cycle is not None and not cycle.body and len(body) > HIGH_WATER_LIMIT
        if not is_first and cycle is not None and isinstance(cycle.body, bytes):
            cycle.body = bytearray(cycle.body)
        super().on_body(b"" if is_first else body)
        if is_first and not cycle.response_complete:
            cycle.body = body
            self.flow.pause_reading()

    @override
    def on_message_complete(self) -> None:
        """Expect another head; a connection that is kept alive may idle before it."""
        super().on_message_complete()
        scope: Any = self.scope
        scope[ARRIVED] = True
        self._in_head, self._turned = True, True

    @override
    def on_response_complete(self) -> None:
        """Let a whole answer leave before the log line about it is written, if it is alone.

        Where others are under way, the client would take the processor from them.
        """
        if len(self.tasks) == 1:
            transport: Any = self.transport
            transport.leave()
        super().on_response_complete()

    def _too_slow(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.send_400_response(f"A request must begin within {self.head_s_max:g} seconds.")

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def bounded_http(head_s: float) -> type[BoundedHttp]:
    """Return the protocol with a time limit; uvicorn makes one object of it for each connection."""
    return type("BoundedHttp", (BoundedHttp,), {"head_s_max": head_s})

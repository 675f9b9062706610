"""Connections between simulated processes and the simulated server: bytes, in order, with delays.

Each direction of a connection keeps its order, as TCP does; nothing else does. What is under way
when a connection is cut is lost.
"""

import asyncio
import random
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, Protocol

from typing_extensions import override

from tests.support.sim.loop import RUNNING, Process, VirtualLoop


class Peer(Protocol):
    """The server's side of connections."""

    def opened(self, link: "Link") -> None:
        """Take a new connection."""

    def received(self, link: "Link", data: bytes) -> None:
        """Take bytes."""

    def closed(self, link: "Link") -> None:
        """Take note that a connection is gone."""


def give(protocol: asyncio.BaseProtocol, data: bytes) -> None:
    """Hand bytes to a protocol of either kind, as a loop does."""
    if isinstance(protocol, asyncio.Protocol):
        protocol.data_received(data)
        return
    assert isinstance(protocol, asyncio.BufferedProtocol), "there is no third kind"
    rest = memoryview(data)
    while rest:
        buffer = memoryview(protocol.get_buffer(len(rest)))
        size = min(len(buffer), len(rest))
        buffer[:size] = rest[:size]
        protocol.buffer_updated(size)
        rest = rest[size:]


class Link:
    """One connection; the client's protocol on one side, the server on the other."""

    def __init__(
        self,
        loop: VirtualLoop,
        peer: Peer,
        protocol: asyncio.Protocol,
        latency_s: Callable[[], float],
    ) -> None:
        self.process: Process | None = RUNNING.get()
        self.up = True
        self.slow_until = 0.0
        """Nothing arrives at the client before; what a stall of the network does."""
        self._loop = loop
        self._peer = peer
        self.protocol: asyncio.BaseProtocol = protocol
        """Of the client's side; it may be changed."""
        self._latency_s = latency_s
        self._context: Context = copy_context()
        self._arrives_up = self._arrives_down = 0.0
        self.transport = Transport(self)

    def open(self) -> None:
        """Tell both sides."""
        self.protocol.connection_made(self.transport)
        self._loop.call_later(self._latency_s(), self._if_up, self._peer.opened, self)

    def write(self, data: bytes) -> None:
        """Send from the client to the server; sent bytes arrive even if the process dies."""
        if self.up:
            at = max(self._loop.time() + self._latency_s(), self._arrives_up)
            self._arrives_up = at
            self._loop.call_at(at, self._arrive_up, data, context=Context())

    def send(self, data: bytes) -> None:
        """Send from the server to the client."""
        if self.up:
            at = max(self._loop.time() + self._latency_s(), self._arrives_down, self.slow_until)
            self._arrives_down = at
            self._loop.call_at(at, self._arrive_down, data, context=self._context)

    def close(self) -> None:
        """End it from the client's side: what was sent before still arrives."""
        if not self.transport.closing:
            self.transport.closing = True
            self._loop.call_soon(self.protocol.connection_lost, None, context=self._context)
            at = max(self._loop.time() + self._latency_s(), self._arrives_up)
            self._loop.call_at(at, self._end, context=Context())

    def cut(self) -> None:
        """End it from outside: what is under way is lost, both sides notice."""
        if self.up:
            self._end()
            if not self.transport.closing:
                self.transport.closing = True
                self._loop.call_later(
                    self._latency_s(),
                    self.protocol.connection_lost,
                    ConnectionResetError("cut"),
                    context=self._context,
                )

    def _end(self) -> None:
        if self.up:
            self.up = False
            self._peer.closed(self)

    def _if_up(self, call: Callable[..., Any], *args: Any) -> None:
        if self.up:
            call(*args)

    def _arrive_up(self, data: bytes) -> None:
        if self.up:
            self._peer.received(self, data)

    def _arrive_down(self, data: bytes) -> None:
        if self.up and not self.transport.closing:
            give(self.protocol, data)


class Transport(asyncio.Transport):
    """What nats-py writes to."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self.closing = False

    @override
    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._link.write(bytes(data))

    @override
    def writelines(self, list_of_data: Any) -> None:
        self._link.write(b"".join(list_of_data))

    @override
    def close(self) -> None:
        self._link.close()

    @override
    def abort(self) -> None:
        self._link.close()

    @override
    def is_closing(self) -> bool:
        return self.closing

    @override
    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._link.protocol

    @override
    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._link.protocol = protocol

    @override
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Network:
    """Opens links to one server."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.loop: VirtualLoop
        self.peer: Peer
        self.listening = True
        self.links: list[Link] = []

    def connect(self, protocol: asyncio.Protocol, host: str, port: int) -> asyncio.Transport:
        """Open a connection."""
        if not self.listening:
            raise ConnectionRefusedError(f"nobody listens at {host}:{port}")
        link = Link(self.loop, self.peer, protocol, self._latency_s)
        self.links.append(link)
        link.open()
        return link.transport

    def latency_s(self) -> float:
        """Return how long the next bytes take: rarely long."""
        return self._latency_s()

    def _latency_s(self) -> float:
        chance = self._chance.random
        usual = 0.0001 + 0.001 * chance()
        return usual * 50 if chance() < 0.01 else usual

    def gone(self, process: Process) -> None:
        """Close a dead process's connections, as the kernel does."""
        for link in self.links:
            if link.process is process:
                link.close()
        self.links = [link for link in self.links if link.up]

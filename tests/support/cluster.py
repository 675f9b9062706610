"""Several nats-servers as one cluster, each with a store of its own."""

import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.nats import NatsServer
from tests.support.network import Network


class NatsCluster:
    """A cluster of nats-servers.

    Args:
        folders: One for each server: configuration and log.
        stores: Where each keeps JetStream's files; below its folder by default.
        sync_interval: When written data goes to disk.
        network: Whose hosts the servers are, so that one can be cut off; this machine by default.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        *,
        stores: Sequence[Path] | None = None,
        sync_interval: str = "always",
        network: Network | None = None,
    ) -> None:
        ports = _free_ports(len(folders))
        hosts = [network.address(n) if network else "127.0.0.1" for n in range(len(folders))]
        routes = ", ".join(
            f'"nats://{host}:{port}"' for host, port in zip(hosts, ports, strict=True)
        )
        places = stores or [folder / "store" for folder in folders]
        self.servers = [
            NatsServer(
                folder,
                store=store,
                sync_interval=sync_interval,
                host=hosts[number],
                inside=network.inside(number) if network else (),
                options=f"server_name: n{number}\n"
                f"cluster {{\n  name: test\n  host: {hosts[number]}\n"
                f"  port: {port}\n  routes: [{routes}]\n"
                '  ping_interval: "1s"\n  ping_max: 2\n}',  # as deploy/compose/nats-cluster.conf
            )
            for number, (folder, store, port) in enumerate(zip(folders, places, ports, strict=True))
        ]

    @property
    def url(self) -> str:
        """Addresses of all, separated by commas."""
        return ",".join(server.url for server in self.servers)

    def start(self, servers: Sequence[NatsServer] | None = None) -> None:
        """Start some of them, all by default, and wait until JetStream answers at each."""
        chosen = self.servers if servers is None else servers
        for server in chosen:
            server.launch()
        for server in chosen:
            server.wait_ready()

    def __enter__(self) -> Self:
        """Start all."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop all."""
        for server in self.servers:
            server.stop()


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody uses now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()

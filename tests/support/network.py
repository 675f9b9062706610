"""A switch with hosts on it, each a network namespace: any of them can be cut off and come back.

A host that is cut off sees no error, only silence, as behind a broken switch. Needs root.
"""

import itertools
import os
import shutil
import subprocess
from dataclasses import dataclass
from types import TracebackType
from typing import Self


NEEDED = ("ip", "bridge", "nsenter")
_NUMBERS = itertools.count()
FORWARDING, DISABLED = "3", "0"
"""States of a bridge's port. Source: bridge(8)."""


def unusable() -> str:
    """Return why there can be no such network here; empty when there can."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"missing: {', '.join(missing)} (apt install iproute2 util-linux)"
    name = f"cb{os.getpid()}-try"
    if subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode:  # noqa: S603, S607
        return "network namespaces need root"
    _run("ip", "netns", "del", name)
    return ""


@dataclass
class Network:
    """The switch and its hosts.

    Args:
        count: How many hosts.
    """

    count: int

    def __post_init__(self) -> None:
        """Choose names and addresses that nobody else has."""
        self._name = f"cb{os.getpid()}-{next(_NUMBERS)}"
        self._subnet = f"10.213.{os.getpid() % 256}"

    def address(self, host: int) -> str:
        """Return a host's address."""
        return f"{self._subnet}.{10 + host}"

    def inside(self, host: int) -> tuple[str, ...]:
        """Return the words in front of a command that is to run on a host."""
        return _within(self._host(host))

    def cut_off(self, host: int) -> None:
        """Let nothing pass to or from a host."""
        self._on_switch("bridge", "link", "set", "dev", f"p{host}", "state", DISABLED)

    def join(self, host: int) -> None:
        """Let all pass again."""
        self._on_switch("bridge", "link", "set", "dev", f"p{host}", "state", FORWARDING)

    def __enter__(self) -> Self:
        """Build it."""
        _run("ip", "netns", "add", self._switch)
        self._on_switch("ip", "link", "add", "br0", "type", "bridge")
        self._on_switch("ip", "link", "set", "br0", "up")
        # Clients are outside; they have a port of their own.
        _run("ip", "link", "add", self._name, "type", "veth", "peer", "name", "out")
        self._plug("out")
        _run("ip", "addr", "add", f"{self._subnet}.1/24", "dev", self._name)
        _run("ip", "link", "set", self._name, "up")
        for host in range(self.count):
            name, port = self._host(host), f"p{host}"
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            self._plug(port)
            _run("ip", "-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it down; nobody may run on its hosts any more."""
        _run("ip", "link", "del", self._name)  # the kernel takes its time with namespaces
        for name in (*map(self._host, range(self.count)), self._switch):
            _run("ip", "netns", "del", name)

    @property
    def _switch(self) -> str:
        return f"{self._name}-switch"

    def _host(self, host: int) -> str:
        return f"{self._name}-{host}"

    def _plug(self, port: str) -> None:
        _run("ip", "link", "set", port, "netns", self._switch)
        self._on_switch("ip", "link", "set", port, "master", "br0")
        self._on_switch("ip", "link", "set", port, "up")

    def _on_switch(self, *command: str) -> None:
        _run(*_within(self._switch), *command)


def _within(name: str) -> tuple[str, ...]:
    """Return the words in front of a command in a namespace.

    Not `ip netns exec`: that copies all mounts, and disks of other tests stay busy in the copy.
    """
    return ("nsenter", f"--net=/run/netns/{name}")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - fixed programs

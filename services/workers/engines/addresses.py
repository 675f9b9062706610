"""Which addresses an `http` node may reach: public ones, and those an operator allows.

A name is resolved once, every address it has is checked, and the connection goes to a checked
address, so what a name says a moment later (DNS rebinding) does not matter.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from schemas.errors import FailedPrecondition, PermissionDenied, Unavailable


Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SPECIAL: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24"),
        *("192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),
        "168.63.129.16/32",  # the metadata of one cloud, at an address that looks public
    )
)
"""Not the public network, or not one machine of it. Source: the special-purpose registries of IANA.

Python's own `is_global` knows them as of its release, so it is asked as well and not alone.
"""
_UNICAST6 = ipaddress.ip_network("2000::/3")
"""All of IPv6 that is public; what carries IPv4 addresses elsewhere is outside of it or above."""


@dataclass(frozen=True)
class Allowed:
    """What may be reached besides the public network.

    Args:
        hosts: Names as a URL has them.
        networks: Ranges.
        setting: The variable that says so.
    """

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = field(default=())
    setting: str = "CLAWDBOT_HTTP_ALLOW"

    @classmethod
    def parse(cls, text: str, setting: str = "CLAWDBOT_HTTP_ALLOW") -> "Allowed":
        """Read names, addresses and CIDR ranges with commas between them.

        Raises:
            FailedPrecondition: One is neither; names it.
        """
        hosts: set[str] = set()
        networks: list[Network] = []
        for item in filter(None, (part.strip().lower() for part in text.split(","))):
            try:
                networks.append(ipaddress.ip_network(item))
            except ValueError as error:
                if not all(label.replace("-", "").isalnum() for label in item.split(".")):
                    raise FailedPrecondition(
                        f"'{item}' is neither a host name nor a CIDR range such as 10.0.0.0/8",
                        field=setting,
                    ) from error
                hosts.add(item)
        return cls(frozenset(hosts), tuple(networks), setting)

    def permits(self, host: str, address: Address) -> bool:
        """Tell whether an address behind a name may be reached."""
        if host.lower().rstrip(".") in self.hosts:
            return True
        return any(address in network for network in self.networks) or is_public(address)


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the public network and of one machine."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address not in _UNICAST6:
            return False
    return address.is_global and not any(address in network for network in _SPECIAL)


async def resolve(host: str, port: int, allowed: Allowed) -> list[str]:
    """Return the addresses of a host, all of which may be reached.

    Raises:
        PermissionDenied: One of them may not.
        Unavailable: The name cannot be resolved now; retryable.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"the name '{host}' cannot be resolved") from error
    addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
    check(host, addresses, allowed)
    return addresses


def check(host: str, addresses: Iterable[str], allowed: Allowed) -> None:
    """Refuse a host one of whose addresses may not be reached.

    Raises:
        PermissionDenied: Says which; an operator may allow it.
    """
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        if "%" in text or not allowed.permits(host, address):
            raise PermissionDenied(
                f"'{host}' leads to {text}, which is not public; whoever runs the workers may "
                f"allow it with {allowed.setting}",
                field="url",
            )

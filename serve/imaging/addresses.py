"""Which internet addresses an image host may have, and a resolver that gives no others.

An allowed name says nothing of where it leads: whoever runs its DNS can point it at this network
(server-side request forgery), and differently at the second look (DNS rebinding). So the addresses
are judged where the connection is made, and the connection goes to what was judged.

Sources: IANA's special-purpose address registries (RFC 6890) and RFC 4291, 3056, 6052.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

# Beyond what is_global knows, which differs between versions of Python.
_NOT_HOSTS_V4 = (
    IPv4Network("192.0.0.0/24"),  # protocol assignments
    IPv4Network("192.88.99.0/24"),  # 6to4 relays, until RFC 7526
    IPv4Network("224.0.0.0/4"),  # multicast, which it counts as global
)
_ALLOCATED = IPv6Network("2000::/3")  # all that IANA has given out as global unicast
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_NOT_HOSTS_V6 = (
    IPv6Network("2001::/23"),  # protocol assignments: Teredo, benchmarking, ORCHID
    IPv6Network("2001:db8::/32"),  # documentation
    IPv6Network("2002::/16"),  # 6to4: an IPv4 address, routed by whoever relays it
    IPv6Network("3fff::/20"),  # documentation (RFC 9637)
)


class NotPublicError(Exception):
    """A name resolves to an address that is not on the public internet."""


def is_public(address: str) -> bool:
    """Whether an address is a host's on the public internet, as far as its number tells."""
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address) and parsed in _NAT64:
        # How a network without IPv4 reaches any IPv4 host: as good as the address inside.
        parsed = IPv4Address(int(parsed) & 0xFFFFFFFF)
    if isinstance(parsed, IPv4Address):
        return parsed.is_global and not any(parsed in network for network in _NOT_HOSTS_V4)
    return parsed in _ALLOCATED and not any(parsed in network for network in _NOT_HOSTS_V6)


class PublicResolver(AbstractResolver):
    """The system's resolver; fails if any of a name's addresses is not public."""

    def __init__(self) -> None:
        self._system = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of ``host``.

        Raises:
            NotPublicError: one of them is not public. A public one beside it does not help: which
                of them is connected to is decided by who answers first.
            OSError: there is none.
        """
        found = await self._system.resolve(host, port, family)
        if not all(is_public(each["host"]) for each in found):
            raise NotPublicError
        return found

    async def close(self) -> None:
        await self._system.close()

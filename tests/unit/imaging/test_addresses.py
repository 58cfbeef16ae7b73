"""Which addresses an image host may have."""

from __future__ import annotations

import socket
from ipaddress import IPv4Network, IPv6Address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.imaging.addresses import NotPublicError, PublicResolver, is_public

# IANA's special-purpose registries, and what else is no host on the internet.
SPECIAL_V4 = [
    IPv4Network(each)
    for each in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]
SPECIAL_V6 = (
    "::/8",  # unspecified, loopback, IPv4-compatible, IPv4-mapped
    "64:ff9b:1::/48",  # NAT64 for a network of one's own
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
)


@given(address=st.ip_addresses(v=4))
def test_an_ipv4_address_is_public_if_no_registry_sets_it_apart(address: Any) -> None:
    assert is_public(str(address)) == (not any(address in each for each in SPECIAL_V4))


@pytest.mark.parametrize("network", SPECIAL_V4, ids=str)
def test_a_special_network_is_refused_up_to_its_edges(network: IPv4Network) -> None:
    for address in (network[0], network[-1]):
        assert not is_public(str(address))


@given(data=st.data(), network=st.sampled_from(SPECIAL_V6))
def test_a_special_ipv6_address_is_refused(data: Any, network: str) -> None:
    address = data.draw(st.ip_addresses(network=network))
    assert not is_public(str(address))


@given(address=st.ip_addresses(v=6))
def test_no_ipv6_address_outside_the_allocated_block_is_public(address: IPv6Address) -> None:
    if is_public(str(address)):
        assert address in ip_network("2000::/3") or address in ip_network("64:ff9b::/96")


@given(inside=st.ip_addresses(v=4))
def test_an_ipv4_address_within_an_ipv6_one_is_never_more_public_than_alone(inside: Any) -> None:
    number = int(inside)
    mapped = IPv6Address((0xFFFF << 32) | number)
    compatible = IPv6Address(number)
    six_to_four = IPv6Address((0x2002 << 112) | (number << 80) | 1)
    teredo = IPv6Address((0x20010000 << 96) | (number ^ 0xFFFFFFFF))
    local_nat64 = IPv6Address((0x0064FF9B0001 << 80) | number)
    for wrapped in (mapped, compatible, six_to_four, teredo, local_nat64):
        assert not is_public(str(wrapped))
    # The one that networks without IPv4 reach IPv4 hosts by.
    assert is_public(str(IPv6Address((0x0064FF9B << 96) | number))) == is_public(str(inside))


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "2a00:1450::1"])
def test_ordinary_addresses_are_public(address: str) -> None:
    assert is_public(address)


def test_a_link_local_address_with_its_interface_is_refused() -> None:
    assert not is_public("fe80::1%eth0")


def answers(*addresses: str) -> Any:
    """What socket.getaddrinfo gives for a name with these addresses."""

    def getaddrinfo(host: Any, port: Any, *_: Any, **__: Any) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (each, port or 0, 0, 0))
            if ":" in each
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port or 0))
            for each in addresses
        ]

    return getaddrinfo


async def test_one_private_address_among_public_ones_spoils_the_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answers("1.1.1.1", "2606:4700::1", "10.0.0.7"))
    with pytest.raises(NotPublicError):
        await PublicResolver().resolve("images.example", 443, socket.AF_UNSPEC)


async def test_what_is_connected_to_is_what_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answers("1.1.1.1", "2606:4700::1"))
    found = await PublicResolver().resolve("images.example", 443, socket.AF_UNSPEC)
    assert [each["host"] for each in found] == ["1.1.1.1", "2606:4700::1"]
    assert all(each["flags"] & socket.AI_NUMERICHOST for each in found)  # no second look


async def test_a_name_that_leads_elsewhere_at_the_second_look_is_refused_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver = PublicResolver()
    monkeypatch.setattr(socket, "getaddrinfo", answers("1.1.1.1"))
    assert await resolver.resolve("images.example", 443)
    monkeypatch.setattr(socket, "getaddrinfo", answers("127.0.0.1"))
    with pytest.raises(NotPublicError):
        await resolver.resolve("images.example", 443)


async def test_the_real_resolver_says_that_localhost_is_not_public() -> None:
    with pytest.raises(NotPublicError):
        await PublicResolver().resolve("localhost", 443, socket.AF_UNSPEC)

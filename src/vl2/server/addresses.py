"""Which network addresses a server may be sent to on a stranger's word: public ones, and no disguise of others."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

NAT64 = ip_network("64:ff9b::/96")  # the last 32 bits are the IPv4 address that the packets go to

REFUSED = tuple(
    ip_network(network)
    for network in (
        # Versions of Python differ in what they call global; these are refused on all of them.
        "100.64.0.0/10",  # carrier-grade NAT; 100.100.100.200 is a cloud's metadata service
        "168.63.129.16/32",  # Azure's host, as seen from every virtual machine
        "192.0.0.0/24",  # protocol assignments; 192.0.0.192 is a cloud's metadata service
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",  # benchmarks
        "::/96",  # IPv4-compatible, deprecated
        "64:ff9b:1::/48",  # NAT64 by local rules
        "2001::/32",  # Teredo
        "2002::/16",  # 6to4
        "fec0::/10",  # site-local, as it was before 2004
    )
)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether `address`, or the IPv4 address wrapped in it, can only belong to the public internet."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        inner = wrapped_address(address)
        if inner is not None:
            return is_public(inner)
    is_special = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    return address.is_global and not is_special and not any(address in network for network in REFUSED)


def wrapped_address(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that this machine or its network would send the packets to, if it is one in disguise."""
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped

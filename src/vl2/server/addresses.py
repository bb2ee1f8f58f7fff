"""Where a server may be sent on a stranger's word: to public addresses, and no disguise of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from vl2.core.config import ServerConfig
from vl2.core.errors import InvalidRequest, SetupError

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


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


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


@dataclass(frozen=True)
class FetchRules:
    """A list of domains narrows what may be fetched; only `networks` allow an address that is not public."""

    is_on: bool = True
    domains: tuple[str, ...] = ()  # and all below them; empty: any
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    proxy: str | None = None

    def check_is_on(self) -> None:
        """Raises: InvalidRequest."""
        if not self.is_on:
            raise InvalidRequest("this server fetches nothing (--no-fetch); send the picture as a data: URL")

    def check_domain(self, host: str) -> None:
        """`host`: as it is looked up, names in punycode. Raises: InvalidRequest."""
        name = host.lower().rstrip(".")
        if self.domains and not any(name == domain or name.endswith("." + domain) for domain in self.domains):
            raise InvalidRequest(f"the host {host[:100]!r} is not on this server's list (--fetch-allow-domain)")

    def check_address(self, address: str, host: str) -> None:
        """Raises: InvalidRequest."""
        parsed = ip_address(address)
        inner = wrapped_address(parsed) if isinstance(parsed, IPv6Address) else None
        is_listed = any(each in network for each in (parsed, inner) if each for network in self.networks)
        if not is_listed and not is_public(parsed):
            raise InvalidRequest(f"the host {host[:100]!r} is not on the public internet")


def fetch_rules(config: ServerConfig) -> FetchRules:
    """Raises: SetupError for what is no network or domain."""
    return FetchRules(
        config.fetch,
        tuple(_domain(domain) for domain in config.fetch_allow_domain),
        tuple(_networks(config.fetch_allow_cidr)),
        config.fetch_proxy,
    )


def _domain(given: str) -> str:
    try:
        name = given.strip().strip(".").lower().encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    if not name or not all(char.isalnum() or char in "-._" for char in name):
        raise SetupError(f"--fetch-allow-domain is {given!r}, but must be a domain such as pictures.example")
    return name


def _networks(given: Sequence[str]) -> list[IPv4Network | IPv6Network]:
    try:
        return [ip_network(text) for text in given]
    except ValueError as error:
        raise SetupError(f"--fetch-allow-cidr must be a network such as 10.1.0.0/16: {error}") from None

"""nginx in front of several `vl2 serve`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vl2.core.config import ServerConfig, at_least, between, option
from vl2.core.errors import SetupError
from vl2.deploy.render import Files, render

CONNECTIONS_PER_STREAM = 2  # one from the client, one to the server
SPARE_CONNECTIONS = 256
SERVER = re.compile(r"(?:(?P<name>[a-z0-9]{1,32})=)?(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class NginxOptions:
    """How nginx balances and what it lets through."""

    upstream: tuple[str, ...] = option(
        ("127.0.0.1:8001", "127.0.0.1:8002"),
        "Server as [NODE=]HOST:PORT (may be repeated); NODE is its --node-name, by default n1, n2 … in order.",
    )
    listen: str = option("8080", "Port, or ADDRESS:PORT, to listen on.")
    server_name: str = option("_", "Name in the Host header; _ takes any.")
    tls_cert: str | None = option(None, "File of the certificate chain (PEM); with --tls-key nginx speaks https.")
    tls_key: str | None = option(None, "File of the certificate's private key (PEM).")
    balance: str = option(
        "least_conn",
        "least_conn: to the server with fewest open requests; affinity: by the value of the header X-VL2-Affinity.",
        choices=("least_conn", "affinity"),
    )
    streams: int = option(1000, "Answers streamed at the same time.", rule=between(1, 1_000_000))
    max_body_bytes: int = option(ServerConfig().max_body_bytes, "Largest request body, bytes.", rule=at_least(1))
    read_timeout_s: int = option(
        600,
        "Longest time without a byte from a server, seconds; also that of one whole answer without streaming.",
        rule=between(1, 86400),
    )
    resolver: str | None = option(
        None, "DNS server that names of servers are looked up at again and again; needs nginx 1.27.3 or newer."
    )
    state_dir: str = option("/var/lib/nginx", "Folder that nginx writes to: bodies, pid.")


@dataclass(frozen=True, slots=True)
class Node:
    """One `vl2 serve`; ids of what it keeps name it."""

    name: str
    address: str


def nginx_files(options: NginxOptions) -> Files:
    """Raises: SetupError."""
    if (options.tls_cert is None) != (options.tls_key is None):
        raise SetupError("--tls-cert and --tls-key go together; give both, or none of them")
    nodes = parse_nodes(options.upstream)
    connections = CONNECTIONS_PER_STREAM * options.streams + SPARE_CONNECTIONS
    return render("nginx", o=options, nodes=nodes, connections=connections)


def parse_nodes(upstream: tuple[str, ...]) -> list[Node]:
    """Raises: SetupError."""
    nodes = []
    for number, text in enumerate(upstream, 1):
        match = SERVER.fullmatch(text)
        if match is None or not 0 < int(match["port"]) < 65536:
            raise SetupError(f"--upstream is {text!r}, but must be [NODE=]HOST:PORT, as n1=10.0.0.1:8000")
        nodes.append(Node(match["name"] or f"n{number}", f"{match['host']}:{match['port']}"))
    for kind in ("name", "address"):
        values = [getattr(node, kind) for node in nodes]
        if twice := [value for value in values if values.count(value) > 1]:
            raise SetupError(f"--upstream names {twice[0]} twice; each server needs a {kind} of its own")
    if not nodes:
        raise SetupError("there is no --upstream; give one for each server, as --upstream n1=10.0.0.1:8000")
    return nodes

"""Ids of what is kept: `resp_n1_6f0c…` names its node, so that a proxy can route by it."""

from __future__ import annotations

import hashlib
import re
import socket
import uuid

from vl2.core.errors import NotFound

_ID = re.compile(r"([a-z]+)_([a-z0-9]{1,32})_([0-9a-f]{32})")


def default_node() -> str:
    """The same after a restart on this machine."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


class NodeIds:
    def __init__(self, node: str | None) -> None:
        self.node = node or default_node()

    def new(self, kind: str) -> str:
        return f"{kind}_{self.node}_{uuid.uuid4().hex}"

    def check(self, kind: str, given: str, param: str | None = None) -> None:
        """Raises: NotFound for an id of another node, or of no such thing."""
        match = _ID.fullmatch(given)
        if match is None or match[1] != kind:
            raise not_found(given, param)
        if match[2] != self.node:
            raise NotFound(
                f"{given} belongs to the node {match[2]!r}, and this is {self.node!r}; ask there", param=param
            )


def not_found(given: str, param: str | None = None) -> NotFound:
    """The same words for what never was, what is gone, and what is another tenant's."""
    return NotFound(f"there is nothing here with the id {given[:100]!r}", param=param)

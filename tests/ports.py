"""Ports of loopback for servers that must be told one before they start, or that come back where they were."""

from __future__ import annotations

import itertools
import os
import socket

FIRST, LAST = 10_000, 30_000
"""Below those that the system gives to clients (net.ipv4.ip_local_port_range), and to servers that take any."""

_numbers = itertools.count(os.getpid() * 50)  # runs beside each other begin at different places


def free_port() -> int:
    """No one listens there, and no other call has had it."""
    for number in _numbers:
        port = FIRST + number % (LAST - FIRST)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("numbers have no end")

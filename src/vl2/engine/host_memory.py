"""Memory of the host that an engine may take."""

from __future__ import annotations

from vl2.core.errors import SetupError
from vl2.core.stats import available_bytes


def available_host_bytes() -> int:
    """Raises: SetupError where the system does not tell."""
    available = available_bytes()
    if available is None:
        raise SetupError("this system does not tell how much memory is free; give --kv-cache-tokens")
    return available

"""vl2 key: what it prints is what the server takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Result
from vl2.server.tenants import KeyRing


def test_a_new_key_opens_by_its_line(vl2: Callable[..., Result], tmp_path: Path) -> None:
    made = vl2("key", "team-1", "--max-concurrent", "3", "--priority", "-2")
    key = made.stderr.split()[-1]
    assert key not in made.stdout
    (tmp_path / "keys").write_text(made.stdout)
    found = KeyRing(file=str(tmp_path / "keys")).find(key)
    assert found is not None
    assert (found.tenant, found.max_concurrent, found.priority) == ("team-1", 3, -2)


@pytest.mark.parametrize("tenant", ["a b", "", "../x", "é"])
def test_a_tenant_needs_a_plain_name(vl2: Callable[..., Result], tenant: str) -> None:
    assert vl2("key", tenant).code == 2

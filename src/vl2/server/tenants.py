"""Keys and whose they are. A file holds hashes only, one JSON object a line, as `vl2 key TENANT` prints it:

{"tenant": "alice", "sha256": "9f86…", "requests_per_minute": 60, "max_concurrent": 4, "priority": 10}
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vl2.core.errors import SetupError
from vl2.core.secret import Secret

logger = logging.getLogger(__name__)

TENANT_OF_FLAGS = "default"
TENANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LIMITS = {"requests_per_minute": (1, 10**6), "max_concurrent": (1, 10**5), "priority": (-100, 100)}


@dataclass(frozen=True, slots=True)
class Key:
    """What a key opens, and how much of it. Two keys may be of one tenant: they see the same objects."""

    tenant: str
    digest: bytes = b""
    requests_per_minute: int | None = None
    max_concurrent: int | None = None
    priority: int | None = None  # then, and among several tenants, a request may only put itself behind it (or 0)


ANYONE = Key("")
"""Where no key is asked for, all are this one tenant."""


class KeyRing:
    """The keys of the flags and of the file, which is read again as soon as it changes."""

    def __init__(self, keys: Iterable[Secret] = (), file: str | None = None) -> None:
        """Raises: SetupError when the file cannot be read."""
        keys = list(keys)
        if not all(keys):
            raise SetupError("--api-key is empty, and an empty key would let everyone in; leave it out for no key")
        self._of_flags = [Key(TENANT_OF_FLAGS, digest_of(key.reveal())) for key in keys]
        self._file = Path(file) if file else None
        self._of_file: list[Key] = []
        self._seen: tuple[int, ...] = ()
        if self._file is not None:
            try:
                self._seen = _state_of(self._file)
                self._of_file = parse_keys(self._file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise SetupError(f"--keys-file {self._file} cannot be read: {error}") from None

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for. A file without keys lets no one in."""
        return not self._of_flags and self._file is None

    @property
    def has_many_tenants(self) -> bool:
        return len({key.tenant for key in self._keys()}) > 1

    def find(self, text: str) -> Key | None:
        """Every key is compared, in constant time: the time taken tells nothing about any of them."""
        digest = digest_of(text)
        matches = [key for key in self._keys() if hmac.compare_digest(digest, key.digest)]
        return matches[0] if matches else None

    def _keys(self) -> Sequence[Key]:
        if self._file is not None:
            self._reload(self._file)
        return [*self._of_flags, *self._of_file]

    def _reload(self, file: Path) -> None:
        """A file that cannot be read leaves the keys as they were: half a save must not lock everyone out."""
        try:
            state = _state_of(file)
            if state == self._seen:
                return
            self._seen = state
            self._of_file = parse_keys(file.read_text(encoding="utf-8"))
            logger.info("read %d keys from %s", len(self._of_file), file)
        except FileNotFoundError:  # between the two steps of an editor's save; asked for again by the next request
            return
        except (OSError, ValueError) as error:
            logger.error("%s cannot be read, its former keys stay: %s", file, error)


def digest_of(key: str) -> bytes:
    """Keys are long and random, so a plain hash is enough: there is nothing to guess."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def parse_keys(text: str) -> list[Key]:
    """Raises: ValueError that names the line."""
    lines = [(idx, line) for idx, line in enumerate(text.splitlines(), 1) if line.strip() and line.strip()[0] != "#"]
    return [_parse_key(idx, line) for idx, line in lines]


def _parse_key(line_idx: int, line: str) -> Key:
    def check(is_good: bool, rule: str) -> None:
        if not is_good:
            raise ValueError(f"line {line_idx}: {rule}")

    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"line {line_idx} is not JSON") from None
    check(isinstance(entry, dict), "it must be a JSON object")
    unknown = set(entry) - {"tenant", "sha256", *LIMITS}
    check(not unknown, f"it has the unknown field {', '.join(sorted(unknown))}")
    tenant, digest = entry.get("tenant"), entry.get("sha256")
    check(isinstance(tenant, str) and bool(TENANT_NAME.fullmatch(tenant)), "tenant must be a name such as team-1")
    check(isinstance(digest, str) and bool(re.fullmatch("[0-9a-f]{64}", digest)), "sha256 must be 64 hex digits")
    for name, (least, most) in LIMITS.items():
        value = entry.get(name)
        is_good = value is None or (type(value) is int and least <= value <= most)
        check(is_good, f"{name} must be between {least} and {most}")
    return Key(tenant, bytes.fromhex(digest), *(entry.get(name) for name in LIMITS))


def _state_of(file: Path) -> tuple[int, ...]:
    found = os.stat(file)
    return found.st_mtime_ns, found.st_size, found.st_ino

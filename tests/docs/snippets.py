"""Fenced blocks of the documentation, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "README.zh-CN.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/guides").glob("*.md")),
    *sorted((ROOT / "docs/concepts").glob("*.md")),
]
READMES = PAGES[:2]
ENGLISH = [page for page in PAGES if page in READMES or not page.name.endswith(".zh-CN.md")]
"""What is run: a Chinese page has the blocks of its English one, but the README asks in Chinese."""

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
_START = r"(?:^\s*|&& *|; *|\| *|\$\(|\bdo +|\b[A-Z_]+=\S+ +)(?:[\w./]+/)?"
_VL2 = re.compile(_START + r"""vl2 +([a-z-]+)((?:"[^"]*"|'[^']*'|[^\n&|>)`;"'])*)""", re.M)
"""Where a command can begin: `vl2` also names namespaces, images and folders."""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2]) for match in _BLOCK.finditer(text)]


def blocks(language: str) -> list[Block]:
    return [block for page in ENGLISH for block in blocks_of(page) if block.language == language]


def joined(code: str) -> str:
    """Without line continuations and comments."""
    code = code.replace("\\\n", " ")
    return "\n".join(re.sub(r"(^|\s)#\s.*", "", line) for line in code.splitlines())


def vl2_commands(code: str) -> Iterator[list[str]]:
    """`vl2 serve tiny --port 800$i` → ["serve", "tiny", "--port", "8001"]."""
    for match in _VL2.finditer(joined(code)):
        if not match[1].startswith("-"):
            yield [match[1], *shlex.split(match[2].replace("$i", "1"))]


def make_targets(code: str) -> Iterator[list[str]]:
    for line in joined(code).splitlines():
        if line.startswith("make "):
            yield shlex.split(line)[1:]

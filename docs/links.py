"""For mkdocs: globs in the navigation, and links that lead out of docs/ go to the repository, which a site has not.

In the repository `../README.md` is right; on the site it becomes `repo_url` + path, or plain text where there is none.
"""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)\s]*)\)")

OTHER_LANGUAGE = re.compile(r"^\[(中文|English)\]\(\S+\)\n", re.M)
"""A line for readers of the repository; the site has a switch."""


def on_config(config: Any) -> Any:
    config.nav = _expanded(config.nav, Path(config.docs_dir))
    return config


def _expanded(item: Any, docs: Path) -> Any:
    """`folder/*.md` → the English pages there, in order, but for its README."""
    if isinstance(item, dict):
        return {title: _expanded(inner, docs) for title, inner in item.items()}
    if not isinstance(item, list):
        return item
    found: list[Any] = []
    for entry in item:
        if isinstance(entry, str) and "*" in entry:
            names = sorted(path.relative_to(docs).as_posix() for path in docs.glob(entry))
            found += [name for name in names if not fnmatch(name, "*README*.md") and not name.endswith(".zh-CN.md")]
        else:
            found.append(_expanded(entry, docs))
    return found


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    here = PurePosixPath("docs", page.file.src_uri).parent

    def outside(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = _resolved(here, target)
        if path.parts[:1] == ("docs",):
            return match[0]
        repo = (config.repo_url or "").rstrip("/")
        return f"[{text}]({repo}/blob/main/{path})" if repo else f"{text} (`{path}`)"

    return LINK.sub(outside, OTHER_LANGUAGE.sub("", markdown))


def _resolved(folder: PurePosixPath, target: str) -> PurePosixPath:
    parts = list(folder.parts)
    for part in PurePosixPath(target.split("#")[0]).parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return PurePosixPath(*parts)

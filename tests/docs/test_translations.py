"""A Chinese page says what its English one does: the same blocks, the same tables, the same sections."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.snippets import PAGES, ROOT, blocks_of

CHINESE = [page for page in PAGES if page.name.endswith(".zh-CN.md")]
CJK = re.compile(r"[\u4e00-\u9fff]")


def english_of(page: Path) -> Path:
    return page.with_name(page.name.replace(".zh-CN.md", ".md"))


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: str(page.relative_to(ROOT)))
def test_it_has_the_blocks_tables_and_sections_of_the_english_page(page: Path) -> None:
    english = english_of(page)
    assert [without_words(b.code) for b in blocks_of(page)] == [without_words(b.code) for b in blocks_of(english)]
    for part in (r"^#+ ", r"^\|", r"^- ", r"^!\["):
        both = [len(re.findall(part, each.read_text(encoding="utf-8"), re.M)) for each in (page, english)]
        assert both[0] == both[1], f"lines that match {part}: {both}"
    assert len(CJK.findall(page.read_text(encoding="utf-8"))) > 60


def without_words(code: str) -> str:
    """Comments and texts in quotes are translated, too."""
    return re.sub(r'"[^"\n]*"', '""', re.sub(r" +#.*", "", code))


@pytest.mark.parametrize("page", sorted((ROOT / "docs/guides").glob("*.md")), ids=lambda page: page.name)
def test_every_guide_is_there_in_both_languages(page: Path) -> None:
    other = english_of(page) if page.name.endswith(".zh-CN.md") else page.with_name(page.stem + ".zh-CN.md")
    assert other.exists()

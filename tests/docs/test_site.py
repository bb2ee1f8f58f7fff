"""The documentation site: it is built without a warning, loads nothing from elsewhere, and its numbers are right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.snippets import ROOT
from vl2.core.tiling import TileGeometry, num_image_tokens, tile_grid

GRIDS = [(384 * across, 384 * down) for across in range(1, 10) for down in range(1, 10) if across * down <= 9]
GEOMETRY = TileGeometry(384, 14, 2, tuple(GRIDS))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="needs mkdocs-material: pip install -e .[dev]")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_it_is_whole_in_both_languages(site: Path) -> None:
    for page in ("quickstart", "guides/page", "concepts/tiling", "reference/errors"):
        assert (site / page / "index.html").exists()
        assert (site / "zh-CN" / page / "index.html").exists()
    assert "快速开始" in (site / "zh-CN/quickstart/index.html").read_text(encoding="utf-8")


def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//', text), page
        assert not re.search(r'<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="(?:https?:)?//', text), page


def test_every_page_is_in_the_navigation(site: Path) -> None:
    """mkdocs only mentions pages that nobody finds."""
    home = (site / "index.html").read_text(encoding="utf-8")
    pages = [path.parent.relative_to(site).as_posix() for path in site.rglob("index.html") if "zh-CN" not in path.parts]
    lost = [page for page in pages if page != "." and f'href="{page}/"' not in home]
    assert lost == []


def test_the_token_counts_of_the_concepts_are_right() -> None:
    text = (ROOT / "docs/concepts/tiling.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) × (\d+) \| (\d+) × (\d+) \| (\d+) \|", text, re.M)
    assert len(rows) == 6
    for width, height, across, down, tokens in (map(int, row) for row in rows):
        assert tile_grid(width, height, 1, GEOMETRY) == (across, down)
        assert num_image_tokens(across, down, GEOMETRY) == tokens

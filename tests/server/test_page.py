"""The page at /: it comes whole from the package, and reaches for nothing else."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from server.bodies import Connect

NAMES = sorted(entry.name for entry in files("vl2.server").joinpath("web").iterdir())


async def test_the_page_loads_only_its_own_files_and_all_of_them_are_there(connect: Connect) -> None:
    client = connect()
    page = await client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert links
    for link in links:
        assert link.startswith("/web/")
        assert (await client.get(link)).status_code == 200


async def test_its_content_security_policy_allows_no_inline_code_and_no_other_host(connect: Connect) -> None:
    page = await connect().get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|<style", page.text)


@pytest.mark.parametrize("name", NAMES)
def test_no_file_names_another_host_or_writes_html(name: str) -> None:
    text = files("vl2.server").joinpath("web", name).read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)
    assert "innerHTML" not in text


@pytest.mark.parametrize("path", ["/web/none.js", "/web/../app.py", "/web/%2e%2e/app.py", "/web/", "/web/index"])
async def test_nothing_else_is_served(connect: Connect, path: str) -> None:
    assert (await connect().get(path)).status_code == 404


def test_english_and_chinese_have_the_same_texts() -> None:
    text = files("vl2.server").joinpath("web", "texts.js").read_text()
    english, chinese = re.findall(r"\b(?:en|zh): \{(.*?)\n  \}", text, re.DOTALL)
    assert re.findall(r"^    (\w+):", english, re.M) == re.findall(r"^    (\w+):", chinese, re.M)

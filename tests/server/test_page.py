"""The pages at / and /status: they come whole from the package, reach for nothing else, and are small."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from server.bodies import Connect

WEB = Path(str(files("vl2.server").joinpath("web")))
NAMES = sorted(path.name for path in WEB.iterdir())
TEXTS = [name for name in NAMES if not name.endswith(".webp")]
MAX_BYTES = 150_000


@pytest.mark.parametrize("path", ["/", "/status"])
async def test_a_page_loads_only_its_own_files_and_all_of_them_are_there(connect: Connect, path: str) -> None:
    client = connect(api_key=["secret"])
    page = await client.get(path)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    wanted = {link for link in re.findall(r'(?:src|href)="([^"#]+)"', page.text) if link not in ("/", "/status")}
    seen: set[str] = set()
    while wanted - seen:
        link = min(wanted - seen)
        assert link.startswith("/web/")
        answer = await client.get(link)
        assert answer.status_code == 200
        seen.add(link)
        if link.endswith(".js"):
            wanted |= {f"/web/{name}" for name in re.findall(r'from "\./([\w.-]+)"', answer.text)}
    assert len(seen) > 5


@pytest.mark.parametrize("path", ["/", "/status"])
async def test_its_content_security_policy_allows_no_inline_code_and_no_other_host(connect: Connect, path: str) -> None:
    page = await connect().get(path)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|<style", page.text)


@pytest.mark.parametrize("name", TEXTS)
def test_no_file_names_another_host_or_writes_html(name: str) -> None:
    text = (WEB / name).read_text(encoding="utf-8")
    assert not re.search(r"https?://(?!www\.w3\.org/)\w", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)


def test_everything_together_is_small() -> None:
    assert sum(path.stat().st_size for path in WEB.iterdir()) <= MAX_BYTES


def test_every_file_is_used() -> None:
    text = "".join((WEB / name).read_text(encoding="utf-8") for name in TEXTS)
    assert [name for name in NAMES if name not in ("index.html", "status.html") and name not in text] == []


@pytest.mark.parametrize("path", ["/web/none.js", "/web/../app.py", "/web/%2e%2e/app.py", "/web/", "/web/index"])
async def test_nothing_else_is_served(connect: Connect, path: str) -> None:
    assert (await connect().get(path)).status_code == 404


async def test_a_file_that_has_not_changed_is_not_sent_again(connect: Connect) -> None:
    client = connect()
    first = await client.get("/web/app.js")
    again = await client.get("/web/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert (await client.get("/web/app.js", headers={"If-None-Match": '"older"'})).status_code == 200


async def test_without_its_numbers_there_is_no_status_page_and_no_way_to_it(connect: Connect) -> None:
    client = connect(admin_port=0)
    assert (await client.get("/status")).status_code == 404
    assert 'href="/status"' not in (await client.get("/")).text
    assert 'href="/status"' in (await connect().get("/")).text


def keys_of(name: str) -> list[str]:
    return re.findall(r"^ +(\w+): ", (WEB / name).read_text(encoding="utf-8"), re.M)


def test_english_and_chinese_have_the_same_texts() -> None:
    assert keys_of("texts-en.js") == keys_of("texts-zh.js")


def test_every_text_is_used_and_every_used_text_is_there() -> None:
    own = [name for name in TEXTS if not name.startswith("texts-")]
    text = "".join((WEB / name).read_text(encoding="utf-8") for name in own)
    used = set(re.findall(r"\bt\.(\w+)", text)) | set(re.findall(r'data-(?:text|hint|label|title)="(\w+)"', text))
    there = set(re.findall(r"^  (\w+): ", (WEB / "texts-en.js").read_text(encoding="utf-8"), re.M))
    assert (used - there, there - used) == (set(), set())


def test_every_symbol_is_there() -> None:
    """An icon is named in HTML, or by `icon("name")`, `iconButton("name", …)` and `action("name", …)` in code."""
    scripts = "".join((WEB / name).read_text(encoding="utf-8") for name in NAMES if name.endswith(".js"))
    page = (WEB / "index.html").read_text(encoding="utf-8")
    named = set(re.findall(r'\b(?:icon|iconButton|action)\("(\w+)"', scripts)) | set(re.findall(r'"#i-([\w-]+)"', page))
    presets = set(
        re.findall(r"^    (\w+): \[", (WEB / "texts-en.js").read_text(encoding="utf-8").split("parameters:")[0], re.M)
    )
    assert named | presets <= set(re.findall(r'<symbol id="i-([\w-]+)"', page))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to read JavaScript")
@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".js")])
def test_every_script_can_be_read(name: str) -> None:
    kind = "commonjs" if name == "theme.js" else "module"
    code = (WEB / name).read_bytes()
    done = subprocess.run(
        ["node", f"--input-type={kind}", "--check", "-"], input=code, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()

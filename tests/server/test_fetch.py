"""Pictures by reference. Tests resolve names themselves and never leave this machine."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.bodies import PNG, PNG_URL
from vl2.core.errors import InvalidImage, InvalidRequest, TooLarge
from vl2.server.fetch import PictureFetcher, decode_base64, resolve_host

HOSTS = {
    "pictures.example": ["93.184.216.34"],
    "two.example": ["2606:4700::1", "93.184.216.34"],
    "inside.example": ["10.0.0.7"],
    "mixed.example": ["93.184.216.34", "127.0.0.1"],
}


async def resolve(host: str, port: int) -> list[str]:
    """Names from HOSTS; numbers as the system reads them, without asking anyone."""
    return HOSTS[host] if host in HOSTS else await resolve_host(host, port)


def fetcher(handle: Callable[[httpx.Request], Any], **options: Any) -> PictureFetcher:
    return PictureFetcher(resolve=resolve, transport=httpx.MockTransport(handle), **options)


def sends_picture(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, stream=httpx.ByteStream(PNG))


# ---- downloads ------------------------------------------------------------------------------------------------------


async def test_a_picture_comes_from_the_checked_address_under_its_host_s_name() -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return sends_picture(request)

    assert await fetcher(handle)("https://pictures.example:8443/a%20b.png?x=1") == PNG
    assert str(seen[0].url) == "https://93.184.216.34:8443/a%20b.png?x=1"
    assert seen[0].headers["host"] == "pictures.example:8443"
    assert seen[0].extensions["sni_hostname"] == "pictures.example"


HOSTILE = """
http://127.0.0.1/ http://127.1/ http://2130706433/ http://0x7f000001/ http://0177.0.0.1/ http://0/ http://10.0.0.1/
http://169.254.169.254/latest/meta-data/ http://100.100.100.200/ http://168.63.129.16/ http://[::1]/ http://[::]/
http://[::ffff:127.0.0.1]/ http://[64:ff9b::7f00:1]/ http://[fd00:ec2::254]/ http://[fe80::1]/ http://localhost/
http://LOCALHOST:22/ https://inside.example/ https://mixed.example/ http://user@pictures.example/
http://a:b@127.0.0.1/ http:///x http://[::1 http://[fe80::1%25eth0]/ http:127.0.0.1 http://pictures.example:99999/
http://127.0.0.1%00.pictures.example/ http://①②⑦.0.0.1/
"""


@pytest.mark.parametrize("url", HOSTILE.split())
async def test_hostile_urls_are_refused_before_anything_is_sent(url: str) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"connected to {request.url}")

    with pytest.raises((InvalidRequest, InvalidImage)):
        await fetcher(handle)(url)


@pytest.mark.parametrize("location", ["http://inside.example/", "//127.0.0.1/", "file:///etc/passwd", "data:,x", ""])
async def test_a_redirect_is_checked_like_the_first_url(location: str) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        assert request.url.host == "93.184.216.34"
        return httpx.Response(302, headers={"Location": location})

    with pytest.raises((InvalidRequest, InvalidImage)):
        await fetcher(handle)("http://pictures.example/")


@pytest.mark.parametrize(("num_redirects", "is_fine"), [(3, True), (4, False)])
async def test_three_redirects_are_followed_and_no_more(num_redirects: int, is_fine: bool) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        step = int(request.url.path.strip("/"))
        if step == num_redirects:
            return sends_picture(request)
        return httpx.Response(302, headers={"Location": f"/{step + 1}"})

    if is_fine:
        assert await fetcher(handle)("http://pictures.example/0") == PNG
    else:
        with pytest.raises(InvalidImage, match="more than 3"):
            await fetcher(handle)("http://pictures.example/0")


async def test_the_next_address_is_tried_where_one_cannot_be_reached() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if ":" in request.url.host:
            raise httpx.ConnectError("no IPv6 here")
        return sends_picture(request)

    assert await fetcher(handle)("http://two.example/") == PNG


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "11"}])
async def test_a_download_stops_at_the_size_limit(headers: dict[str, str]) -> None:
    read = []

    async def body() -> Any:
        for _ in range(100):
            read.append(1)
            yield b"12345"

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=headers, content=body())

    with pytest.raises(TooLarge, match="10 bytes"):
        await fetcher(handle, max_bytes=10)("http://pictures.example/")
    assert len(read) <= 3


async def test_a_silent_server_is_given_up() -> None:
    async def handle(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(InvalidImage, match=r"within 0\.01 s"):
        await fetcher(handle, timeout_s=0.01)("http://pictures.example/")


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (httpx.Response(404), "answered 404"),
        (httpx.Response(200, headers={"Content-Encoding": "br"}, stream=httpx.ByteStream(b"x")), "compresses"),
    ],
)
async def test_a_server_that_gives_no_picture_is_named(response: httpx.Response, words: str) -> None:
    with pytest.raises(InvalidImage, match=words):
        await fetcher(lambda request: response)("http://pictures.example/")


async def test_a_host_that_does_not_exist_is_named() -> None:
    async def nothing(host: str, port: int) -> list[str]:
        raise OSError

    with pytest.raises(InvalidImage, match=r"'pictures\.example' cannot be found"):
        await PictureFetcher(resolve=nothing)("http://pictures.example/")


async def test_a_real_connection_goes_to_the_address_that_was_checked() -> None:
    """Over a real socket: the name leads nowhere, the test's resolver leads to this machine, and that is allowed."""
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PNG) + PNG)
        await writer.drain()
        writer.close()

    async def here(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    fetch = PictureFetcher(resolve=here, is_allowed=lambda address: True)
    async with server:
        assert await fetch(f"http://pictures.example:{port}/a.png") == PNG
    await fetch.aclose()
    assert b"Host: pictures.example:%d\r\n" % port in heads[0]


# ---- data URLs and base64 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["data:image/png;base64,", "DATA:;base64,", "data:image/png;name=a.png;base64,"])
async def test_a_data_url_gives_its_bytes(start: str) -> None:
    assert await PictureFetcher()(start + PNG_URL.partition(",")[2]) == PNG


@given(st.binary(max_size=64))
def test_base64_is_decoded_exactly(data: bytes) -> None:
    assert decode_base64(base64.b64encode(data).decode()) == data


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("AAA", "padded"),
        ("AA=A", "padded"),
        ("AA\n@AA", "'@' at position 3"),
        ("AA\u2003AA", "position 2"),
        ("A-A_", "'-'"),
        ("é", "'é'"),
    ],
)
def test_wrong_base64_is_explained(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        decode_base64(text)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """pictures/a b.png, a link that stays inside, links and a pipe that do not; secret.png beside the folder."""
    inside = tmp_path / "pictures"
    inside.mkdir()
    (inside / "a b.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "pictures-2").mkdir()
    (tmp_path / "pictures-2" / "c.png").write_bytes(PNG)
    (inside / "inner-link.png").symlink_to(inside / "a b.png")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "up").symlink_to(tmp_path)
    (inside / "loop").symlink_to(inside / "loop")
    os.mkfifo(inside / "pipe")
    return inside


@pytest.mark.parametrize("name", ["a%20b.png", "inner-link.png", "./a%20b.png"])
async def test_files_below_the_folder_are_read(folder: Path, name: str) -> None:
    fetch = PictureFetcher(allowed_folder=str(folder))
    assert await fetch(f"file://{folder}/{name}") == PNG
    assert await fetch(f"file://localhost{folder}/{name}") == PNG


OUTSIDE = "../secret.png %2e%2e/secret.png link.png up/secret.png ../pictures-2/c.png none.png loop pipe . a%00b"


@pytest.mark.parametrize("name", [*OUTSIDE.split(" "), "x" * 5000])
async def test_nothing_else_is_read_and_the_message_tells_nothing(folder: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a readable file below"):
        await PictureFetcher(allowed_folder=str(folder))(f"file://{folder}/{name}")


async def test_files_of_other_hosts_and_without_a_folder_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="turned off"):
        await PictureFetcher()(f"file://{folder}/a%20b.png")
    with pytest.raises(InvalidRequest, match=r"not the host 'other\.example'"):
        await PictureFetcher(allowed_folder=str(folder))("file://other.example/a.png")


async def test_a_file_over_the_size_limit_is_refused(folder: Path) -> None:
    with pytest.raises(TooLarge):
        await PictureFetcher(allowed_folder=str(folder), max_bytes=10)(f"file://{folder}/a%20b.png")

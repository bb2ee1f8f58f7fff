"""Pictures by reference. Tests resolve names themselves and never leave this machine."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.bodies import PNG, PNG_URL
from vl2.core.config import ServerConfig
from vl2.core.errors import InvalidImage, InvalidRequest, SetupError, TooLarge
from vl2.server.addresses import FetchRules, fetch_rules
from vl2.server.fetch import PictureFetcher, decode_base64, resolve_host

HOSTS = {
    "pictures.example": ["93.184.216.34"],
    "two.example": ["2606:4700::1", "93.184.216.34"],
    "inside.example": ["10.0.0.7"],
    "mixed.example": ["93.184.216.34", "127.0.0.1"],
    "rebinding.example": ["::ffff:10.0.0.7"],
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
http://127.0.0.1/ http://127.1/ http://127.0.1/ http://127.255.255.254/ http://2130706433/ http://017700000001/
http://0x7f000001/ http://0x7f.0x0.0x0.0x1/ http://0177.0.0.1/ http://0177.0.0.0x1/ http://0/ http://0.0.0.0/
http://10.0.0.1/ http://0x0a000001/ http://012.0.0.1/ http://172.16.0.1/ http://172.31.255.255/ http://192.168.1.1/
http://3232235777/ http://169.254.169.254/latest/meta-data/ http://2852039166/ http://0xa9fea9fe/
http://0xA9.0xFE.0xA9.0xFE/ http://0251.0376.0251.0376/ http://169.254.170.2/ http://100.100.100.200/
http://100.64.0.1/ http://168.63.129.16/ http://192.0.0.192/ http://192.0.2.1/ http://192.88.99.1/ http://198.18.0.1/
http://203.0.113.9/ http://224.0.0.1/ http://240.0.0.1/ http://255.255.255.255/
http://[::1]/ http://[::]/ http://[0:0:0:0:0:0:0:1]/ http://[::ffff:127.0.0.1]/ http://[::ffff:7f00:1]/
http://[::ffff:a9fe:a9fe]/ http://[::127.0.0.1]/ http://[64:ff9b::7f00:1]/ http://[64:ff9b::169.254.169.254]/
http://[64:ff9b::100.100.100.200]/ http://[64:ff9b:1::a00:1]/ http://[2002:7f00:1::]/ http://[2002:a9fe:a9fe::1]/
http://[2001:0:7f00:1::]/ http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/ http://[2001:db8::1]/
http://[fd00:ec2::254]/ http://[fc00::1]/ http://[fe80::1]/ http://[fe80::1%25eth0]/ http://[fe80::1%eth0]/
http://[fec0::1]/ http://[ff02::1]/ http://[::1 http://::1/
http://localhost/ http://LOCALHOST:22/ http://localhost./ http://inside.example/ https://inside.example/
http://mixed.example/ https://mixed.example/ http://rebinding.example/
http://user@pictures.example/ http://127.0.0.1@pictures.example/ http://pictures.example@127.0.0.1/
http://a:b@127.0.0.1/ http://pictures.example%40127.0.0.1/
http:///x http:127.0.0.1 http://pictures.example:99999/ http://pictures.example:0/ http://pictures.example:-1/
http://127.0.0.1%00.pictures.example/ http://127.0.0.1%2f.pictures.example/ http://127.0.0.1\\@pictures.example/
http://①②⑦.0.0.1/ http://ⓛocalhost/ http://127。0。0。1/ http://xn--inside-.example/ http://ínside.example/
ftp://pictures.example/ gopher://127.0.0.1:6379/_INFO dict://127.0.0.1/ ldap://127.0.0.1/ javascript:alert(1)
file:///etc/passwd file://127.0.0.1/etc/passwd //127.0.0.1/ /etc/passwd jar:http://127.0.0.1!/ http+unix://%2fvar/x
"""


def test_the_table_is_long_enough() -> None:
    assert len(set(HOSTILE.split())) >= 60


@pytest.mark.parametrize("url", HOSTILE.split())
async def test_hostile_urls_are_refused_before_anything_is_sent(url: str) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"connected to {request.url}")

    with pytest.raises((InvalidRequest, InvalidImage)):
        await fetcher(handle)(url)


@pytest.mark.parametrize("url", [url for url in HOSTILE.split() if url.startswith("http")])
async def test_a_list_of_domains_does_not_open_them(url: str) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"connected to {request.url}")

    rules = FetchRules(domains=("example", "127.0.0.1", "localhost"))
    with pytest.raises((InvalidRequest, InvalidImage)):
        await fetcher(handle, rules=rules)(url)


async def test_a_name_is_looked_up_once_so_it_cannot_lead_elsewhere_the_second_time() -> None:
    answers, asked = [["93.184.216.34"], ["127.0.0.1"]], []

    async def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    def handle(request: httpx.Request) -> httpx.Response:
        assert request.url.host == "93.184.216.34"
        return sends_picture(request)

    fetch = PictureFetcher(resolve=rebinding, transport=httpx.MockTransport(handle))
    assert await fetch("http://pictures.example/") == PNG
    assert asked == ["pictures.example"]
    with pytest.raises(InvalidRequest, match="not on the public internet"):
        await fetch("http://pictures.example/")


GOOD = """
/a.png /a%20b.png /deep/er/c.png /a.png?x=1&y=%2F /redirect/1 /redirect/3 /relative/../a.png /chunked /slow /a.png#part
"""


@pytest.fixture
async def loopback() -> AsyncIterator[int]:
    """A server of pictures on this machine → its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        if path.startswith("/redirect/"):
            step = int(path.rpartition("/")[2]) - 1
            writer.write(
                b"HTTP/1.1 302 x\r\nLocation: %s\r\n\r\n" % (f"/redirect/{step}" if step else "/a.png").encode()
            )
        elif path == "/chunked":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"%x\r\n" % len(PNG) + PNG + b"\r\n0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PNG))
            for byte in PNG if path == "/slow" else [PNG]:
                writer.write(bytes([byte]) if isinstance(byte, int) else byte)
                await writer.drain()
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("path", GOOD.split())
async def test_an_allowed_network_is_fetched_from(loopback: int, path: str) -> None:
    rules = fetch_rules(ServerConfig(fetch_allow_cidr=("127.0.0.0/8",)))
    fetch = PictureFetcher(rules=rules)
    assert await fetch(f"http://127.0.0.1:{loopback}{path}") == PNG
    await fetch.aclose()
    with pytest.raises(InvalidRequest):
        await PictureFetcher()(f"http://127.0.0.1:{loopback}{path}")


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_proxy_variables_are_ignored(loopback: int, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    fetch = PictureFetcher(rules=fetch_rules(ServerConfig(fetch_allow_cidr=("127.0.0.1/32",))))
    assert await fetch(f"http://127.0.0.1:{loopback}/a.png") == PNG
    await fetch.aclose()


async def test_a_proxy_that_is_configured_is_used_and_addresses_stay_checked(loopback: int) -> None:
    fetch = PictureFetcher(rules=FetchRules(proxy=f"http://127.0.0.1:{loopback}"))
    assert await fetch("http://pictures.example/a.png") == PNG
    for url in ("http://169.254.169.254/", "http://0x7f000001/", "http://[::1]/"):
        with pytest.raises(InvalidRequest, match="public internet"):
            await fetch(url)
    await fetch.aclose()


@pytest.mark.parametrize(
    ("host", "is_fine"),
    [
        ("pictures.example", True),
        ("a.pictures.example", True),
        ("xn--bcher-kva.example", True),
        ("bücher.example", True),
        ("pictures.example.", True),
        ("evilpictures.example", False),
        ("example", False),
        ("93.184.216.34", False),
    ],
)
async def test_a_list_of_domains_narrows(host: str, is_fine: bool) -> None:
    async def anywhere(host: str, port: int) -> list[str]:
        return ["93.184.216.34"]

    rules = fetch_rules(ServerConfig(fetch_allow_domain=("pictures.example", "Bücher.example")))
    fetch = PictureFetcher(resolve=anywhere, transport=httpx.MockTransport(sends_picture), rules=rules)
    if is_fine:
        assert await fetch(f"http://{host}/") == PNG
    else:
        with pytest.raises(InvalidRequest, match="--fetch-allow-domain"):
            await fetch(f"http://{host}/")


async def test_fetching_can_be_turned_off(loopback: int) -> None:
    fetch = PictureFetcher(rules=fetch_rules(ServerConfig(fetch=False, fetch_allow_cidr=("127.0.0.0/8",))))
    with pytest.raises(InvalidRequest, match="--no-fetch"):
        await fetch(f"http://127.0.0.1:{loopback}/a.png")
    assert await fetch(PNG_URL) == PNG


@pytest.mark.parametrize("options", [{"fetch_allow_cidr": ("10.0.0.1/8",)}, {"fetch_allow_domain": ("a/b",)}])
def test_rules_that_make_no_sense_stop_the_start(options: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match="such as"):
        fetch_rules(ServerConfig(**options))


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
    fetch = PictureFetcher(resolve=here, rules=FetchRules(networks=(ip_network("127.0.0.0/8"),)))
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


def test_what_the_faster_decoder_takes_python_takes_too() -> None:
    """Over all ends of a text: with too few and too many `=`, bits that nothing means, and other alphabets."""
    for end in itertools.product("Aw/=-\n", repeat=5):
        text = "AAAA" + "".join(end)
        try:
            fast = msgspec.convert(text, bytes)
        except msgspec.ValidationError:
            continue
        assert base64.b64decode(text, validate=True) == fast


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("AAA", "padded"),
        ("AA=A", "padded"),
        ("AA\n@AA", "'@' at position 3"),
        ("AA\u2003AA", "position 2"),
        ("A-A_", "'-'"),
        ("é", "'é'"),
        ("AAA\ud800", "'\\\\ud800' at position 3"),
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

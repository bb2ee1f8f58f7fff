"""Pictures by reference → bytes: data URLs, guarded downloads, files below one folder.

A URL is a stranger's wish that this machine connect somewhere. So each host is looked up once, every one of its
addresses must be public, the connection goes to the very address that was checked, and the same holds for each
redirect. Whether the bytes are a picture is not judged here: the processor decodes them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
import re
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import msgspec

from vl2.core.errors import InvalidImage, InvalidRequest, TooLarge
from vl2.server.addresses import FetchRules

Fetch = Callable[[str], Awaitable[bytes]]
Resolve = Callable[[str, int], Awaitable[list[str]]]

MAX_REDIRECTS = 3
MAX_URL_CHARS = 8192
REDIRECTS = (301, 302, 303, 307, 308)
USER_AGENT = "vl2"
_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*(?P<base64>;base64)?,", re.IGNORECASE)


class PictureFetcher:
    """`await fetcher(url)` → the picture's bytes. Raises: InvalidRequest, InvalidImage, TooLarge."""

    def __init__(
        self,
        *,
        allowed_folder: str | None = None,
        timeout_s: float = 10.0,
        max_bytes: int = 20 * 2**20,
        resolve: Resolve | None = None,
        rules: FetchRules = FetchRules(),
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.allowed_folder = Path(allowed_folder).resolve() if allowed_folder else None
        self.timeout_s = timeout_s
        self.max_bytes = max_bytes
        self._resolve = resolve or resolve_host
        self._rules = rules
        self._transport = transport
        self._client: httpx.AsyncClient | None = None  # made when it is first needed: its TLS tables cost 20 ms

    async def __call__(self, url: str) -> bytes:
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            return decode_data_url(url)
        if scheme in ("http", "https"):
            self._rules.check_is_on()
            return await self._download(url)
        if scheme == "file":
            return await asyncio.to_thread(self.read_file, file_url_path(url))
        raise InvalidRequest(f"a picture is a data:, http(s): or file: URL, not {url[:30]!r}")

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    # ---- files ------------------------------------------------------------------------------------------------------

    def read_file(self, path: str) -> bytes:
        """A file below the allowed folder; relative paths start there."""
        if self.allowed_folder is None:
            raise InvalidRequest("pictures by path are turned off; the server's --allow-dir turns them on")
        # One message for all that is wrong, so that nobody can ask which files exist elsewhere.
        refused = InvalidRequest(f"{path[:100]!r} is not a readable file below the server's picture folder")
        try:
            real = (self.allowed_folder / path).resolve(strict=True)
            if not real.is_relative_to(self.allowed_folder):
                raise refused
            with open(os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise refused
                data = file.read(self.max_bytes + 1)
        except (OSError, ValueError, RuntimeError):  # ValueError: a null byte; RuntimeError: a loop of symlinks
            raise refused from None
        if len(data) > self.max_bytes:
            raise self._too_large()
        return data

    # ---- downloads --------------------------------------------------------------------------------------------------

    async def _download(self, url: str) -> bytes:
        try:
            return await asyncio.wait_for(self._follow(url), self.timeout_s)
        except (asyncio.TimeoutError, httpx.TimeoutException):
            raise InvalidImage(f"the picture could not be fetched within {self.timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise InvalidImage(f"the picture could not be fetched: {type(error).__name__}") from None

    async def _follow(self, url: str) -> bytes:
        target = parse_url(url)
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._connect(target)
            try:
                if response.status_code not in REDIRECTS:
                    return await self._read(response)
                target = parse_url(str(target.join(response.headers.get("location", ""))))
            finally:
                await response.aclose()
        raise InvalidImage(f"the picture's URL redirects more than {MAX_REDIRECTS} times")

    async def _connect(self, url: httpx.URL) -> httpx.Response:
        """Send the request to one of the host's checked addresses, trying the next where one cannot be reached."""
        host = url.raw_host.decode("ascii").strip("[]")
        self._rules.check_domain(host)
        client = self._client = self._client or self._new_client()
        if self._rules.proxy is not None:
            await self._check_number(host)
            headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
            return await client.send(client.build_request("GET", url, headers=headers), stream=True)
        addresses = await self._checked_addresses(url, host)
        for address in addresses:
            request = client.build_request(
                "GET",
                url.copy_with(host=address),
                headers={"Host": url.netloc.decode("ascii"), "User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
                extensions={"sni_hostname": url.raw_host.decode("ascii")},
                timeout=httpx.Timeout(self.timeout_s, connect=self.timeout_s / len(addresses)),
            )
            try:
                return await client.send(request, stream=True, follow_redirects=False)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if address == addresses[-1]:
                    raise
        raise AssertionError("a host has at least one address")

    def _new_client(self) -> httpx.AsyncClient:
        """No proxy variables, no .netrc. No connection is kept: one name's must never serve another's."""
        limits = httpx.Limits(max_keepalive_connections=0)
        return httpx.AsyncClient(
            trust_env=False, limits=limits, transport=self._transport, proxy=self._rules.proxy, timeout=self.timeout_s
        )

    async def _checked_addresses(self, url: httpx.URL, host: str) -> list[str]:
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise InvalidImage(f"the host {url.host[:100]!r} cannot be found")
        for address in addresses:
            self._rules.check_address(address, host)
        return addresses

    async def _check_number(self, host: str) -> None:
        """A proxy looks names up itself; an address in any spelling is checked all the same."""
        with contextlib.suppress(OSError, UnicodeError):
            for *_, sockaddr in socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST):
                self._rules.check_address(str(sockaddr[0]), host)

    async def _read(self, response: httpx.Response) -> bytes:
        if response.status_code != 200:
            raise InvalidImage(f"the picture's server answered {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise InvalidImage("the picture's server compresses what it sends, though it was asked not to")
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.max_bytes:
            raise self._too_large()
        data = bytearray()
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > self.max_bytes:
                raise self._too_large()
        return bytes(data)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the picture is larger than {self.max_bytes} bytes")


async def resolve_host(host: str, port: int) -> list[str]:
    """All addresses of a host, each once, in the system's order. Raises: OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def parse_url(url: str) -> httpx.URL:
    if len(url) > MAX_URL_CHARS:
        raise InvalidRequest(f"the URL has {len(url)} characters; at most {MAX_URL_CHARS} are taken")
    try:
        parsed = httpx.URL(url)
        host = parsed.host  # decodes punycode, which may be broken
    except (httpx.InvalidURL, ValueError):
        raise InvalidRequest(f"{url[:100]!r} is not a valid URL") from None
    if parsed.scheme not in ("http", "https") or not host or parsed.userinfo:
        raise InvalidRequest(f"{url[:100]!r} is not a plain http(s) URL; user names and passwords are not taken")
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise InvalidRequest(f"{url[:100]!r} has a port that does not exist")
    return parsed


def file_url_path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise InvalidRequest(
            f"file URLs name files of this server, as file:///path; not the host {parts.netloc[:100]!r}"
        )
    return unquote(parts.path)


def decode_data_url(url: str) -> bytes:
    match = _DATA_URL.match(url)
    if match is None:
        raise InvalidRequest(f"a data URL looks like data:image/png;base64,…, not {url[:40]!r}")
    if not match["base64"]:
        raise InvalidRequest("the data URL is not base64; write data:image/png;base64,…")
    return decode_base64(url[match.end() :])


def decode_base64(text: str) -> bytes:
    """Standard alphabet, padded; white space is skipped. Raises: InvalidRequest that says where it is wrong."""
    try:
        return msgspec.convert(text, bytes)  # four times as fast as the next, and stricter
    except (msgspec.ValidationError, UnicodeEncodeError):  # the latter: half of a surrogate pair
        pass
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    try:  # again, as a mail or a shell's `base64` writes it; most senders need no copy of their picture for that
        return base64.b64decode(re.sub(r"\s+", "", text, flags=re.ASCII), validate=True)
    except (binascii.Error, ValueError):
        pass
    wrong = re.search(r"[^A-Za-z0-9+/=\s]", text, re.ASCII)
    if wrong:
        raise InvalidRequest(
            f"the base64 data has {wrong[0]!r} at position {wrong.start()}, which is not in its alphabet"
        )
    raise InvalidRequest(f"the base64 data ({len(text)} characters) is cut off or wrongly padded")

"""A conversation as every dialect hands it over: text, and references to pictures and documents still to be read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vl2.core.errors import InvalidRequest, VL2Error
from vl2.core.media import is_pdf
from vl2.core.types import ImagePart, Message
from vl2.server.fetch import Fetch, decode_base64

if TYPE_CHECKING:
    from PIL import Image

MAX_PARALLEL_READS = 8  # of one request

ReadPages = Callable[[bytes, "str | None"], Awaitable["list[Image.Image]"]]
ReadFile = Callable[[str], Awaitable[bytes]]


@dataclass(frozen=True)
class Reference:
    """A picture, or a document whose pages become pictures. One of `url`, `data` and `file_id` is given."""

    path: str  # of the field in the request, for errors
    url: str | None = None  # data:, http(s): or file:
    data: str | None = None  # base64
    file_id: str | None = None
    pages: str | None = None
    is_low_detail: bool = False


@dataclass(frozen=True)
class Turn:
    role: str
    parts: tuple[str | Reference, ...]


def references(turns: Sequence[Turn]) -> list[Reference]:
    return [part for turn in turns for part in turn.parts if isinstance(part, Reference)]


@dataclass(frozen=True)
class Reader:
    """How references are read for one tenant."""

    fetch: Fetch
    read_file: ReadFile
    read_pages: ReadPages
    max_pictures: int

    async def messages(self, turns: Sequence[Turn]) -> list[Message]:
        """Raises: RequestError; its `param` is the path of the field."""
        wanted = references(turns)
        self._check_number(len(wanted))  # before any of them is fetched
        gate = asyncio.Semaphore(MAX_PARALLEL_READS)
        pictures = await in_order(self._pictures(reference, gate) for reference in wanted)
        self._check_number(sum(map(len, pictures)))
        rest = iter(pictures)
        return [
            Message.from_parts(
                turn.role, [item for part in turn.parts for item in ([part] if isinstance(part, str) else next(rest))]
            )
            for turn in turns
        ]

    def _check_number(self, num_pictures: int) -> None:
        if num_pictures > self.max_pictures:
            raise InvalidRequest(
                f"{num_pictures} pictures are more than this server takes in one request ({self.max_pictures}, by "
                f"--max-pictures or the model's context); send fewer",
                param="messages",
            )

    async def _pictures(self, reference: Reference, gate: asyncio.Semaphore) -> list[ImagePart]:
        async with gate:
            try:
                data = await self._read(reference)
                if not is_pdf(data):
                    return [ImagePart(data, reference.is_low_detail)]
                pages = await self.read_pages(data, reference.pages)
                return [ImagePart(page, reference.is_low_detail) for page in pages]
            except VL2Error as error:
                is_pages = error.param == "pages"
                error.param = f"{reference.path}.pages" if is_pages else error.param or reference.path
                raise

    async def _read(self, reference: Reference) -> bytes:
        given = [value for value in (reference.url, reference.data, reference.file_id) if value is not None]
        if len(given) != 1:
            raise InvalidRequest(f"{reference.path} needs one source: data, a URL or the id of a file")
        if reference.url is not None:
            return await self.fetch(reference.url)
        if reference.data is not None:
            return await self.fetch(reference.data) if is_data_url(reference.data) else decode_base64(reference.data)
        assert reference.file_id is not None
        return await self.read_file(reference.file_id)


def is_data_url(text: str) -> bool:
    return text[:5].lower() == "data:"


async def in_order(work: Iterable[Coroutine[Any, Any, list[ImagePart]]]) -> list[list[ImagePart]]:
    """Results in order; the first failure cancels the rest."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()

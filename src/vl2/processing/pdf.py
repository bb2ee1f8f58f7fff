"""Pages of a PDF → pictures. PDFium runs in a process of its own: see `isolated`."""

from __future__ import annotations

import re

from PIL import Image

from vl2.core.config import ProcessorConfig
from vl2.core.errors import InvalidImage, InvalidRequest, TooLarge

LONG_SIDE = 1536  # pixels of a page's longer side: more than the model can see of it
_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6})?)?")


def render(data: bytes, pages: str | None, limits: ProcessorConfig) -> list[Image.Image]:
    """The wanted pages (all without `pages`) on white, with their annotations.

    Raises: InvalidImage, TooLarge, InvalidRequest.
    """
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        reason = "it asks for a password" if "password" in str(error).lower() else "it is broken"
        raise InvalidImage(f"the PDF cannot be opened: {reason}") from None
    wanted = parse_pages(pages, len(document))
    if len(wanted) > limits.max_pdf_pages:
        raise TooLarge(
            f"the PDF gives {len(wanted)} pages; at most {limits.max_pdf_pages} are taken (max_pdf_pages). "
            "Name the pages that matter, as 1-3,5"
        )
    try:
        return [_render_page(document[number - 1]) for number in wanted]
    except pypdfium2.PdfiumError as error:
        raise InvalidImage(f"a page of the PDF cannot be drawn: {error}") from None
    finally:
        document.close()


def _render_page(page: object) -> Image.Image:
    width, height = page.get_size()  # type: ignore[attr-defined]
    if not (width > 0 and height > 0):
        raise InvalidImage("a page of the PDF has no size")
    scale = LONG_SIDE / max(width, height)
    image: Image.Image = page.render(scale=scale).to_pil()  # type: ignore[attr-defined]
    return image.convert("RGB")


def parse_pages(text: str | None, num_pages: int) -> list[int]:
    """`1-3,5` → [1, 2, 3, 5]; `2-` goes on to the last. In the order in which they are named.

    Raises: InvalidRequest.
    """
    if num_pages < 1:
        raise InvalidImage("the PDF has no pages")
    if text is None:
        return list(range(1, num_pages + 1))
    pages: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise InvalidRequest(f"pages is {text[:60]!r}, but must be page numbers such as 1-3,5", param="pages")
        first = int(match[1])
        last = int(match[2]) if match[2] else num_pages if "-" in part else first
        if not 1 <= first <= last <= num_pages:
            raise InvalidRequest(f"pages has {part.strip()!r}, but the PDF has pages 1-{num_pages}", param="pages")
        pages += range(first, last + 1)
    return list(dict.fromkeys(pages))

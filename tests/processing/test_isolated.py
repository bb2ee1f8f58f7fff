"""PDF, TIFF and GIF: decoded elsewhere, and a decoder that goes wild is killed."""

from __future__ import annotations

import io
import os
import signal

import numpy as np
import pypdfium2
import pytest
from PIL import Image

from vl2.core.config import ProcessorConfig
from vl2.core.errors import InvalidImage, InvalidRequest, TooLarge
from vl2.core.media import is_pdf
from vl2.processing.images import open_image
from vl2.processing.isolated import POOL, render_pdf
from vl2.processing.pdf import LONG_SIDE, parse_pages

LIMITS = ProcessorConfig(decode_timeout_s=180)  # of sound files, on a machine that others use, too
COLOURS = [(250, 0, 0), (0, 200, 0), (0, 0, 150)]


def pdf_of(*colours: tuple[int, int, int], size: tuple[int, int] = (200, 100)) -> bytes:
    """A page of each colour."""
    pages = [Image.new("RGB", size, colour) for colour in colours]
    stream = io.BytesIO()
    pages[0].save(stream, "PDF", save_all=True, append_images=pages[1:])
    return stream.getvalue()


def laughing_pdf(depth: int = 9, width: int = 12) -> bytes:
    """Forms that draw forms: width ** depth rectangles."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"]
    resources = b"/Resources << /XObject << /F %d 0 R >> >>"
    draw = b"/F Do " * width
    objects.append(
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R " + resources % 5 + b" >>",
    )
    objects.append(b"<< /Length %d >>\nstream\n" % len(draw) + draw + b"\nendstream")
    for level in range(depth):
        content = b"0 0 9 9 re f" if level == depth - 1 else draw
        head = b"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] "
        head += (resources % (6 + level)) if level < depth - 1 else b""
        objects.append(head + b" /Length %d >>\nstream\n" % len(content) + content + b"\nendstream")
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    data += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return data + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, start)


def test_every_page_becomes_a_picture_in_order() -> None:
    pages = render_pdf(pdf_of(*COLOURS), None, LIMITS)
    assert [page.size for page in pages] == [(LONG_SIDE, LONG_SIDE // 2)] * 3
    seen = np.array([page.getpixel((50, 50)) for page in pages])
    assert np.abs(seen - np.array(COLOURS)).max() <= 4  # JPEG inside


def test_pages_are_what_pdfium_draws() -> None:
    data = pdf_of(COLOURS[1], size=(300, 420))
    page = pypdfium2.PdfDocument(data)[0]
    expected = page.render(scale=LONG_SIDE / page.get_height()).to_pil().convert("RGB")
    assert np.array_equal(render_pdf(data, "1", LIMITS)[0], expected)


@pytest.mark.parametrize(
    ("text", "pages"), [(None, [1, 2, 3, 4]), ("2", [2]), ("1-3", [1, 2, 3]), ("4, 1", [4, 1]), ("3-", [3, 4])]
)
def test_pages_are_named_by_numbers_and_ranges(text: str | None, pages: list[int]) -> None:
    assert parse_pages(text, 4) == pages


@pytest.mark.parametrize("text", ["", "0", "5", "3-2", "1-9", "a", "1;2", "-3", "1-2-3", "9" * 30])
def test_pages_that_are_not_there_are_named(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"pages (is|has) '"):
        parse_pages(text, 4)


def test_more_pages_than_the_limit_are_refused_with_the_numbers() -> None:
    with pytest.raises(TooLarge, match=r"gives 3 pages; at most 2 are taken"):
        render_pdf(pdf_of(*COLOURS), None, ProcessorConfig(max_pdf_pages=2))
    assert len(render_pdf(pdf_of(*COLOURS), "2-3", ProcessorConfig(max_pdf_pages=2))) == 2


@pytest.mark.parametrize("data", [b"%PDF-1.7\n%%EOF", b"%PDF-" + bytes(500), pdf_of(COLOURS[0])[:300]])
def test_a_broken_pdf_is_told(data: bytes) -> None:
    assert is_pdf(data)
    with pytest.raises(InvalidImage, match="PDF"):
        render_pdf(data, None, LIMITS)


def test_a_decoder_that_does_not_end_is_killed_and_the_next_picture_is_decoded() -> None:
    num_killed = POOL.num_killed
    with pytest.raises(InvalidImage, match=r"not be decoded within 0\.5 s"):
        render_pdf(laughing_pdf(), None, ProcessorConfig(decode_timeout_s=0.5))  # by itself it would take hours
    assert POOL.num_killed == num_killed + 1
    assert render_pdf(laughing_pdf(depth=2), None, LIMITS)[0].getpixel((700, 700)) == (0, 0, 0)


def test_memory_is_limited() -> None:
    stream = io.BytesIO()
    Image.new("L", (15_000, 15_000)).save(stream, "GIF")
    limits = ProcessorConfig(decode_memory_bytes=400 * 2**20, max_image_pixels=10**9)
    with pytest.raises(InvalidImage, match=r"memory to decode|cannot be decoded"):
        open_image(stream.getvalue(), limits)


@pytest.mark.parametrize("file_format", ["GIF", "TIFF"])
def test_gif_and_tiff_are_decoded_elsewhere_as_here(file_format: str) -> None:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).save(stream, file_format)
    here = Image.open(stream).convert("RGB")
    assert np.array_equal(open_image(stream.getvalue(), LIMITS), here)


def test_a_decoder_that_is_killed_from_outside_is_replaced() -> None:
    data = pdf_of(COLOURS[0])
    render_pdf(data, None, LIMITS)
    os.kill(POOL._idle[-1].process.pid, signal.SIGKILL)
    POOL._idle[-1].process.wait()
    assert len(render_pdf(data, None, LIMITS)) == 1


def test_a_pixel_bomb_is_refused_by_its_header() -> None:
    stream = io.BytesIO()
    Image.new("L", (3000, 3000)).save(stream, "GIF")
    with pytest.raises(InvalidImage, match=r"3000 × 3000 = 9000000 pixels; the limit is 1000000"):
        open_image(stream.getvalue(), ProcessorConfig(max_image_pixels=10**6))

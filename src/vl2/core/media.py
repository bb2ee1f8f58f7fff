"""What a file is: by its name, or by its first bytes."""

from __future__ import annotations

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PDF_MAGIC = b"%PDF-"
PDF_MAGIC_WITHIN = 1024  # bytes; what Acrobat tolerates before it


def is_pdf(data: bytes) -> bool:
    return PDF_MAGIC in data[:PDF_MAGIC_WITHIN]

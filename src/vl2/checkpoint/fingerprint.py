"""A short name for the weights of a checkpoint, made from samples of every tensor.

Reading tens of gigabytes for a digest would double the time to start. Hashed instead are names, types and shapes of
all tensors, the first and last bytes of each, and the files that decide how they are used. Two checkpoints that people
train, quantise or fine-tune differ in this; only someone who sets out to can make two that do not.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from vl2.checkpoint.folder import list_tensors

SAMPLE_BYTES = 4096
SETTINGS = ("config.json", "processor_config.json", "tokenizer.json")


def fingerprint_weights(folder: Path) -> bytes:
    """32 bytes. Raises: CheckpointError."""
    digest = hashlib.blake2b(digest_size=32)
    for name in SETTINGS:
        if (folder / name).exists():
            digest.update((folder / name).read_bytes())
    tensors = sorted(list_tensors(folder).values(), key=lambda info: info.name)
    files = {file: os.open(file, os.O_RDONLY) for file in {info.file for info in tensors}}
    try:
        for info in tensors:
            digest.update(f"{info.name} {info.dtype} {info.shape}".encode())
            size = min(SAMPLE_BYTES, info.num_bytes)
            for start in (info.start, info.start + info.num_bytes - size):
                digest.update(os.pread(files[info.file], size, start))
    finally:
        for fd in files.values():
            os.close(fd)
    return digest.digest()

"""A folder that holds an exported model: graphs, their data, tokenizer and configuration, and a manifest over them.

The manifest is written last, into a folder that gets its name when it is complete: what has one is whole.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vl2.checkpoint.source import sha256_of
from vl2.core.errors import CheckpointError, SetupError

MANIFEST = "manifest.json"
FORMAT, VERSION = "vl2-onnx", 1
GRAPHS = ("vision", "embedding", "decoder")
SETTINGS = (
    "config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
SAMPLE_BYTES, NUM_SAMPLES = 64 * 1024, 256
"""Of a larger file the start looks at so many samples: enough to find that it is cut or another one, in milliseconds.
Files up to 16 MiB are read whole.
"""


@dataclass(frozen=True, slots=True)
class FileEntry:
    bytes: int
    sha256: str  # of all of it
    sample: str  # BLAKE2b of its samples


@dataclass(frozen=True, slots=True)
class Manifest:
    precision: str
    source: str  # the model as it was named for the export
    weights: str  # fingerprint of the checkpoint (checkpoint/fingerprint.py), hexadecimal
    licence: str  # of the weights
    vl2: str  # version that exported it
    num_parameters: int
    files: dict[str, FileEntry]

    @property
    def digest(self) -> bytes:
        """Equal digest, equal bundle."""
        told = json.dumps([self.precision, sorted((name, entry.sha256) for name, entry in self.files.items())])
        return hashlib.blake2b(told.encode(), digest_size=32).digest()


def is_bundle(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def write_manifest(
    folder: Path, *, precision: str, source: str, weights: str, licence: str, vl2: str, num_parameters: int
) -> Manifest:
    """Over all files that lie in the folder."""
    files = {path.name: describe(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    manifest = Manifest(precision, source, weights, licence, vl2, num_parameters, files)
    raw = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    (folder / MANIFEST).write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Raises: SetupError."""
    path = folder / MANIFEST
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (raw.pop("format"), raw.pop("version")) != (FORMAT, VERSION):
            raise SetupError(f"{path} is of another version of vl2; export the model again with `vl2 export`")
        files = {name: FileEntry(**entry) for name, entry in raw.pop("files").items()}
        return Manifest(files=files, **raw)
    except FileNotFoundError:
        raise SetupError(f"{folder} is no exported model: it has no {MANIFEST}; make one with `vl2 export`") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(f"{path} is damaged ({error}); export the model again with `vl2 export`") from None


def check_files(folder: Path, manifest: Manifest) -> None:
    """Whether the files are those that were written. Raises: CheckpointError that names the first that is not."""
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            is_same = size == entry.bytes and sample(path) == entry.sample
        except OSError as error:
            raise CheckpointError(
                f"{path} is missing from the exported model ({error.strerror}); export it again"
            ) from None
        if not is_same:
            what = f"has {size} bytes instead of {entry.bytes}" if size != entry.bytes else "was changed"
            raise CheckpointError(f"{path} {what} since it was exported; export the model again with `vl2 export`")


def describe(path: Path) -> FileEntry:
    return FileEntry(path.stat().st_size, sha256_of(path), sample(path))


def sample(path: Path) -> str:
    """Of samples spread evenly over the file, both ends with them; of a smaller file's every byte."""
    size = path.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if size <= NUM_SAMPLES * SAMPLE_BYTES:
            digest.update(file.read())
        else:
            for idx in range(NUM_SAMPLES):
                file.seek(idx * (size - SAMPLE_BYTES) // (NUM_SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()

"""Checkpoints that are run on ONNX Runtime without an export by hand: exported once, and kept in the cache."""

from __future__ import annotations

import fcntl
import hashlib
import logging
from pathlib import Path

from vl2.checkpoint.fingerprint import fingerprint_weights
from vl2.core.errors import SetupError
from vl2.edge.bundle import check_files, is_bundle, read_manifest
from vl2.edge.export import OnProgress, export

log = logging.getLogger(__name__)

CACHE = Path("~/.cache/vl2/onnx")


def bundle_of(folder: Path, precision: str, on_progress: OnProgress | None = None) -> Path:
    """`folder` itself where it is an exported model, else the export of this checkpoint, made anew when its weights
    have changed or the files are damaged.

    Raises: SetupError.
    """
    if is_bundle(folder):
        return folder
    path = folder.resolve()
    key = hashlib.blake2b(str(path).encode(), digest_size=6).hexdigest()
    target = CACHE.expanduser() / f"{path.name}-{key}-{precision}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(f"{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # replicas start at the same time
            reason = _why_not(target, folder)
            if reason is not None:
                log.info("%s: exporting %s to %s in %s", reason, folder, precision, target)
                export(folder, target, precision, source=str(folder), on_progress=on_progress)
    except OSError as error:
        raise SetupError(f"cannot keep the exported model in {target.parent}: {error}") from None
    return target


def _why_not(target: Path, checkpoint: Path) -> str | None:
    """None: the export there can be used."""
    if not is_bundle(target):
        return "there is no export yet"
    try:
        manifest = read_manifest(target)
        check_files(target, manifest)
    except SetupError as error:
        return f"the export is damaged ({error})"
    return None if manifest.weights == fingerprint_weights(checkpoint).hex() else "the weights have changed"

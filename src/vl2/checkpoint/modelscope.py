"""Downloads from ModelScope over its HTTP API: list a repository, fetch what is missing, check every SHA-256.

A snapshot is named after its content, and `refs/REVISION` names the snapshot once it is complete, so a reader never
sees half of one and offline use needs no more than the reference.
"""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from vl2.checkpoint.source import WANTED, check_sha256, require_checkpoint
from vl2.core.config import HubOptions
from vl2.core.errors import SetupError

ENDPOINT = "https://www.modelscope.cn"
DEFAULT_REVISION = "master"
CACHE = Path("~/.cache/vl2/modelscope")
ATTEMPTS = 5
SPARE_BYTES = 2**26


@dataclass(frozen=True, slots=True)
class RemoteFile:
    path: str
    size: int
    sha256: str


def download(repository: str, options: HubOptions, *, retry_pause_s: float = 1.0) -> Path:
    """The snapshot folder of `repository`. Raises: SetupError."""
    revision = options.revision or DEFAULT_REVISION
    cache = Path(options.cache_folder) if options.cache_folder else CACHE
    store = cache.expanduser() / f"models--{repository.replace('/', '--')}"
    if options.offline:
        return _cached(store, revision, repository)
    headers = {"User-Agent": "vl2", "Accept-Encoding": "identity"}
    if options.hub_token:
        headers["Authorization"] = f"Bearer {options.hub_token.reveal()}"
    base = (options.hub_endpoint or ENDPOINT).rstrip("/") + f"/api/v1/models/{repository}/repo"
    with httpx.Client(headers=headers, follow_redirects=True, timeout=httpx.Timeout(30.0)) as client:
        try:
            files = _list_files(client, base, repository, revision)
            (store / "blobs").mkdir(parents=True, exist_ok=True)
            missing = [file for file in files if not (store / "blobs" / file.sha256).exists()]
            _check_space(store, missing)
            with _progress_bar(missing, store / "blobs", repository) as bar:
                for file in missing:
                    _fetch_with_retries(client, base, revision, file, store / "blobs", bar.update, retry_pause_s)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise SetupError(
                f"hub_endpoint is {options.hub_endpoint!r}, but must be an http(s) address ({error})"
            ) from None
        except httpx.HTTPError as error:
            raise SetupError(
                f"cannot download {repository} from ModelScope ({type(error).__name__}: {error}); "
                f"run the command again to resume, or name a mirror with --hub-endpoint"
            ) from None
        except OSError as error:
            raise SetupError(f"cannot store {repository} in {store}: {error}") from None
    return require_checkpoint(_publish(store, revision, files), repository)


def _cached(store: Path, revision: str, repository: str) -> Path:
    try:
        return store / "snapshots" / (store / "refs" / revision).read_text()
    except OSError:
        raise SetupError(
            f"{repository} at revision {revision} is not (completely) in the cache and offline mode is on; "
            f"run `vl2 pull {repository} --hub modelscope` on a connected machine first, or name a folder"
        ) from None


def _list_files(client: httpx.Client, base: str, repository: str, revision: str) -> list[RemoteFile]:
    response = client.get(f"{base}/files", params={"Revision": revision, "Recursive": "true"})
    if response.status_code in (401, 403, 404):
        raise SetupError(
            f"ModelScope has no model {repository} at revision {revision}, or it is private "
            f"({response.status_code}): check the spelling or pass --hub-token"
        )
    response.raise_for_status()
    try:
        entries: list[dict[str, Any]] = response.json()["Data"]["Files"]
        files = [
            RemoteFile(entry["Path"], int(entry["Size"]), entry["Sha256"]) for entry in entries if _is_wanted(entry)
        ]
    except (ValueError, KeyError, TypeError):
        raise SetupError(f"{response.url} did not answer with a list of files; is this a ModelScope server?") from None
    if any(len(file.sha256) != 64 or not file.sha256.isalnum() for file in files):
        raise SetupError(f"ModelScope announces no SHA-256 for a file of {repository}")
    return files


def _is_wanted(entry: dict[str, Any]) -> bool:
    """Checkpoints have no folders; ignoring those also keeps a hostile list from writing outside the cache."""
    path = entry["Path"]
    return entry.get("Type") != "tree" and "/" not in path and any(fnmatch.fnmatch(path, pattern) for pattern in WANTED)


def _check_space(store: Path, missing: list[RemoteFile]) -> None:
    needed = sum(file.size - _size(store / "blobs" / f"{file.sha256}.incomplete") for file in missing)
    stat = os.statvfs(store)
    if missing and needed + SPARE_BYTES > stat.f_bavail * stat.f_frsize:
        free_gb = stat.f_bavail * stat.f_frsize / 1e9
        raise SetupError(f"{store} has {free_gb:.1f} GB free, but {needed / 1e9:.1f} GB are needed; set --cache-folder")


def _fetch_with_retries(
    client: httpx.Client,
    base: str,
    revision: str,
    file: RemoteFile,
    blobs: Path,
    advance: Callable[[float], object],
    pause_s: float,
) -> None:
    """A broken connection is tried again from where it broke; each attempt that got nothing waits longer."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch(client, base, revision, file, blobs, advance)
            return
        except httpx.TransportError:
            if attempt == ATTEMPTS:
                raise
        except httpx.HTTPStatusError as error:
            if attempt == ATTEMPTS or error.response.status_code not in (429, 500, 502, 503, 504):
                raise
        time.sleep(pause_s * 2 ** (attempt - 1))


def _fetch(
    client: httpx.Client, base: str, revision: str, file: RemoteFile, blobs: Path, advance: Callable[[float], object]
) -> None:
    """Append what is missing to FILE.incomplete, check it, and give it its name. One process at a time per file."""
    target, partial = blobs / file.sha256, blobs / f"{file.sha256}.incomplete"
    with partial.open("ab") as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        if target.exists():  # another process was faster
            partial.unlink(missing_ok=True)
            return
        done = out.seek(0, os.SEEK_END)
        if done > file.size:
            advance(-done)
            done = out.truncate(0)
        headers = {"Range": f"bytes={done}-"} if done else {}
        if done < file.size:
            params = {"Revision": revision, "FilePath": file.path}
            with client.stream("GET", base, params=params, headers=headers) as response:
                response.raise_for_status()
                if done and response.status_code != 206:  # this server cannot resume
                    advance(-done)
                    out.truncate(0)
                for block in response.iter_bytes():
                    out.write(block)
                    advance(len(block))
        out.flush()
        os.fsync(out.fileno())
        check_sha256(partial, file.sha256)
        partial.rename(target)


def _publish(store: Path, revision: str, files: list[RemoteFile]) -> Path:
    """Link the blobs under their names, then point the revision at them. Every step is atomic."""
    lines = sorted(f"{file.sha256} {file.path}\n" for file in files)
    name = hashlib.sha256("".join(lines).encode()).hexdigest()[:40]
    folder = store / "snapshots" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        link = folder / file.path
        if not link.is_symlink():
            link.symlink_to(Path("../../blobs") / file.sha256)
    ref = store / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    draft = ref.with_name(f"{ref.name}.{os.getpid()}")
    draft.write_text(name)
    draft.replace(ref)
    return folder


def _progress_bar(missing: list[RemoteFile], blobs: Path, repository: str) -> Any:
    """The bar that downloads from Hugging Face show, too; its usual switches turn it off."""
    from huggingface_hub.utils.tqdm import tqdm

    make_bar: Any = tqdm  # untyped
    return make_bar(
        total=sum(file.size for file in missing),
        initial=sum(_size(blobs / f"{file.sha256}.incomplete") for file in missing),
        desc=repository,
        unit="B",
        unit_scale=True,
        disable=None if missing else True,
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

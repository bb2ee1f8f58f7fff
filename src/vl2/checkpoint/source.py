"""MODEL as people write it → the folder that holds its checkpoint, downloaded where needed.

Both hubs keep a cache of one layout, `models--OWNER--NAME/{blobs,refs,snapshots}`, in which a file gets its final name
only when it is complete: a download that was cut off goes on where it stopped.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from vl2.core.config import HubOptions
from vl2.core.errors import SetupError

OFFICIAL = {
    "tiny": "deepseek-ai/deepseek-vl2-tiny",
    "small": "deepseek-ai/deepseek-vl2-small",
    "base": "deepseek-ai/deepseek-vl2",
}
EMBEDDED = "nano"
WANTED = ("*.json", "*.safetensors", "LICENSE*", "README.md")
"""The last two say what the weights may be used for, which goes along with all that is made of them."""
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")


def resolve_model(model: str, *, options: HubOptions = HubOptions()) -> Path:
    """The checkpoint folder of `model`: nano, tiny, small, base, a folder, or OWNER/NAME on a hub.

    A short name wins over a folder of that name (write ./tiny for the folder); a folder wins over OWNER/NAME.

    Raises: SetupError that says what to do.
    """
    if model == EMBEDDED:
        return _embedded_folder()
    path = Path(model).expanduser()
    if model not in OFFICIAL:
        if path.is_dir():
            return path
        if path.exists():
            raise SetupError(f"{model} is a file; name the folder that holds config.json and the weights")
    repository = OFFICIAL.get(model, model)
    if not REPOSITORY.fullmatch(repository):
        raise SetupError(f"there is no model {model!r}: {_advice(model)}")
    if options.hub == "modelscope":
        from vl2.checkpoint.modelscope import download

        return download(repository, options)
    return _download_from_huggingface(repository, options)


def _embedded_folder() -> Path:
    folder = Path(str(resources.files("vl2") / "assets" / EMBEDDED))
    if not (folder / "config.json").exists():
        raise SetupError(f"the embedded model is missing from this installation ({folder}); install vl2 again")
    return folder


def _advice(model: str) -> str:
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        return "no such folder"
    known = {name: name for name in (EMBEDDED, *OFFICIAL)}
    for name, repository in OFFICIAL.items():
        known[repository] = known[repository.rpartition("/")[2]] = name
    close = difflib.get_close_matches(model.lower(), known, n=1)
    guess = f"did you mean {known[close[0]]}? " if close else ""
    return guess + "MODEL is nano, tiny, small, base, a folder, or OWNER/NAME on the hub"


def _download_from_huggingface(repository: str, options: HubOptions) -> Path:
    """Raises: SetupError, one line for every way in which a download fails."""
    from huggingface_hub import constants, snapshot_download

    if options.hub_endpoint is not None and not options.hub_endpoint.startswith(("http://", "https://")):
        raise SetupError(f"hub_endpoint is {options.hub_endpoint!r}, but must start with http:// or https://")
    cache = Path(options.cache_folder or constants.HF_HUB_CACHE).expanduser()
    before = set(_blobs(cache, repository))
    try:
        folder = snapshot_download(
            repository,
            revision=options.revision,
            cache_dir=cache,
            token=options.hub_token.reveal() if options.hub_token else None,
            endpoint=options.hub_endpoint,
            local_files_only=options.offline,
            allow_patterns=list(WANTED),
        )
    except Exception as error:  # which HTTP library's errors these are depends on the version of huggingface_hub
        raise SetupError(_explain(error, repository, options)) from None
    for blob in sorted(set(_blobs(cache, repository)) - before):
        check_sha256(blob, blob.name)
    return require_checkpoint(Path(folder), repository)


def _explain(error: Exception, repository: str, options: HubOptions) -> str:
    """What went wrong in a download from Hugging Face, and what to do."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    cause = error.__cause__ or error
    if isinstance(error, errors.GatedRepoError):
        return f"{repository} asks for consent on its page first; then pass --hub-token or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {options.revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub has no model {repository}, or it is private: check the spelling, pass --hub-token or set HF_TOKEN"
        )
    if status in (401, 403):
        return f"the hub refused {repository} ({status}): the token is wrong or may not read it (--hub-token, HF_TOKEN)"
    if options.offline or isinstance(cause, errors.OfflineModeIsEnabled):
        at = f" at revision {options.revision}" if options.revision else ""
        return (
            f"{repository}{at} is not (completely) in the cache and offline mode is on; "
            f"run `vl2 pull {repository}` on a connected machine first, or name a folder"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"cannot reach the hub for {repository}: check the network, name a mirror with --hub-endpoint or "
            f"HF_ENDPOINT, use --hub modelscope, or a folder ({_first_line(cause)})"
        )
    return f"cannot download {repository}: {_first_line(error)}; run the command again to resume"


def _blobs(cache: Path, repository: str) -> Iterator[Path]:
    """Large files in the cache; each is named after its SHA-256."""
    folder = cache / f"models--{repository.replace('/', '--')}" / "blobs"
    return (path for path in folder.glob("*") if SHA256.fullmatch(path.name))


def check_sha256(path: Path, wanted: str) -> None:
    """Remove `path` when its content is not what the hub announced. Raises: SetupError."""
    found = sha256_of(path)
    if found != wanted:
        path.unlink()
        raise SetupError(
            f"a downloaded file is damaged: its SHA-256 is {found[:12]}…, announced was {wanted[:12]}…; "
            f"it was removed, run the command again"
        )


def sha256_of(path: Path) -> str:
    """Hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def require_checkpoint(folder: Path, repository: str) -> Path:
    if not (folder / "config.json").exists():
        raise SetupError(f"{repository} holds no config.json: it is not a DeepSeek-VL2 checkpoint")
    return folder


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__

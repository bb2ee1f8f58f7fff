"""Looks at the machine. Nothing here judges: `doctor.py` does, from these facts."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vl2.core.config import HubOptions
from vl2.core.cpu import cpu_words
from vl2.core.stats import available_bytes
from vl2.ops.native import builds

LIBRARIES = (
    "torch",
    "triton",
    "onnxruntime",
    "tokenizers",
    "safetensors",
    "pillow",
    "fastapi",
    "uvicorn",
    "pyzmq",
    "huggingface-hub",
)
SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
HUGGING_FACE = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    memory_bytes: int
    capability: tuple[int, int] | None = None  # nvidia-smi is not asked


@dataclass(frozen=True, slots=True)
class Torch:
    """`problem`: why PyTorch sees no GPU, in its own words."""

    version: str
    cuda: str | None  # what it was built for; None: a CPU build
    gpus: tuple[Gpu, ...]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Native:
    """The library in C for the CPU. `problem`: why there is none that can be used."""

    variant: str | None
    problem: str = ""
    is_amx_refused: bool = False  # the processor has it, the system does not let this process use it


@dataclass(frozen=True, slots=True)
class Facts:
    """Sizes in bytes. None stands for what could not be found out."""

    python: tuple[int, int]
    system: str
    versions: dict[str, str | None]
    driver: str | None  # by nvidia-smi
    smi_gpus: tuple[Gpu, ...]
    smi_problem: str  # empty when there is no nvidia-smi
    torch: Torch | None
    native: Native
    visible_devices: str | None  # CUDA_VISIBLE_DEVICES
    memory_bytes: int | None
    cores: int
    cache_folder: str
    disk_free_bytes: int | None
    shm_bytes: int | None
    port: int
    port_problem: str
    hub_url: str
    hub_problem: str | None  # None: not asked


def look(port: int, hub: HubOptions, timeout_s: float = 5.0) -> Facts:
    driver, smi_gpus, smi_problem = _nvidia_smi()
    folder, url = _cache_folder(hub), _hub_url(hub)
    return Facts(
        python=sys.version_info[:2],
        system=platform.platform(),
        versions={name: _version(name) for name in LIBRARIES},
        driver=driver,
        smi_gpus=smi_gpus,
        smi_problem=smi_problem,
        torch=_torch(),
        native=_native(),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        memory_bytes=available_bytes(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cache_folder=str(folder),
        disk_free_bytes=_free_bytes(folder),
        shm_bytes=_free_bytes(Path("/dev/shm")) if Path("/dev/shm").exists() else None,
        port=port,
        port_problem=_port_problem(port),
        hub_url=url,
        hub_problem=None if hub.offline else _hub_problem(url, timeout_s),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> tuple[str | None, tuple[Gpu, ...], str]:
    if shutil.which(SMI[0]) is None:
        return None, (), ""
    try:
        done = subprocess.run(SMI, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, (), str(error)
    return parse_smi(done.stdout, done.stderr, done.returncode)


def parse_smi(output: str, errors: str, code: int) -> tuple[str | None, tuple[Gpu, ...], str]:
    """(driver, GPUs, problem) from what nvidia-smi printed; memory is in MiB, or [N/A] where it is the system's."""
    rows = [[part.strip() for part in line.split(",")] for line in output.splitlines() if line.count(",") == 2]
    if code or not rows:
        words = (errors.strip() or output.strip() or f"it returned {code}").splitlines()
        return None, (), words[0]
    gpus = tuple(Gpu(name, int(memory) * 2**20 if memory.isdigit() else 0) for name, memory, _ in rows)
    return rows[0][2], gpus, ""


def _torch() -> Torch | None:
    try:
        import torch
    except Exception:  # a broken build can fail in many ways; its version says which one it is
        return None
    gpus, problem = [], ""
    try:
        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                properties = torch.cuda.get_device_properties(index)
                capability = (properties.major, properties.minor)
                gpus.append(Gpu(properties.name, properties.total_memory, capability))
        elif torch.version.cuda is not None:
            torch.cuda.init()  # says why not
    except Exception as error:
        problem = " ".join(str(error).split())[:300]
    return Torch(torch.__version__, torch.version.cuda, tuple(gpus), problem)


def _native() -> Native:
    path, found = builds.find()
    is_amx_refused = "amx_tile" in cpu_words() and not builds.may_use_tiles()
    return Native(None, found, is_amx_refused) if path is None else Native(found, "", is_amx_refused)


def _cache_folder(hub: HubOptions) -> Path:
    if hub.cache_folder:
        return Path(hub.cache_folder).expanduser()
    if hub.hub == "modelscope":
        from vl2.checkpoint.modelscope import CACHE

        return CACHE.expanduser()
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _free_bytes(folder: Path) -> int | None:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _port_problem(port: int) -> str:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _hub_url(hub: HubOptions) -> str:
    if hub.hub_endpoint:
        return hub.hub_endpoint
    if hub.hub == "modelscope":
        from vl2.checkpoint.modelscope import ENDPOINT

        return ENDPOINT
    return os.environ.get("HF_ENDPOINT") or HUGGING_FACE


def _hub_problem(url: str, timeout_s: float) -> str:
    """Any answer at all will do: the hub is reached. Proxy variables count, as they do in a download."""
    import httpx

    try:
        httpx.head(url, timeout=timeout_s)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return " ".join(f"{type(error).__name__} {error}".split())[:200]
    return ""

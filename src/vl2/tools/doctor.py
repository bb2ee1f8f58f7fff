"""What a machine lacks to run vl2, and what to do about it. Pure judgement of `doctor_facts.Facts`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vl2.core.config import EngineConfig
from vl2.core.gpu_age import why_too_old
from vl2.tools.doctor_facts import Facts, Gpu, Torch
from vl2.tools.plan import Wanted, judge
from vl2.tools.plan_devices import GIB, Device
from vl2.tools.plan_models import official_config

OK, WARNING, FIX = "ok", "warning", "fix"
PYTHONS = ((3, 10), (3, 13))
OPTIONAL = ("torch", "triton", "onnxruntime")
LEAST_TORCH = (2, 9)
LEAST_DRIVER = {12: 525, 13: 580}
"""Oldest Linux driver for each major version of CUDA (CUDA release notes, minor version compatibility)."""
LEAST_MEMORY_BYTES = 4 * GIB
LEAST_SHM_BYTES = 64 * 2**20
TINY_DOWNLOAD_BYTES = 7 * 10**9


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `advice` says what to do about a warning or a fix, or for something ok to be faster."""

    name: str
    status: str
    detail: str
    advice: str = ""


def diagnose(facts: Facts) -> list[Finding]:
    return [finding for check in CHECKS for finding in check(facts)]


def has_fixes(findings: list[Finding]) -> bool:
    return any(finding.status == FIX for finding in findings)


def _python(facts: Facts) -> Iterator[Finding]:
    shown = ".".join(map(str, facts.python))
    if facts.python < PYTHONS[0]:
        yield Finding("python", FIX, shown, "vl2 needs Python 3.10 or newer")
    elif facts.python > PYTHONS[1]:
        yield Finding("python", WARNING, shown, "vl2 is tested with 3.10 to 3.13")
    else:
        yield Finding("python", OK, f"{shown} on {facts.system}")


def _versions(facts: Facts) -> Iterator[Finding]:
    missing = [name for name, version in facts.versions.items() if version is None and name not in OPTIONAL]
    shown = " ".join(f"{name} {version}" for name, version in facts.versions.items() if version is not None)
    if missing:
        yield Finding("packages", FIX, f"missing: {' '.join(missing)}", "install vl2 again: pip install vl2")
    else:
        yield Finding("packages", OK, shown)


def _torch(facts: Facts) -> Iterator[Finding]:
    torch = facts.torch
    if torch is None:
        yield _without_torch(facts)
        return
    numbers = tuple(int(number) for number in re.findall(r"\d+", torch.version)[:2])
    build = f"built for CUDA {torch.cuda}" if torch.cuda else "a CPU build"
    if numbers < LEAST_TORCH:
        yield Finding("pytorch", FIX, f"{torch.version}, {build}", "vl2 needs 2.9 or newer: pip install -U torch")
    else:
        yield Finding("pytorch", OK, f"{torch.version}, {build}")


def _without_torch(facts: Facts) -> Finding:
    if facts.versions.get("torch") is not None:
        advice = "install it again: pip install --force-reinstall torch"
        return Finding("pytorch", FIX, f"{facts.versions['torch']} cannot be imported", advice)
    if facts.versions.get("onnxruntime") is not None:
        detail = f"not installed; ONNX Runtime {facts.versions['onnxruntime']} computes what `vl2 export` wrote"
        return Finding("pytorch", OK, detail)
    return Finding("pytorch", FIX, "not installed", "pip install 'vl2[torch]', or 'vl2[edge]' to run without it")


def _driver(facts: Facts) -> Iterator[Finding]:
    if facts.smi_problem:
        advice = "load or reinstall the driver; in a container, start it with the NVIDIA runtime (--gpus all)"
        yield Finding("driver", FIX, f"nvidia-smi: {facts.smi_problem}", advice)
    elif facts.driver is None:
        sees = facts.torch is not None and facts.torch.gpus
        detail = "no nvidia-smi" + (", but PyTorch sees a GPU" if sees else ": no NVIDIA driver on this machine")
        yield Finding("driver", OK if sees else WARNING, detail, "" if sees else "install one if there is a GPU")
    else:
        least = LEAST_DRIVER.get(int(((facts.torch and facts.torch.cuda) or "0").split(".")[0]), 0)
        if int(facts.driver.split(".")[0]) < least:
            advice = f"update it to {least} or newer, or install a PyTorch for an older CUDA"
            yield Finding("driver", FIX, f"{facts.driver} is too old for PyTorch's CUDA", advice)
        else:
            yield Finding("driver", OK, f"{facts.driver}, sees {_names(facts.smi_gpus)}")


def _gpu(facts: Facts) -> Iterator[Finding]:
    torch = facts.torch
    if torch is None:
        return
    if torch.gpus:
        yield from _seen(torch)
    elif not facts.smi_gpus:
        yield Finding(
            "gpu", WARNING, "none: vl2 runs on the CPU", "nano and Tiny are usable there, larger ones are slow"
        )
    elif torch.cuda is None:
        advice = "install the CUDA build that pytorch.org names under Get started"
        yield Finding("gpu", FIX, "nvidia-smi sees a GPU, but this PyTorch is a CPU build", advice)
    elif facts.visible_devices is not None and not facts.visible_devices.strip(" -1"):
        shown = facts.visible_devices
        yield Finding("gpu", FIX, f"CUDA_VISIBLE_DEVICES={shown!r} hides all GPUs", "unset CUDA_VISIBLE_DEVICES")
    else:
        detail = f"nvidia-smi sees a GPU, PyTorch does not: {torch.problem or 'no reason given'}"
        yield Finding("gpu", FIX, detail, "driver and PyTorch's CUDA do not match: update the driver")


def _seen(torch: Torch) -> Iterator[Finding]:
    """Of several GPUs, those that are too old are named, even where others are not."""
    reasons = [why_too_old(gpu.name, gpu.capability) if gpu.capability else None for gpu in torch.gpus]
    if any(reasons):
        advice = "vl2 runs on the CPU instead; where there is a later GPU too, choose it by CUDA_VISIBLE_DEVICES"
        yield Finding("gpu", WARNING, "; ".join(filter(None, dict.fromkeys(reasons))), advice)
    else:
        yield Finding("gpu", OK, f"PyTorch sees {_names(torch.gpus)}")
    if reasons[0] is None:
        yield from _models(torch)


def _models(torch: Torch) -> Iterator[Finding]:
    """The largest official model that the first GPU holds."""
    gpu = torch.gpus[0]
    device = Device(gpu.name, gpu.memory_bytes)
    for name in ("base", "small", "tiny"):
        verdict = judge(official_config(name), device, Wanted(), EngineConfig())
        if verdict.fits:
            detail = f"{name} fits {gpu.name} with {verdict.plan.concurrency} whole contexts at once"
            yield Finding("models", OK, detail + "; see `vl2 plan`")
            return
    yield Finding(
        "models", WARNING, f"no official model fits {gpu.name} in 16 bits", f"vl2 plan tiny: {verdict.advice}"
    )


def _native(facts: Facts) -> Iterator[Finding]:
    native = facts.native
    if facts.torch is None:  # ONNX Runtime has kernels of its own
        return
    if native.variant is None:
        detail = "none: on a CPU tokens come several times slower"
        yield Finding("native library", WARNING, detail, native.problem)
    elif native.is_amx_refused:
        detail = f"{native.variant}: the processor has AMX, but the system refuses it, so prompts are slower"
        advice = "needed: Linux 5.16 or newer; in a container, a runtime and a seccomp profile that allow arch_prctl"
        yield Finding("native library", OK, detail, advice)
    else:
        yield Finding("native library", OK, native.variant)


def _memory(facts: Facts) -> Iterator[Finding]:
    if facts.memory_bytes is None:
        yield Finding("memory", WARNING, "unknown")
    elif facts.memory_bytes < LEAST_MEMORY_BYTES:
        advice = "free some, or raise the container's limit: 4 GiB beside the weights that lie on the CPU"
        yield Finding("memory", WARNING, f"{_gib(facts.memory_bytes)} available", advice)
    else:
        yield Finding("memory", OK, f"{_gib(facts.memory_bytes)} available, {facts.cores} cores")


def _disk(facts: Facts) -> Iterator[Finding]:
    if facts.disk_free_bytes is None:
        yield Finding("disk", WARNING, f"{facts.cache_folder}: free space unknown")
    elif facts.disk_free_bytes < TINY_DOWNLOAD_BYTES:
        advice = "Tiny takes 6.7 GB, Small 32, base 55: --cache-folder on a larger disk"
        yield Finding("disk", WARNING, f"{_gib(facts.disk_free_bytes)} free for {facts.cache_folder}", advice)
    else:
        yield Finding("disk", OK, f"{_gib(facts.disk_free_bytes)} free for {facts.cache_folder}")


def _shared_memory(facts: Facts) -> Iterator[Finding]:
    if facts.shm_bytes is not None and facts.shm_bytes < LEAST_SHM_BYTES:
        advice = "in a container, give it more: --shm-size 1g"
        yield Finding("shared memory", WARNING, f"{facts.shm_bytes / 2**20:.0f} MiB in /dev/shm", advice)
    elif facts.shm_bytes is not None:
        yield Finding("shared memory", OK, f"{_gib(facts.shm_bytes)} in /dev/shm")


def _port(facts: Facts) -> Iterator[Finding]:
    if facts.port_problem:
        advice = "serve on another one with --port, or end what listens there"
        yield Finding("port", WARNING, f"{facts.port}: {facts.port_problem}", advice)
    else:
        yield Finding("port", OK, f"{facts.port} is free")


def _hub(facts: Facts) -> Iterator[Finding]:
    if facts.hub_problem is None:
        yield Finding("hub", OK, "not asked (offline)")
    elif facts.hub_problem:
        advice = "set a mirror (HF_ENDPOINT or --hub-endpoint), use --hub modelscope, or copy a folder and serve that"
        yield Finding("hub", WARNING, f"{facts.hub_url} is not reached: {facts.hub_problem}", advice)
    else:
        yield Finding("hub", OK, f"{facts.hub_url} is reached")


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _python,
    _versions,
    _torch,
    _driver,
    _gpu,
    _native,
    _memory,
    _disk,
    _shared_memory,
    _port,
    _hub,
)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _names(gpus: tuple[Gpu, ...]) -> str:
    names = [gpu.name for gpu in gpus]
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))

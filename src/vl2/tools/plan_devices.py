"""The GPUs that `vl2 plan` compares: how much memory CUDA reports, and which are too old."""

from __future__ import annotations

from dataclasses import dataclass

from vl2.core.errors import SetupError

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, and the models that somebody ran vl2 with on it; all else is computed."""

    name: str
    memory_bytes: int
    is_too_old: bool = False  # for the kernels, which need Ampere or later (core/gpu_age.py)
    measured_models: tuple[str, ...] = ()
    note: str = ""


def _gpu(name: str, memory_gib: float, **more: bool | str | tuple[str, ...]) -> Device:
    return Device(name, int(memory_gib * GIB), **more)  # type: ignore[arg-type]  # keywords of Device


DEVICES = (
    _gpu("T4", 14.5, is_too_old=True),
    _gpu("V100-16GB", 15.7, is_too_old=True),
    _gpu("V100-32GB", 31.7, is_too_old=True),
    _gpu("A10", 22.0),
    _gpu("L4", 22.0),
    _gpu("4090", 23.6),
    _gpu("Orin-32GB", 29.5, note="shared with the CPU: system and programs take of it too"),
    _gpu("A100-40GB", 39.3),
    _gpu("A40", 44.3),
    _gpu("L40S", 44.3),
    _gpu("A100-80GB", 79.1),
    _gpu("H100", 79.1, measured_models=("tiny", "small", "base")),
    _gpu("H200", 139.7),
)
"""Memory as `torch.cuda.mem_get_info` reports it in all, which is less than the name says: GiB, and ECC."""


def find_devices(name: str) -> list[Device]:
    """Those whose name begins with `name`, in any case: A100 names two. Raises: SetupError."""
    wanted = name.lower().removeprefix("rtx").strip(" -")
    found = [device for device in DEVICES if device.name.lower().startswith(wanted)]
    exact = [device for device in found if device.name.lower() == wanted]
    if not found or not wanted:
        known = ", ".join(device.name for device in DEVICES)
        raise SetupError(f"--gpu {name} is not in the list ({known}); give its memory instead: --memory GB")
    return exact or found

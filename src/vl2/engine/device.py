"""Which device and which number format a replica computes with: chosen once, at the start."""

from __future__ import annotations

import logging

import torch

from vl2.core.cpu import cpu_words
from vl2.core.errors import SetupError
from vl2.core.gpu_age import why_too_old
from vl2.core.stats import DeviceMemory
from vl2.ops.float8.support import has_float8
from vl2.ops.saturate import FLOAT8

log = logging.getLogger(__name__)


def choose_device(name: str, num_replicas: int = 1, replica_idx: int = 0) -> torch.device:
    """Each replica has a GPU of its own; on a CPU they share it. auto: the GPU, if there is one that kernels run on.

    Raises: SetupError when a GPU is asked for and none is there, it is too old, or there are too few for the replicas.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise SetupError("--device cuda, but PyTorch sees no GPU; see `nvidia-smi`, or use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    gpu_idx = replica_idx if replica_idx < torch.cuda.device_count() else 0
    if too_old := why_too_old(torch.cuda.get_device_name(gpu_idx), torch.cuda.get_device_capability(gpu_idx)):
        if name == "cuda":
            raise SetupError(f"{too_old}; use --device cpu")
        log.warning("%s: computing on the CPU", too_old)
        return torch.device("cpu")
    if num_replicas > torch.cuda.device_count():
        raise SetupError(
            f"--replicas {num_replicas} needs as many GPUs, but PyTorch sees {torch.cuda.device_count()}; "
            f"lower it, or use --device cpu"
        )
    return torch.device("cuda", replica_idx)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 where the hardware computes in it, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    return torch.bfloat16 if device.type == "cuda" or _cpu_computes_bfloat16() else torch.float32


def choose_kv_dtype(name: str, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Of the KV cache; auto: the model's. Raises: SetupError."""
    if name == "auto":
        return dtype
    if not has_float8(device):
        raise SetupError(
            f"--kv-dtype fp8 needs a GPU that computes with float8, as L4, L40S or H100, which "
            f"{torch.cuda.get_device_name(device)} does not; leave it out"
        )
    return FLOAT8


def _cpu_computes_bfloat16() -> bool:
    """Whether the processor has dot products of bfloat16; emulated ones are slower than float32."""
    return bool(cpu_words() & {"avx512_bf16", "amx_bf16", "bf16"})


def gpu_uuid(device: torch.device) -> str | None:
    """The driver's name of a GPU, which does not depend on what this process sees of the machine."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def device_memory(device: torch.device) -> DeviceMemory | None:
    """As PyTorch's allocator accounts for it; None on a CPU."""
    if device.type != "cuda":
        return None
    stats = torch.cuda.memory_stats(device)
    names = ("allocated_bytes", "reserved_bytes", "inactive_split_bytes")
    return DeviceMemory(*(stats[f"{name}.all.current"] for name in names))

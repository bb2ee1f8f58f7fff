"""What the driver says about the GPUs, read beside the engines: asking it may take longer than a step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from vl2.core.stats import THROTTLE_REASONS, GPUReading

log = logging.getLogger(__name__)
T = TypeVar("T")

# NVML's bits for lowered clocks (nvml.h, nvmlClocksEventReasons): those that cost speed that the workload asks for.
_POWER_CAP, _HW_SLOWDOWN, _SW_THERMAL, _HW_THERMAL, _HW_POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80
_REASON_BITS = dict(
    zip(THROTTLE_REASONS, (_POWER_CAP, _SW_THERMAL | _HW_THERMAL, _HW_SLOWDOWN | _HW_POWER_BRAKE), strict=True)
)


class GPUMeter:
    """Through NVML, where there is one: without a driver every reading is None. Blocks; call it from a thread."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._is_missing = False

    def read_all(self, uuids: Sequence[str | None]) -> list[GPUReading | None]:
        """None for None, and for a GPU that the driver does not know (any more)."""
        return [None if uuid is None else self._read(uuid) for uuid in uuids]

    def _read(self, uuid: str) -> GPUReading | None:
        nvml = self._opened()
        if nvml is None:
            return None
        try:
            gpu = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except nvml.NVMLError:
            return None

        def ask(question: Callable[[], T]) -> T | None:
            try:
                return question()
            except nvml.NVMLError:  # not every card tells everything
                return None

        memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(gpu))
        percent = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
        milliwatts = ask(lambda: nvml.nvmlDeviceGetPowerUsage(gpu))
        bits = ask(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))
        return GPUReading(
            utilization=None if percent is None else percent / 100,
            memory_used_bytes=None if memory is None else memory.used,
            memory_total_bytes=None if memory is None else memory.total,
            power_watts=None if milliwatts is None else milliwatts / 1000,
            temperature_celsius=ask(lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
            throttle_reasons=None if bits is None else tuple(r for r, mask in _REASON_BITS.items() if bits & mask),
        )

    def _opened(self) -> Any:
        if self._nvml is None and not self._is_missing:
            try:
                import pynvml

                pynvml.nvmlInit()
                self._nvml = pynvml
            except Exception as error:  # no library, no driver, no right to ask it
                self._is_missing = True
                log.warning("the GPUs' utilization, power and temperature are not measured: %s", error)
        return self._nvml

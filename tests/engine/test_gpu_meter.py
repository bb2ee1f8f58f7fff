"""Readings of GPUs, against the names and units of the real NVML binding; this machine need not have a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import create_autospec

import pynvml
import pytest

from vl2.core.stats import GPUReading
from vl2.engine.gpu_meter import GPUMeter


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> object:
    """One card that tells everything, in the units of nvml.h: percent, bytes, milliwatts, degrees."""
    card = create_autospec(pynvml)
    card.NVMLError, card.NVML_TEMPERATURE_GPU = pynvml.NVMLError, pynvml.NVML_TEMPERATURE_GPU
    card.nvmlDeviceGetHandleByUUID.side_effect = lambda uuid: {"GPU-1234": "handle"}[uuid]
    card.nvmlDeviceGetMemoryInfo.return_value = SimpleNamespace(used=40 * 2**30, total=80 * 2**30)
    card.nvmlDeviceGetUtilizationRates.return_value = SimpleNamespace(gpu=97, memory=30)
    card.nvmlDeviceGetPowerUsage.return_value = 640_500
    card.nvmlDeviceGetTemperature.return_value = 71
    card.nvmlDeviceGetCurrentClocksThrottleReasons.return_value = 0
    monkeypatch.setitem(__import__("sys").modules, "pynvml", card)
    return card


def test_a_card_is_read_in_base_units(nvml) -> None:
    assert GPUMeter().read_all(["1234", None]) == [GPUReading(0.97, 40 * 2**30, 80 * 2**30, 640.5, 71, ()), None]


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [
        (pynvml.nvmlClocksThrottleReasonGpuIdle, ()),
        (pynvml.nvmlClocksThrottleReasonSwPowerCap, ("power_cap",)),
        (pynvml.nvmlClocksThrottleReasonSwThermalSlowdown, ("thermal",)),
        (pynvml.nvmlClocksThrottleReasonHwThermalSlowdown, ("thermal",)),
        (pynvml.nvmlClocksThrottleReasonHwSlowdown, ("hardware",)),
        (
            pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown | pynvml.nvmlClocksThrottleReasonSwPowerCap,
            ("power_cap", "hardware"),
        ),
    ],
)
def test_lowered_clocks_have_reasons(nvml, bits: int, reasons: tuple[str, ...]) -> None:
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons.return_value = bits
    [reading] = GPUMeter().read_all(["1234"])
    assert reading.throttle_reasons == reasons


def test_what_a_card_does_not_tell_is_none_and_the_rest_is_there(nvml) -> None:
    nvml.nvmlDeviceGetPowerUsage.side_effect = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    [reading] = GPUMeter().read_all(["1234"])
    assert reading.power_watts is None and reading.temperature_celsius == 71


def test_an_unknown_card_is_none(nvml) -> None:
    nvml.nvmlDeviceGetHandleByUUID.side_effect = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
    assert GPUMeter().read_all(["gone"]) == [None]


@pytest.mark.cpu_only
def test_without_a_driver_nothing_is_measured_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    meter = GPUMeter()
    assert meter.read_all(["1234"]) == meter.read_all(["1234"]) == [None]
    assert len(caplog.records) == 1

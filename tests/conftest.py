"""For all tests, before torch is imported anywhere: threads and matrix libraries as the engine sets them."""

import functools

import pytest
from hypothesis import HealthCheck, settings

from tests import device
from vl2.engine.instructions import limit_instructions
from vl2.engine.threads import limit_spinning

limit_spinning()
limit_instructions(is_deterministic=True)
# The same examples everywhere, however long this machine takes for them; a profile of one's own looks for others.
settings.register_profile("vl2", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vl2")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where models and kernels run")


def pytest_configure(config: pytest.Config) -> None:
    device.DEVICE = config.getoption("--device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if config.getoption("--device") != "cpu" and item.get_closest_marker("cpu_only"):
            item.add_marker(pytest.mark.skip(reason="about the CPU"))  # every run without --device has it
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))  # `make test-gpu` has one


@functools.cache
def _has_gpu() -> bool:
    import torch  # by now the tests have imported it

    return torch.cuda.is_available()

"""Where the kernels under test run."""

import pytest
import torch

from tests import interpreter  # noqa: F401  # before Triton is imported anywhere


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

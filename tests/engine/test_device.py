"""Which device each replica gets, with GPUs that we only claim to have."""

import os

import pytest
import torch

from vl2.core.errors import SetupError
from vl2.engine.device import choose_device
from vl2.engine.threads import choose_num_threads


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_replica_has_a_gpu_of_its_own(name: str):
    assert [choose_device(name, 2, idx) for idx in (0, 1)] == [torch.device("cuda:0"), torch.device("cuda:1")]


@pytest.mark.usefixtures("two_gpus")
def test_more_replicas_than_gpus_are_refused_and_on_a_cpu_any_number_is_taken():
    with pytest.raises(SetupError, match="--replicas 3 needs as many GPUs, but PyTorch sees 2"):
        choose_device("auto", 3, 0)
    assert choose_device("cpu", 3, 2) == torch.device("cpu")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("gpu", "capability"), [("Tesla T4", (7, 5)), ("Tesla V100-SXM2-16GB", (7, 0))])
def test_a_gpu_older_than_ampere_is_refused_when_asked_for_and_else_left_alone_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gpu: str, capability: tuple[int, int]
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
    with pytest.raises(SetupError, match=rf"{gpu} has compute capability {capability[0]}.*--device cpu"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")
    [record] = caplog.records
    assert gpu in record.message and "on the CPU" in record.message


def test_replicas_share_the_cores_unless_threads_are_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert [choose_num_threads(None, replicas) for replicas in (1, 2, 3, 9)] == [8, 4, 2, 1]
    assert choose_num_threads(6, 2) == 6

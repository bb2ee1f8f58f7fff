"""vl2 doctor: each trouble is told with what to do; the machine's facts are made up, or this machine's own."""

from __future__ import annotations

import dataclasses
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vl2.checkpoint import modelscope
from vl2.cli import execute
from vl2.core import cpu
from vl2.core.config import HubOptions
from vl2.core.errors import SetupError
from vl2.engine.device import choose_device
from vl2.ops.native import builds
from vl2.tools.doctor import diagnose, has_fixes
from vl2.tools.doctor_facts import LIBRARIES, Facts, Gpu, Native, Torch, look, parse_smi

H100 = Gpu("NVIDIA H100 80GB HBM3", 79 * 2**30, (9, 0))
T4 = Gpu("Tesla T4", 15 * 2**30, (7, 5))
GOOD = Facts(
    python=(3, 12),
    system="Linux",
    versions=dict.fromkeys(LIBRARIES, "1.0"),
    driver="580.65.06",
    smi_gpus=(H100,),
    smi_problem="",
    torch=Torch("2.13.0+cu130", "13.0", (H100,)),
    native=Native("x86-64-v4-amx"),
    visible_devices=None,
    memory_bytes=64 * 2**30,
    cores=16,
    cache_folder="/models",
    disk_free_bytes=10**12,
    shm_bytes=2**30,
    port=8000,
    port_problem="",
    hub_url="https://hub.example",
    hub_problem="",
)
CPU_BUILD = Torch("2.13.0+cpu", None, ())


def findings(**changes: Any) -> dict[str, Any]:
    return {finding.name: finding for finding in diagnose(dataclasses.replace(GOOD, **changes))}


def test_a_good_machine_has_nothing_to_tell() -> None:
    found = findings()
    assert {finding.status for finding in found.values()} == {"ok"}
    assert "base fits NVIDIA H100" in found["models"].detail


@pytest.mark.parametrize(
    ("changes", "name", "status", "words"),
    [
        ({"python": (3, 9)}, "python", "fix", "3.10"),
        ({"python": (3, 15)}, "python", "warning", "tested"),
        ({"versions": {"pyzmq": None}}, "packages", "fix", "pyzmq"),
        ({"torch": None}, "pytorch", "fix", "install it again"),
        ({"torch": None, "versions": {"onnxruntime": "1.23"}}, "pytorch", "ok", "ONNX Runtime 1.23"),
        ({"torch": None, "versions": {}}, "pytorch", "fix", "vl2[torch]"),
        ({"torch": Torch("2.6.0", "12.4", (H100,))}, "pytorch", "fix", "2.9 or newer"),
        ({"driver": "535.129"}, "driver", "fix", "update it to 580"),
        ({"smi_problem": "NVIDIA-SMI has failed", "smi_gpus": ()}, "driver", "fix", "--gpus all"),
        ({"driver": None, "smi_gpus": (), "torch": CPU_BUILD}, "driver", "warning", "no NVIDIA driver"),
        ({"driver": None, "smi_gpus": (), "torch": CPU_BUILD}, "gpu", "warning", "CPU"),
        ({"torch": CPU_BUILD}, "gpu", "fix", "CUDA build"),
        ({"torch": Torch("2.13.0", "13.0", ()), "visible_devices": ""}, "gpu", "fix", "unset CUDA_VISIBLE_DEVICES"),
        ({"torch": Torch("2.13.0", "13.0", (), "driver too old")}, "gpu", "fix", "driver too old"),
        ({"torch": Torch("2.13.0", "13.0", (Gpu("old", 4 * 2**30),))}, "models", "warning", "no official model"),
        ({"torch": Torch("2.13.0", "13.0", (T4,))}, "gpu", "warning", "Tesla T4 has compute capability 7.5"),
        ({"torch": Torch("2.13.0", "13.0", (H100, T4))}, "gpu", "warning", "CUDA_VISIBLE_DEVICES"),
        ({"native": Native("x86-64-v4-bf16")}, "native library", "ok", "x86-64-v4-bf16"),
        ({"native": Native("x86-64-v4-bf16", "", True)}, "native library", "ok", "arch_prctl"),
        ({"native": Native(None, "it was not built: install vl2 …")}, "native library", "warning", "it was not built"),
        ({"memory_bytes": 2**30}, "memory", "warning", "limit"),
        ({"disk_free_bytes": 10**9}, "disk", "warning", "--cache-folder"),
        ({"shm_bytes": 2**20}, "shared memory", "warning", "--shm-size"),
        ({"port_problem": "Address already in use"}, "port", "warning", "--port"),
        ({"hub_problem": "timed out"}, "hub", "warning", "HF_ENDPOINT"),
        ({"hub_problem": None}, "hub", "ok", "offline"),
    ],
)
def test_each_trouble_is_told_with_what_to_do(changes: dict[str, Any], name: str, status: str, words: str) -> None:
    found = findings(**changes)[name]
    assert found.status == status and words in f"{found.detail} {found.advice}"
    assert found.advice or status == "ok"


def test_only_what_must_be_fixed_fails() -> None:
    assert has_fixes(diagnose(dataclasses.replace(GOOD, torch=None)))
    assert not has_fixes(diagnose(dataclasses.replace(GOOD, hub_problem="timed out", memory_bytes=2**30)))


def test_a_gpu_that_is_too_old_is_told_in_the_engines_words(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(torch=Torch("2.13.0", "13.0", (T4, T4)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: T4.name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: T4.capability)
    with pytest.raises(SetupError) as refused:
        choose_device("cuda")
    assert refused.value.message.startswith(found["gpu"].detail)
    assert "models" not in found, "no model fits a GPU that no kernel runs on"


@pytest.mark.parametrize("is_permitted", [True, False])
def test_matrix_units_that_the_system_refuses_are_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_permitted: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : " + " ".join(builds.BFLOAT16 | builds.AMX))
    monkeypatch.setattr(cpu, "CPUINFO", cpuinfo)
    monkeypatch.setattr(builds, "may_use_tiles", lambda: is_permitted)
    monkeypatch.setattr(builds, "find", lambda: (builds.FOLDER, "any"))  # what it finds, this machine may not run
    assert look(0, HubOptions(offline=True)).native.is_amx_refused is not is_permitted


def test_a_library_that_cannot_be_used_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "find", lambda: (None, "it is of another version; install vl2 again"))
    native = look(0, HubOptions(offline=True)).native
    assert findings(native=native)["native library"].advice == "it is of another version; install vl2 again"
    assert "native library" not in findings(torch=None, native=native), "ONNX Runtime does not use it"


def test_what_nvidia_smi_prints_is_read() -> None:
    output = "NVIDIA H100 80GB HBM3, 81559, 580.65.06\nNVIDIA H100 80GB HBM3, 81559, 580.65.06\n"
    driver, gpus, problem = parse_smi(output, "", 0)
    assert (driver, len(gpus), gpus[0].memory_bytes, problem) == ("580.65.06", 2, 81559 * 2**20, "")
    assert parse_smi("Orin (nvgpu), [N/A], 540.4.0\n", "", 0)[1][0].memory_bytes == 0
    failed = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\nMore.\n"
    assert parse_smi(failed, "", 9) == (None, (), failed.splitlines()[0])


@pytest.fixture
def hub() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_this_machine_is_looked_at(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        facts = look(taken.getsockname()[1], HubOptions(hub_endpoint=hub))
    assert facts.hub_problem == "", "any answer means that it is reached"
    assert "in use" in facts.port_problem
    assert facts.torch is not None and facts.memory_bytes and facts.disk_free_bytes
    assert builds.find()[1] in (facts.native.variant, facts.native.problem)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    unreached = look(0, HubOptions())
    assert unreached.hub_url == "http://127.0.0.1:9" and "refused" in (unreached.hub_problem or "")
    china = look(0, HubOptions(hub="modelscope", offline=True))
    assert china.hub_url == modelscope.ENDPOINT and Path(china.cache_folder) == modelscope.CACHE.expanduser()


def test_the_report_is_json_and_the_code_counts_only_fixes(capsys: pytest.CaptureFixture[str]) -> None:
    code = execute(["doctor", "--offline", "--json", "--port", "0"])
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == (code == 0)
    assert {"python", "pytorch", "driver", "gpu", "memory", "disk", "port", "hub"} <= {
        finding["name"] for finding in report["findings"]
    }
    assert execute(["doctor", "--offline"]) == code
    assert "ok" in capsys.readouterr().out

import os
import subprocess
import sys

import pytest

from vl2.core import cpu
from vl2.engine.instructions import REPRODUCIBLE, limit_instructions


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in REPRODUCIBLE:
        monkeypatch.delenv(name, raising=False)


def processor(monkeypatch, tmp_path, text: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")


INTEL = "vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512f amx_bf16\n"


def test_on_an_intel_processor_the_libraries_are_told_to_add_up_in_one_way(monkeypatch, tmp_path):
    processor(monkeypatch, tmp_path, INTEL)
    limit_instructions(is_deterministic=True)
    assert {name: os.environ.get(name) for name in REPRODUCIBLE} == REPRODUCIBLE


def test_what_the_user_set_stays(monkeypatch, tmp_path):
    processor(monkeypatch, tmp_path, INTEL)
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    limit_instructions(is_deterministic=True)
    assert os.environ["MKL_CBWR"] == "AVX2"


@pytest.mark.parametrize(
    ("text", "is_deterministic"),
    [
        (INTEL, False),
        (INTEL.replace("GenuineIntel", "AuthenticAMD"), True),
        (INTEL.replace("avx512f", "avx2"), True),
    ],
)
def test_elsewhere_they_are_left_alone(monkeypatch, tmp_path, text, is_deterministic):
    processor(monkeypatch, tmp_path, text)
    limit_instructions(is_deterministic)
    assert not set(REPRODUCIBLE) & set(os.environ)


def test_it_comes_before_torch():
    code = "import sys, vl2.engine.instructions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

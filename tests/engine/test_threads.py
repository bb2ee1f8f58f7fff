import os
import subprocess
import sys

from vl2.engine.threads import SPIN_COUNT, limit_spinning, threads_for_step

MIB = 2**20


def test_a_small_step_of_a_small_model_runs_on_one_thread():
    assert threads_for_step(num_tokens=4, num_tiles=0, weights_bytes=16 * MIB, num_threads=8) == 1
    assert threads_for_step(num_tokens=400, num_tiles=0, weights_bytes=16 * MIB, num_threads=8) == 8
    assert threads_for_step(num_tokens=4, num_tiles=1, weights_bytes=16 * MIB, num_threads=8) == 8
    assert threads_for_step(num_tokens=4, num_tiles=0, weights_bytes=6000 * MIB, num_threads=8) == 8


def test_what_the_user_set_for_openmp_stays(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == SPIN_COUNT
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    limit_spinning()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_it_comes_before_torch():
    code = "import sys, vl2.engine.threads; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

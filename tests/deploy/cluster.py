"""A real nginx in front of real `vl2 serve` processes, all on loopback, with the configuration that we ship."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.e2e.server_process import wait_until
from vl2.deploy.nginx import NginxOptions, nginx_files
from vl2.deploy.render import write

FLAGS = ("--device", "cpu", "--dtype", "float32", "--threads", "1", "--max-sequences", "32", "--log-level", "warning")


def need(program: str, how: str) -> str:
    """Its path. Where it is missing the test is skipped, but not in `make test-deploy`, which installs it."""
    path = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        missing = f"{program} is missing; {how}"
        assert "VL2_TEST_DEPLOY" not in os.environ, missing
        pytest.skip(missing)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Node:
    """One `vl2 serve` with a fixed address, that can be ended and started again."""

    name: str
    folder: Path
    model: str = "nano"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def begin(self) -> None:
        """Start it; `wait_ready` tells when it answers."""
        command = [sys.executable, "-m", "vl2", "serve", self.model, "--port", str(self.port), *FLAGS]
        command += ["--node-name", self.name, "--state-dir", str(self.folder / f"state-{self.name}")]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def wait_ready(self, timeout_s: float = 180) -> None:
        wait_until(lambda: answers(self.url + "/health/ready"), timeout_s)

    def end(self, how: int = signal.SIGTERM, timeout_s: float = 60) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(timeout_s)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@dataclass
class Cluster:
    nodes: list[Node]
    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def tries(self, path: str) -> list[list[str]]:
        """For each request to `path` that nginx has logged: the names of the servers that it was sent to, in order."""
        names = {f"127.0.0.1:{node.port}": node.name for node in self.nodes}
        lines = (self.folder / "nginx.log").read_text().splitlines()
        found = [re.search(r"upstream=(.*?) tries=", line) for line in lines if f" {path} " in line]
        return [[names.get(part, part) for part in match[1].split(", ")] for match in found if match]


@contextlib.contextmanager
def serving_nodes(folder: Path, names: tuple[str, ...] = ("n1", "n2", "n3")) -> Iterator[list[Node]]:
    nodes = [Node(name, folder) for name in names]
    try:
        for node in nodes:
            node.begin()
        for node in nodes:
            node.wait_ready()
        yield nodes
    finally:
        for node in nodes:
            node.end()


@contextlib.contextmanager
def balancing(nodes: list[Node], folder: Path, **options: object) -> Iterator[Cluster]:
    """nginx with the shipped configuration in front of `nodes`."""
    nginx = need("nginx", "on Debian: apt-get install nginx-light")
    state = folder / "state"
    state.mkdir(parents=True)
    upstream = tuple(f"{node.name}=127.0.0.1:{node.port}" for node in nodes)
    cluster = Cluster(nodes, folder, free_port())
    made = NginxOptions(upstream=upstream, listen=f"127.0.0.1:{cluster.port}", state_dir=str(state), **options)  # type: ignore[arg-type]
    write(folder, nginx_files(made), overwrite=False)
    as_root = "user root;" if os.geteuid() == 0 else ""  # the tests' folders are closed to others
    command = [nginx, "-e", "stderr", "-c", str(folder / "nginx.conf"), "-g", f"daemon off; {as_root}"]
    with (folder / "nginx.log").open("ab") as out, (folder / "nginx.err").open("ab") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
    try:
        wait_until(lambda: answers(cluster.url + "/health/proxy"), 10)
        yield cluster
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)

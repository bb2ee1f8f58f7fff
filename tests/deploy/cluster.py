"""A real nginx in front of real `vl2 serve` processes, all on loopback, with the configuration that we ship."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.server_process import LIMIT_S, wait_until
from tests.ports import free_port
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

    def wait_ready(self) -> None:
        wait_until(lambda: answers(self.url + "/health/ready"))

    @property
    def engine_pid(self) -> int:
        assert self.process is not None
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(child.pid for child in children if "vl2.engine.worker" in child.cmdline())

    def end(self, how: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(LIMIT_S)


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

    def tries(self, path: str, num_requests: int) -> list[list[str]]:
        """For each of the requests to `path`: the names of the servers that it was sent to, in order.

        nginx logs a request when it has sent the answer: a moment after the client has read it.
        """
        wait_until(lambda: len(self._logged(path)) == num_requests)
        names = {f"127.0.0.1:{node.port}": node.name for node in self.nodes}
        return [[names.get(part, part) for part in upstream.split(", ")] for upstream in self._logged(path)]

    def _logged(self, path: str) -> list[str]:
        *lines, _ = (self.folder / "nginx.log").read_text().split("\n")  # the last one may not be complete
        found = [re.search(r"upstream=(.*?) tries=", line) for line in lines if f" {path} " in line]
        return [match[1] for match in found if match]


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
        wait_until(lambda: answers(cluster.url + "/health/proxy"))
        yield cluster
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT_S)

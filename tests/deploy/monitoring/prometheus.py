"""A real Prometheus on loopback that scrapes real servers, with the rules that we ship."""

from __future__ import annotations

import calendar
import contextlib
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.deploy.cluster import need
from tests.e2e.server_process import LIMIT_S, wait_until
from tests.ports import free_port

MONITORING = Path(__file__).parents[3] / "src/vl2/deploy/monitoring"
HOW = "on Debian: apt-get install prometheus"


@dataclass(frozen=True)
class Prometheus:
    url: str

    def query(self, expr: str, at_s: float | None = None) -> list[dict[str, Any]]:
        """`metric` and `value` of each series."""
        asked = {"query": expr, **({"time": at_s} if at_s else {})}
        found = httpx.get(self.url + "/api/v1/query", params=asked, timeout=LIMIT_S).json()
        assert found["status"] == "success", f"{expr}: {found}"
        return found["data"]["result"]

    def value(self, expr: str) -> float:
        """Of the only series."""
        [series] = self.query(expr)
        return float(series["value"][1])

    def wait_for_scrape(self, num_targets: int) -> None:
        """Until every target has been read once more, from its beginning on."""
        now_s = time.time() + 0.1
        wait_until(lambda: len(self.query(f"timestamp(up) > {now_s}")) == num_targets)
        wait_until(lambda: self.rules_are_newer_than(now_s))

    def rules_are_newer_than(self, now_s: float) -> bool:
        groups = httpx.get(self.url + "/api/v1/rules", timeout=LIMIT_S).json()["data"]["groups"]
        return all(_seconds(group["lastEvaluation"]) > now_s + 1 for group in groups)


def _seconds(rfc3339: str) -> float:
    head, _, fraction = rfc3339.removesuffix("Z").partition(".")
    return calendar.timegm(time.strptime(head, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction or 0}")


@contextlib.contextmanager
def scraping(targets: Sequence[str], folder: Path) -> Iterator[Prometheus]:
    """Every second; `targets` as host:port. The shipped configuration, with other addresses and a shorter interval."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(MONITORING / "rules.yml")]
    config["scrape_configs"][0]["static_configs"] = [{"targets": list(targets)}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        need("prometheus", HOW),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        prometheus = Prometheus(f"http://{address}")

        def is_up() -> bool:
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(prometheus.url + "/-/ready").status_code == 200 and len(
                    prometheus.query("up == 1")
                ) == len(targets)
            return False

        wait_until(is_up)
        yield prometheus
    finally:
        process.terminate()
        process.wait(LIMIT_S)

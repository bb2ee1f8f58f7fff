"""vl2 deploy compose: a valid compose file whose parts fit together."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.cluster import need
from vl2.cli import execute
from vl2.deploy.compose import ComposeOptions, compose_files
from vl2.deploy.render import Files


def stack(**options: Any) -> tuple[dict[str, Any], Files]:
    files = compose_files(ComposeOptions(**options))
    return yaml.safe_load(files["compose.yaml"]), files


@pytest.mark.parametrize("kind", ["gpu", "cpu", "jetson"])
@pytest.mark.parametrize("servers", [1, 3])
def test_the_file_follows_the_compose_specification(kind: str, servers: int, tmp_path: Path) -> None:
    tool = need("check-jsonschema", "pip install check-jsonschema")
    file = tmp_path / "compose.yaml"
    file.write_text(compose_files(ComposeOptions(kind=kind, servers=servers))["compose.yaml"])
    command = [tool, "--builtin-schema", "vendor.compose-spec", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    file.write_text(file.read_text().replace("healthcheck:", "healthchek:"))
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1, "a misspelt field is found"


def test_every_server_has_a_gpu_a_name_and_a_place_for_its_files() -> None:
    compose, _ = stack(servers=3)
    servers = {name: service for name, service in compose["services"].items() if name.startswith("vl2-")}
    devices = [s["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for s in servers.values()]
    assert devices == [["0"], ["1"], ["2"]]
    assert [s["environment"]["VL2_NODE_NAME"] for s in servers.values()] == ["n1", "n2", "n3"]
    assert len({s["volumes"][1] for s in servers.values()}) == 3, "files and batches are each server's own"


def test_nginx_and_prometheus_know_every_server() -> None:
    _, files = stack(servers=2)
    assert re.findall(r"server (vl2-n\d:8000)", files["nginx/nginx.conf"])[:2] == ["vl2-n1:8000", "vl2-n2:8000"]
    [job] = yaml.safe_load(files["prometheus/prometheus.yml"])["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["vl2-n1:9000", "vl2-n2:9000"]}]
    assert yaml.safe_load(files["prometheus/rules.yml"])["groups"]
    assert json.loads(files["grafana/dashboards/vl2.json"])["panels"]


def test_all_that_is_mounted_is_written_and_all_volumes_are_declared() -> None:
    compose, files = stack(servers=2)
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert any(name.startswith(source[2:] + "/") for name in files), source
            else:
                assert source in compose["volumes"]
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert compose["services"]["vl2-n1"]["build"]["dockerfile"] in files


def test_a_stop_gives_running_answers_their_time() -> None:
    compose, _ = stack(drain_timeout_s=200)
    server = compose["services"]["vl2-n1"]
    assert server["environment"]["VL2_DRAIN_TIMEOUT_S"] == "200"
    assert int(server["stop_grace_period"].rstrip("s")) > 200


def test_images_can_come_from_a_mirror_and_from_elsewhere() -> None:
    compose, files = stack(registry="mirror.example/library", image="registry.example/vl2:1")
    images = {service["image"] for name, service in compose["services"].items() if not name.startswith("vl2-")}
    assert all(image.startswith("mirror.example/library/") for image in images)
    assert compose["services"]["vl2-n1"]["image"] == "registry.example/vl2:1" and "Dockerfile.gpu" not in files


def test_memory_on_a_cpu_holds_the_weights() -> None:
    on_gpu, _ = stack(served_model="tiny")
    on_cpu, _ = stack(served_model="tiny", kind="cpu")
    limits = [int(compose["services"]["vl2-n1"]["mem_limit"].rstrip("g")) for compose in (on_gpu, on_cpu)]
    assert limits[0] < 13 < limits[1], "Tiny takes 12.6 GiB in float32"


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["deploy", "compose", "--out", str(tmp_path), "--servers", "2"]) == 0
    assert (tmp_path / "compose.yaml").exists() and (tmp_path / ".env.example").exists()
    assert execute(["deploy", "compose", "--out", str(tmp_path / "x"), "--servers", "0"]) == 2
    assert "--servers is 0" in capsys.readouterr().err

"""The Helm chart: rendered offline by real Helm for every preset, and valid for Kubernetes and the operators."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import (
    Objects,
    custom_problems,
    everything,
    merged,
    named,
    preset,
    problems,
    render,
    write_chart,
)
from vl2.cli import execute
from vl2.core.config import EngineConfig, HubOptions, ServerConfig
from vl2.deploy.helm import PRESETS

IMMUTABLE = Path(__file__).parent / "chart-0.1.0.json"


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chart(tmp_path_factory.mktemp("chart") / "vl2")


def pod_of(objects: Objects, kind: str = "Deployment", name: str = "demo-vl2") -> dict[str, Any]:
    return named(objects, kind, name)["spec"]["template"]["spec"]


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in pod["containers"][0]["env"]}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_for_kubernetes(chart: Path, name: str) -> None:
    objects = render(chart, preset(chart, name))
    assert problems(objects) == []
    assert any(item["kind"] == "Deployment" for item in objects)


def test_all_that_can_be_switched_on_is_valid(chart: Path) -> None:
    objects = render(chart, everything(chart))
    assert problems(objects) == []
    assert {item["kind"] for item in objects} >= {
        *("Deployment", "StatefulSet", "Service", "Ingress", "NetworkPolicy", "PodDisruptionBudget", "Job"),
        *("PersistentVolumeClaim", "ScaledObject", "ServiceMonitor", "PrometheusRule"),
    }


def test_the_custom_resources_are_valid_for_their_operators(chart: Path, tmp_path: Path) -> None:
    assert custom_problems(render(chart, everything(chart)), tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "path", "typo"),
    [
        ("ScaledObject", ("spec",), "minReplicaCont"),
        ("ServiceMonitor", ("spec", "endpoints", 0), "intervall"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0), "expression"),
    ],
)
def test_planted_mistakes_in_custom_resources_are_found(
    chart: Path, tmp_path: Path, kind: str, path: tuple[str | int, ...], typo: str
) -> None:
    objects = copy.deepcopy(render(chart, everything(chart)))
    target: Any = named(objects, kind, "demo-vl2")
    for step in path:
        target = target[step]
    target[typo] = "1"
    assert any(typo in problem for problem in custom_problems(objects, tmp_path))


def test_planted_mistakes_are_found(chart: Path) -> None:
    objects = copy.deepcopy(render(chart, preset(chart, "dev")))
    pod_of(objects)["containers"][0]["redinessProbe"] = {}
    objects.append({"apiVersion": "apps/v1", "kind": "Deploiment", "metadata": {"name": "x"}})
    found = "\n".join(problems(objects))
    assert "redinessProbe" in found and "Deploiment" in found


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 1},
        {"server": {"maxSequence": 1}},
        {"gpus": "two"},
        {"hub": {"kind": "other"}},
        {"cache": {"size": 1}},
    ],
)
def test_misspelt_and_wrong_values_are_refused(chart: Path, values: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r"(?i)additional|type|string|integer|one of"):
        render(chart, merged(preset(chart, "dev"), values))


def test_the_default_values_are_all_in_the_schema(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())

    def compare(values: dict[str, Any], part: dict[str, Any], where: str) -> None:
        known = part.get("properties")
        if known is not None:
            assert set(values) == set(known), where
            for key, value in values.items():
                if isinstance(value, dict):
                    compare(value, known[key], f"{where}.{key}")

    compare(yaml.safe_load((chart / "values.yaml").read_text()), schema, "values")


def test_a_chart_without_keys_is_refused_unless_it_is_meant(chart: Path) -> None:
    with pytest.raises(Exception, match=r"existingSecret or auth\.apiKeys"):
        render(chart, {})
    open_to_all = environment(pod_of(render(chart, {"auth": {"allowWithoutKeys": True}})))
    assert (open_to_all["VL2_ALLOW_WITHOUT_KEYS"], open_to_all["VL2_ALLOWED_HOST"]) == ("1", "*")
    objects = render(chart, {"auth": {"apiKeys": ["a" * 16, "b" * 16]}})
    assert named(objects, "Secret", "demo-vl2-keys")["stringData"]["api-key"] == f"{'a' * 16} {'b' * 16}"


def test_probes_ask_the_port_that_needs_no_key(chart: Path) -> None:
    container = pod_of(render(chart, everything(chart)))["containers"][0]
    assert {port["name"]: port["containerPort"] for port in container["ports"]}["admin"] == 9000
    for probe, path in {"startupProbe": "ready", "livenessProbe": "live", "readinessProbe": "ready"}.items():
        assert container[probe]["httpGet"] == {"path": f"/health/{path}", "port": "admin"}
    assert environment({"containers": [container]})["VL2_ADMIN_HOST"] == "0.0.0.0"


def test_the_end_of_a_pod_leaves_answers_their_time(chart: Path) -> None:
    pod = pod_of(render(chart, merged(preset(chart, "dev"), {"server": {"drainTimeoutSeconds": 300}})))
    assert environment(pod)["VL2_DRAIN_TIMEOUT_S"] == "300"
    assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "10"]
    assert pod["terminationGracePeriodSeconds"] >= 310


def test_pods_run_without_rights_and_get_their_gpus(chart: Path) -> None:
    for name in PRESETS:
        for item in render(chart, preset(chart, name)):
            if item["kind"] not in ("Deployment", "StatefulSet", "Job"):
                continue
            pod = item["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
            for container in [*pod["containers"], *pod.get("initContainers", [])]:
                assert container["securityContext"]["readOnlyRootFilesystem"]
                assert container["resources"]["limits"]["memory"]
            if item["kind"] != "Job":
                assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    on_cpu = pod_of(render(chart, merged(preset(chart, "dev"), {"gpus": 0})))
    assert "nvidia.com/gpu" not in on_cpu["containers"][0]["resources"]["limits"]
    assert environment(on_cpu)["VL2_DEVICE"] == "cpu"


def test_files_are_kept_by_one_server_or_by_none(chart: Path) -> None:
    without = render(chart, preset(chart, "dev"))
    assert environment(pod_of(without))["VL2_STATE_DIR"] == "", "no files on servers that others stand in for"
    objects = render(chart, everything(chart))
    keeper = named(objects, "StatefulSet", "demo-vl2-files")
    assert keeper["spec"]["replicas"] == 1 and keeper["spec"]["volumeClaimTemplates"]
    assert environment(keeper["spec"]["template"]["spec"])["VL2_STATE_DIR"] == "/state"
    [rule] = named(objects, "Ingress", "demo-vl2")["spec"]["rules"]
    targets = {path["path"]: path["backend"]["service"]["name"] for path in rule["http"]["paths"]}
    assert targets["/v1/files"] == targets["/v1/batches"] == targets["/v1/responses"] == "demo-vl2-files"
    assert targets["/v1"] == "demo-vl2"


def test_a_downloaded_model_is_served_offline(chart: Path) -> None:
    objects = render(chart, preset(chart, "dev"))
    [job] = [item for item in objects if item["kind"] == "Job"]
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["pull", "tiny"]
    assert environment(pod_of(objects))["VL2_OFFLINE"] == "1"
    local = render(chart, merged(preset(chart, "dev"), {"model": "/data/mine"}))
    assert not any(item["kind"] == "Job" for item in local) and "initContainers" not in pod_of(local)


@pytest.mark.parametrize("model", ["tiny", "/data/mine"])
def test_caches_lie_where_the_server_can_write(chart: Path, model: str) -> None:
    """Choices of products and tuned tiles in HOME (ops/tuning.py), which is /data in the image."""
    pod = pod_of(render(chart, merged(preset(chart, "dev"), {"model": model})))
    mounts = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    variables = environment(pod)
    for folder in (Path(variables.get("HOME", "/data")), Path(variables["TRITON_CACHE_DIR"])):
        assert not mounts[f"/{folder.parts[1]}"].get("readOnly", False)


def test_every_image_comes_from_the_registry_that_is_named(chart: Path) -> None:
    text = json.dumps(render(chart, everything(chart)))
    images = re.findall(r'"image": "([^"]+)"', text)
    assert len(images) >= 4 and all(image.startswith("registry.example/") for image in images)


def immutable_parts(objects: Objects) -> dict[str, Any]:
    """What Kubernetes lets nobody change in an object that is there, by kind and name."""
    fields = {
        "Deployment": ("selector",),
        "StatefulSet": ("selector", "serviceName", "volumeClaimTemplates", "podManagementPolicy"),
        "PersistentVolumeClaim": ("accessModes", "storageClassName", "volumeName"),
        "Service": ("clusterIP",),
        "Job": ("selector", "template", "completions"),
    }
    return {
        f"{item['kind']}/{item['metadata']['name']}": {key: item["spec"].get(key) for key in fields[item["kind"]]}
        for item in objects
        if item["kind"] in fields
    }


def test_an_upgrade_changes_no_immutable_field(chart: Path, tmp_path: Path) -> None:
    """From the chart as released (chart-0.1.0.json), and from this one to its next version with other values."""
    now = immutable_parts(render(chart, everything(chart)))
    released = json.loads(IMMUTABLE.read_text())
    shared = {name for name in now if name in released and not name.startswith("Job/")}
    assert {"Deployment/demo-vl2", "StatefulSet/demo-vl2-files", "PersistentVolumeClaim/demo-vl2-models"} <= shared
    assert {name: now[name] for name in shared} == {name: released[name] for name in shared}
    next_chart = write_chart(tmp_path / "vl2")
    about = next_chart / "Chart.yaml"
    about.write_text(about.read_text().replace("0.1.0", "0.2.0"))
    other = {"replicas": 7, "image": {"tag": "abc"}, "model": "small", "server": {"maxSequences": 5}}
    after = immutable_parts(render(next_chart, merged(everything(chart), other)))
    both = set(now) & set(after)
    assert not any(name.startswith("Job/") for name in both), "what cannot change gets another name"
    assert {name: now[name] for name in both} == {name: after[name] for name in both} and len(both) >= 6


def test_variables_in_the_chart_are_options_of_the_server(chart: Path) -> None:
    known = {f"VL2_{f.name.upper()}" for c in (ServerConfig, EngineConfig, HubOptions) for f in dataclasses.fields(c)}
    text = "".join(path.read_text() for path in chart.rglob("*") if path.suffix in (".yaml", ".tpl"))
    used = set(re.findall(r"\bVL2_[A-Z_]+\b", text)) - {"VL2_MODEL"}
    assert len(used) > 15 and used <= known


def test_the_queue_that_is_scaled_on_is_a_metric_of_the_server(chart: Path) -> None:
    query = named(render(chart, everything(chart)), "ScaledObject", "demo-vl2")["spec"]["triggers"][0]["metadata"][
        "query"
    ]
    [metric] = re.findall(r"vl2_\w+(?=\{)", query)
    assert f"`{metric}`" in (Path(__file__).parents[2] / "docs/reference/metrics.md").read_text()


def test_the_command_writes_chart_and_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["deploy", "helm", "--out", str(tmp_path), "--served-model", "base", "--gpu", "H100", "--pods", "8"]
    assert execute(command) == 0
    values = yaml.safe_load((tmp_path / "values.yaml").read_text())
    assert values["replicas"] == 8 and values["server"]["maxSequences"] > 64
    objects = render(tmp_path / "vl2", merged(preset(tmp_path / "vl2", "production"), values))
    assert environment(pod_of(objects))["VL2_MODEL"] == "base"
    assert execute([*command, "--gpu", "L4", "--out", str(tmp_path / "no")]) == 2
    assert "base does not fit L4: --quantization int4 fits" in capsys.readouterr().err

"""The chart, rendered by real Helm without a cluster, and checked by Kubernetes' and the operators' own schemas."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from vl2.deploy.helm import chart_files
from vl2.deploy.render import write

Objects = list[dict[str, Any]]
NPM = Path(__file__).parent / "npm"
CRD_TYPES = {
    "ScaledObject": "@kubernetes-models/keda/keda.sh/v1alpha1",
    "ServiceMonitor": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
    "PrometheusRule": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
}
KUBERNETES = ("1.27", "1.33")


def write_chart(folder: Path) -> Path:
    write(folder, chart_files(), overwrite=False)
    return folder


def preset(chart: Path, name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((chart / f"presets/{name}.yaml").read_text())
    return merged(values, {"auth": {"existingSecret": "keys"}})


def everything(chart: Path) -> dict[str, Any]:
    """The production preset with all that can be switched on."""
    ingress = {"enabled": True, "hosts": ["vl2.example"], "tlsSecret": "tls"}
    auth = {"kind": "jsonl"}
    hub = {"tokenSecret": "hub", "endpoint": "https://mirror.example", "revision": "main"}
    more = {"ingress": ingress, "auth": auth, "hub": hub, "global": {"imageRegistry": "registry.example"}}
    return merged(preset(chart, "production"), more)


def merged(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(values)
    for key, value in more.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


def render(chart: Path, values: dict[str, Any]) -> Objects:
    """Objects as `helm template` gives them. Raises: HelmError, for values that the schema refuses too."""
    helm = pytest.importorskip("helm_python", reason="pip install helm-python-sdk")
    with helm.Chart.load(str(chart)) as loaded:
        loaded.validate_schema(values)
        texts = loaded.render(values, name="demo", namespace="prod")
    parts = [part for name, text in texts.items() if name.endswith(".yaml") for part in yaml.safe_load_all(text)]
    return [part for part in parts if part is not None]


def named(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    [found] = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def problems(objects: Objects) -> list[str]:
    """By the schemas of Kubernetes (strict: no unknown field) and of the custom resources; unknown kinds too."""
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")

    def problem(item: dict[str, Any], version: str) -> str | None:
        try:
            validate.validate(item, version, strict=True)
        except (validate.ValidationError, validate.SchemaNotFoundError, validate.InvalidSchemaError) as error:
            return f"{item['kind']} ({version}): {str(error)[:200]}"
        return None

    known = [item for item in objects if item["kind"] not in CRD_TYPES]
    return [found for item in known for version in KUBERNETES if (found := problem(item, version)) is not None]


def custom_problems(objects: Objects, folder: Path) -> list[str]:
    """What TypeScript says of the custom resources as object literals, where a misspelt field is an error."""
    if not (NPM / "node_modules").is_dir() or shutil.which("node") is None:
        pytest.skip("types of the custom resources are missing: make test-deploy installs them")
    lines = []
    for number, item in enumerate(o for o in objects if o["kind"] in CRD_TYPES):
        module, kind = CRD_TYPES[item["kind"]], item["kind"]
        lines.append(f'import {{ I{kind} as T{number} }} from "{module}/{kind}";')
        lines.append(f"export const o{number}: T{number} = {json.dumps(item)};")
    source = folder / "objects.mts"
    source.write_text("\n".join(lines))
    (folder / "node_modules").symlink_to(NPM / "node_modules")
    compiler = [str(NPM / "node_modules/.bin/tsc"), "--noEmit", "--strict", "--skipLibCheck"]
    options = ["--module", "nodenext", "--moduleResolution", "nodenext", "--target", "es2022", str(source)]
    done = subprocess.run([*compiler, *options], capture_output=True, text=True, check=False, cwd=folder)
    return [line for line in done.stdout.splitlines() if "error" in line]

"""The Helm chart, and a values file for it from flags and the planner."""

from __future__ import annotations

from dataclasses import dataclass

from vl2.core.config import EngineConfig, HubOptions, between, option
from vl2.core.errors import SetupError
from vl2.deploy.monitoring import monitoring_files
from vl2.deploy.render import Files, fill, shipped
from vl2.tools.plan import Plan, Wanted, judge
from vl2.tools.plan_devices import GIB, find_devices
from vl2.tools.plan_models import read_config

PRESETS = ("dev", "production", "edge")
HOST_MEMORY_BYTES = 8 * GIB
"""Of a pod beside the GPU: Python and CUDA's libraries, pictures of queued requests, shards while they are read."""
VALUES = """\
# {{ model }} on {{ plan.device.name }}, as `vl2 plan` reckons: weights {{ gib(plan.weights_bytes) }}, all but the cache
# {{ gib(plan.fixed_bytes) }} of {{ gib(plan.device.memory_bytes) }}, room for {{ plan.concurrency }} whole contexts.
#
#   helm upgrade --install vl2 ./vl2 -f ./vl2/presets/{{ o.preset }}.yaml -f ./values.yaml \\
#     --set auth.existingSecret=vl2-keys
model: {{ model }}
replicas: {{ o.pods }}
gpus: {{ o.gpus }}
image: {repository: {{ o.image }}}
global: {imageRegistry: "{{ o.registry }}"}
server:
  dtype: {{ plan.dtype }}
  maxSequences: {{ sequences }}
resources:
  requests: {memory: {{ request_gib }}Gi}
  limits: {memory: {{ 2 * request_gib }}Gi}
cache: {size: {{ cache_gib }}Gi}
hub: {kind: {{ o.hub }}, endpoint: "{{ o.mirror }}"}
"""
MOST_SEQUENCES = 256


@dataclass(frozen=True)
class HelmOptions:
    """What runs in the cluster."""

    preset: str = option("production", "Preset that the values begin from.", choices=PRESETS)
    served_model: str = option("tiny", "MODEL of `vl2 serve`: nano, tiny, small, base, or OWNER/NAME.")
    gpu: str = option("H100", "GPU of the pods, as `vl2 plan` knows it.")
    pods: int = option(1, "Pods.", rule=between(0, 1000))
    gpus: int = option(1, "GPUs of each pod; each holds the whole model.", rule=between(1, 64))
    image: str = option("vl2", "Repository of the image, without registry and tag.")
    registry: str = option("", "Registry of all images, as registry.example/mirror.")
    hub: str = option("huggingface", "Where the model is downloaded from.", choices=("huggingface", "modelscope"))
    mirror: str = option("", "Address of the hub's mirror.")


def helm_files(options: HelmOptions) -> Files:
    """Raises: SetupError, also when the model does not fit the GPU."""
    return {f"vl2/{name}": text for name, text in chart_files().items()} | {"values.yaml": _values(options)}


def chart_files() -> Files:
    """The chart, with the alert rules that it takes in."""
    return shipped("chart") | {"rules.yml": monitoring_files()["rules.yml"]}


def _values(options: HelmOptions) -> str:
    config = read_config(options.served_model, HubOptions())
    [*_, device] = find_devices(options.gpu)
    verdict = judge(config, device, Wanted(), EngineConfig())
    if not verdict.fits:
        raise SetupError(f"{options.served_model} does not fit {device.name}: {verdict.advice}; see `vl2 plan`")
    plan = verdict.plan
    return fill(
        VALUES,
        o=options,
        model=options.served_model,
        plan=plan,
        gib=lambda size: f"{size / GIB:.1f} GiB",
        sequences=min(plan.concurrency, MOST_SEQUENCES),
        request_gib=-(-(options.gpus * HOST_MEMORY_BYTES) // GIB),
        cache_gib=_cache_gib(plan),
    )


def _cache_gib(plan: Plan) -> int:
    """Twice the weights, so that the next revision can be downloaded beside this one."""
    return 10 + -(-2 * plan.weights_bytes // GIB)

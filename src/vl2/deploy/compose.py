"""One machine with Docker: nginx, servers, Prometheus and Grafana, by `docker compose up`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vl2.core.config import HubOptions, at_least, between, option
from vl2.deploy.container import UID, container_files
from vl2.deploy.monitoring import monitoring_files
from vl2.deploy.nginx import NginxOptions, nginx_files
from vl2.deploy.render import Files, render
from vl2.tools.plan_devices import GIB
from vl2.tools.plan_models import read_config
from vl2.tools.plan_sizes import count_weights

HOST_MEMORY_BYTES = 6 * GIB
"""Of a server beside weights that lie on the CPU: Python, pictures of queued requests, files in the page cache."""
IMAGES = {"nginx": "nginx:1.28-alpine", "prometheus": "prom/prometheus:v3.5.0", "grafana": "grafana/grafana:12.1.0"}
DOCKER_DNS = "127.0.0.11"
NGINX_STATE = "/var/lib/vl2-nginx"


@dataclass(frozen=True)
class ComposeOptions:
    """What runs on the machine."""

    servers: int = option(1, "Servers behind nginx: one per GPU.", rule=between(1, 64))
    kind: str = option("gpu", "Image to run, by its Dockerfile.", choices=("gpu", "cpu", "jetson"))
    served_model: str = option("nano", "MODEL of `vl2 serve`: nano, tiny, small, base, or OWNER/NAME.")
    image: str | None = option(None, "Image of the servers. Default: built here, as vl2:KIND.")
    registry: str = option("", "Where the other images come from, as registry.example/mirror. Default: Docker Hub.")
    public_port: int = option(8080, "Port of nginx on this machine.", rule=between(1, 65535))
    bind: str = option("127.0.0.1", "Address of that port on this machine; 0.0.0.0 for all.")
    streams: int = option(1000, "Answers streamed at the same time.", rule=at_least(1))
    hub: str = option("huggingface", "Where the model is downloaded from.", choices=("huggingface", "modelscope"))
    drain_timeout_s: int = option(120, "Time that running answers get on a stop, seconds.", rule=between(1, 3600))


def compose_files(options: ComposeOptions) -> Files:
    """Raises: SetupError."""
    names = [f"n{number}" for number in range(1, options.servers + 1)]
    upstream = tuple(f"{name}=vl2-{name}:8000" for name in names)
    nginx = NginxOptions(
        upstream=upstream, listen="8080", streams=options.streams, state_dir=NGINX_STATE, resolver=DOCKER_DNS
    )
    images = {name: f"{options.registry}/{image}".lstrip("/") for name, image in IMAGES.items()}
    values = {"o": options, "names": names, "uid": UID, "images": images, "state": NGINX_STATE}
    files = render("compose", memory_gib=_memory_gib(options), **values)
    files |= {f"nginx/{name}": text for name, text in nginx_files(nginx).items()}
    if options.image is None:
        files |= container_files()
    return files | _monitoring()


def _memory_gib(options: ComposeOptions) -> int:
    """Of one server, on the host."""
    size = HOST_MEMORY_BYTES
    if options.kind == "cpu":
        size += 2 * count_weights(read_config(options.served_model, HubOptions())).num_bytes("float32")
    return math.ceil(size / GIB)


def _monitoring() -> Files:
    files = monitoring_files()
    return {"prometheus/rules.yml": files["rules.yml"], "grafana/dashboards/vl2.json": files["dashboard.json"]}

"""vl2 deploy: files for nginx, containers, compose, Kubernetes and Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vl2.cli.options import options
from vl2.core.config import HubOptions
from vl2.deploy.compose import ComposeOptions, compose_files
from vl2.deploy.container import container_files
from vl2.deploy.helm import HelmOptions, helm_files
from vl2.deploy.monitoring import monitoring_files
from vl2.deploy.nginx import NginxOptions, nginx_files
from vl2.deploy.ray_options import RayOptions, ray_files
from vl2.deploy.render import Files, write


@click.group("deploy")
def command() -> None:
    """Write the files that bring vl2 to where it runs.

    \b
    vl2 deploy compose --out stack --servers 8 --served-model small     # one machine, with nginx and monitoring
    vl2 deploy helm --out k8s --served-model base --gpu H100 --pods 8   # Kubernetes
    """


def out_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Where the files go."""
    out = click.option(
        "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write to."
    )
    overwrite = click.option("--overwrite", is_flag=True, help="Replace files that are there and different.")
    return out(overwrite(function))


@command.command("nginx")
@out_options
@options(nginx=NginxOptions)
def nginx(out: Path, overwrite: bool, nginx: NginxOptions) -> None:
    """nginx.conf for a balancer in front of several servers.

    Streams are not buffered; a request without an answer goes to the next server when one is gone; ids of stored
    objects find the server that keeps them.

    \b
    vl2 deploy nginx --out nginx --upstream n1=10.0.0.1:8000 --upstream n2=10.0.0.2:8000
    nginx -t -c $PWD/nginx/nginx.conf
    """
    _write(out, nginx_files(nginx), overwrite)


@command.command("container")
@out_options
def container(out: Path, overwrite: bool) -> None:
    """Dockerfiles for a GPU server, a CPU and a Jetson.

    Base image and mirrors for apt, pip and torch are build arguments. The images run as a user without rights and need
    to write to /data, /state and /tmp only.

    \b
    vl2 deploy container --out image && pip wheel --no-deps --wheel-dir image .
    docker build -f image/Dockerfile.cpu -t vl2:cpu image
    docker build -f image/Dockerfile.gpu --build-arg APT_MIRROR=https://mirrors.tuna.tsinghua.edu.cn -t vl2:gpu image
    """
    _write(out, container_files(), overwrite)


@command.command("compose")
@out_options
@options(compose=ComposeOptions)
def compose(out: Path, overwrite: bool, compose: ComposeOptions) -> None:
    """One machine: nginx, servers, Prometheus, Grafana.

    \b
    vl2 deploy compose --out stack --servers 8 --served-model small
    pip wheel --no-deps --wheel-dir stack . && cp stack/.env.example stack/.env      # and fill it in
    docker compose --project-directory stack up --build --detach --wait
    """
    _write(out, compose_files(compose), overwrite)


@command.command("helm")
@out_options
@options(helm=HelmOptions)
def helm(out: Path, overwrite: bool, helm: HelmOptions) -> None:
    """Kubernetes: the chart vl2, and values for it from the planner.

    \b
    vl2 deploy helm --out k8s --served-model base --gpu H100 --pods 8
    kubectl create secret generic vl2-keys --from-literal=api-key="$(openssl rand -hex 24)"
    helm upgrade --install vl2 k8s/vl2 -f k8s/vl2/presets/production.yaml -f k8s/values.yaml \\
      --set auth.existingSecret=vl2-keys
    """
    _write(out, helm_files(helm), overwrite)


@command.command("ray")
@out_options
@options(ray=RayOptions, hub=HubOptions)
def ray(out: Path, overwrite: bool, ray: RayOptions, hub: HubOptions) -> None:
    """A Ray cluster: serve.yaml for `vl2.deploy.ray:app`.

    \b
    pip install 'vl2[torch,ray]'
    vl2 deploy ray --out ray --model small --min-replicas 2 --max-replicas 8
    serve deploy ray/serve.yaml
    """
    _write(out, ray_files(ray, hub), overwrite)


@command.command("monitoring")
@out_options
def monitoring(out: Path, overwrite: bool) -> None:
    """Prometheus' configuration, recording rules and alerts; a dashboard for Grafana.

    \b
    vl2 deploy monitoring --out monitoring
    promtool check config monitoring/prometheus.yml       # then name your servers in it
    """
    _write(out, monitoring_files(), overwrite)


def _write(out: Path, files: Files, overwrite: bool) -> None:
    write(out, files, overwrite=overwrite)
    for name in files:
        click.echo(out / name)

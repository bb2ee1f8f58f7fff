"""vl2 deploy: files for nginx, containers, compose, Kubernetes and Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vl2.cli.options import options
from vl2.deploy.nginx import NginxOptions, nginx_files
from vl2.deploy.render import Files, write


@click.group("deploy")
def command() -> None:
    """Write the files that bring vl2 to where it runs.

    \b
    vl2 deploy nginx --out nginx --upstream n1=10.0.0.1:8000 --upstream n2=10.0.0.2:8000
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


def _write(out: Path, files: Files, overwrite: bool) -> None:
    write(out, files, overwrite=overwrite)
    for name in files:
        click.echo(out / name)

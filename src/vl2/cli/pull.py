"""vl2 pull: download a model ahead of time."""

from __future__ import annotations

import click

from vl2.cli.options import options
from vl2.core.config import HubOptions


@click.command("pull")
@click.argument("model")
@options(hub=HubOptions)
def command(model: str, hub: HubOptions) -> None:
    """Download MODEL and print its folder.

    MODEL is tiny, small or base (the official DeepSeek-VL2 models: 6.7, 32 and 55 GB) or OWNER/NAME on the hub. A
    download that was cut off goes on where it stopped. Later commands find the model in the cache.

    \b
    vl2 pull tiny
    vl2 pull tiny --hub modelscope
    vl2 pull small --hub-endpoint https://mirror.example
    vl2 serve "$(vl2 pull tiny --offline)"
    """
    from vl2.checkpoint.source import resolve_model

    click.echo(resolve_model(model, options=hub))

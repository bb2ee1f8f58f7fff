"""vl2 tune: which tiles of the kernels are fast on this GPU?"""

from __future__ import annotations

import click

from vl2.cli.options import model_argument, options
from vl2.core.config import HubOptions
from vl2.core.errors import SetupError


@click.command("tune")
@model_argument
@options(hub=HubOptions)
def command(model: str, hub: HubOptions) -> None:
    """Measure the kernels at MODEL's shapes on this GPU, and keep the fastest tiles for the next start.

    Takes a few minutes, most of which compiles kernels. Nothing else should use the GPU meanwhile. Of MODEL only the
    configuration is read. An H100 needs this only for models of unusual shape: its tiles come with vl2.

    \b
    vl2 tune tiny
    """
    import torch

    from vl2.checkpoint.folder import read_model_config
    from vl2.checkpoint.source import resolve_model

    if not torch.cuda.is_available():
        raise SetupError("there is no GPU to measure: PyTorch sees none; `vl2 doctor` tells why")
    from vl2.ops.tune import model_cases, seconds_on_gpu, tune
    from vl2.ops.tuning import save

    config = read_model_config(resolve_model(model, options=hub))
    gpu, found = torch.cuda.get_device_name(), {}
    with torch.inference_mode():
        for finding in tune(model_cases(config.language, torch.device("cuda")), seconds_on_gpu):
            click.echo(f"{finding.kernel:<18} {finding.speedup:5.2f} × as fast as before: {finding.tile}", err=True)
            found[finding.kernel] = finding.tile
    click.echo(f"kept for the next start on {gpu}: {save(gpu, found)}")

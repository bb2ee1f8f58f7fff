"""vl2 export: a checkpoint as ONNX graphs, for machines without PyTorch."""

from __future__ import annotations

from pathlib import Path

import click

from vl2.cli import model as models
from vl2.cli.options import options
from vl2.core.config import HubOptions


@click.command("export")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--target", type=click.Choice(("onnx",)), default="onnx", show_default=True, help="What to write.")
@click.option(
    "--precision",
    type=click.Choice(("fp32", "fp16", "int8")),
    default="fp32",
    show_default=True,
    help="Of weights and products: fp32 is exact, int8 the fastest on a CPU, fp16 for GPUs.",
)
@options(hub=HubOptions)
def command(model: str, out: Path, target: str, precision: str, hub: HubOptions) -> None:
    """Write MODEL to the folder OUT as ONNX graphs, with tokenizer, configuration and a manifest.

    MODEL is as in `vl2 serve`. The folder runs without PyTorch: with `vl2 run`, `vl2 serve` and `vl2 watch`.

    \b
    vl2 export nano out/nano --precision int8
    vl2 run --model out/nano cat.jpg "What is in the picture?"
    vl2 export tiny out/tiny --precision fp16        # for a GPU; out/tiny/build_tensorrt.sh is for TensorRT
    """
    from vl2.checkpoint.source import resolve_model
    from vl2.edge.export import export

    assert target == "onnx"
    folder = resolve_model(model, options=hub)
    with models.loading_bar("exporting") as on_progress:
        manifest = export(folder, out, precision, source=model, on_progress=on_progress)
    num_bytes = sum(entry.bytes for entry in manifest.files.values())
    click.echo(
        f"{model} is in {out}: {precision}, {num_bytes / 1e6:.1f} MB; licence of the weights: {manifest.licence}"
    )

"""vl2 quantize: a checkpoint in 16 bits → one in 4 or 8."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from vl2.cli.options import options
from vl2.core.config import HubOptions
from vl2.core.errors import SetupError


@click.command("quantize")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--method",
    type=click.Choice(["gptq", "rtn"]),
    default="gptq",
    show_default=True,
    help="gptq: weights make up for each other's errors, on calibration data; rtn: to nearest, without data.",
)
@click.option("--bits", type=click.Choice(["4", "8"]), default="4", show_default=True, help="Of a weight.")
@click.option(
    "--group",
    type=click.Choice(["128", "64", "32", "none"]),
    help="Weights that share a scale; none: all of an output. Default: 128 with 4 bits, none with 8.",
)
@click.option(
    "--head-bits", type=click.Choice(["16", "8"]), default="16", show_default=True, help="Of the vocabulary's matrix."
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Folder of pictures, or JSONL of pictures and turns as `vl2 evaluate` reads it, with pictures beside it.",
)
@click.option(
    "--samples", type=click.IntRange(16), default=256, show_default=True, help="Conversations of it, at most."
)
@click.option(
    "--expert-floor",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="An expert that sees fewer tokens of the calibration is rounded to nearest.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="What the calibration computes in, as in `vl2 serve`.",
)
@options(hub=HubOptions)
def command(
    model: str,
    out: Path,
    method: str,
    bits: str,
    group: str | None,
    head_bits: str,
    calibration: Path | None,
    samples: int,
    expert_floor: int,
    device: str,
    dtype: str,
    hub: HubOptions,
) -> None:
    """Write MODEL with the decoder's weights in few bits to the folder OUT, in compressed-tensors' format.

    Layer by layer; a run that was interrupted goes on where it stopped when the same command is given again.

    \b
    vl2 quantize small small-int4 --calibration my-pictures/
    vl2 serve ./small-int4
    """
    import torch

    from vl2.checkpoint.source import resolve_model
    from vl2.engine.device import choose_device, choose_dtype
    from vl2.engine.threads import choose_num_threads
    from vl2.quant.job import Settings, quantize
    from vl2.quant.output import SETTINGS_FILE

    # As many as the engine takes. Left to itself, torch takes one where two processors share a core, and what another
    # number of threads adds up has other bits: a run that goes on elsewhere in this machine must find the same.
    torch.set_num_threads(choose_num_threads(None, 1))
    usual = "128" if bits == "4" else "none"
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    settings = Settings(
        method=method,
        bits=int(bits),
        group_size=None if (group or usual) == "none" else int(group or usual),
        head_bits=int(head_bits),
        calibration=calibration,
        max_samples=samples,
        expert_floor=expert_floor,
        device=place,
        dtype=kind,
    )
    if (out / "config.json").exists() and not (out / SETTINGS_FILE).exists():
        raise SetupError(f"{out} holds a checkpoint already; remove it, or name another folder")
    source = resolve_model(model, options=hub)
    with _Bar() as bar:
        skipped = quantize(source, model, out, settings, bar)
    for line in skipped:
        click.echo(f"skipped {line}", err=True)
    before, after = _size(source), _size(out)
    click.echo(f"{out}: {after / 1e9:.3f} GB of {before / 1e9:.3f} GB ({after / before - 1:+.0%})")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


class _Bar:
    """Linears on stderr, with the time left; silent where stderr is no terminal."""

    def __enter__(self) -> _Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns: tuple[Any, ...] = (
            TextColumn("linears"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self._task = self._progress.add_task("", total=None)
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, num_linears: int, num_done: int) -> None:
        self._progress.update(self._task, total=num_linears, completed=num_done)

    def advance(self, num_linears: int) -> None:
        self._progress.advance(self._task, num_linears)

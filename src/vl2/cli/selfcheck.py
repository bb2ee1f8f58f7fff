"""vl2 selfcheck: does this checkpoint work here?"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from vl2.cli import model as models
from vl2.cli.options import model_argument, options
from vl2.core.config import EngineConfig, HubOptions, ProcessorConfig

CHECK_FAILED = 1


@click.command("selfcheck")
@model_argument
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the report to this file too.")
@options(engine=EngineConfig, hub=HubOptions)
def command(model: str, output: Path | None, engine: EngineConfig, hub: HubOptions) -> None:
    """Check MODEL on this machine: config, tensors, finite logits, and four pictures.

    It prints a report for an issue, as Markdown. The exit code is 1 when a check failed. Answers to the four drawn
    shapes show whether the model sees; at least three must name colour and shape.

    \b
    vl2 selfcheck
    vl2 selfcheck tiny --output report.md
    """
    from vl2.checkpoint.source import resolve_model
    from vl2.tools.selfcheck import FAILED, check, report

    folder = resolve_model(model, options=hub)
    steps = []
    with models.loading_bar() as on_progress:
        opened = partial(
            models.open_model,
            model,
            engine=engine,
            processor=ProcessorConfig(),
            hub=hub,
            in_process=True,
            on_progress=on_progress,
        )
        for step in check(folder, opened):
            click.echo(f"{step.status:<8} {step.name}: {step.detail}", err=True)
            steps.append(step)
    text = report(Path(model).name, steps)
    click.echo(text)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    if any(step.status == FAILED for step in steps):
        raise click.exceptions.Exit(CHECK_FAILED)

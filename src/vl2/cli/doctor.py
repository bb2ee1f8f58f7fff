"""vl2 doctor: is this machine ready?"""

from __future__ import annotations

import dataclasses
import json

import click

from vl2.cli.options import options
from vl2.core.config import HubOptions

NEEDS_FIXES = 1
COLORS = {"ok": "green", "warning": "yellow", "fix": "red"}


@click.command("doctor")
@click.option("--port", default=8000, show_default=True, metavar="N", help="Port to look at.")
@click.option("--json", "is_json", is_flag=True, help="Print the findings as one JSON object.")
@options(hub=HubOptions)
def command(port: int, is_json: bool, hub: HubOptions) -> None:
    """Look whether this machine can run vl2.

    Driver, PyTorch and whether it sees the GPU, the native library for the CPU, memory, disk, shared memory, port, hub,
    versions. Each line is ok, a warning, or something to fix, with what to do; the exit code is 1 when there is
    something to fix.

    \b
    vl2 doctor
    vl2 doctor --json --offline
    """
    from vl2.tools.doctor import diagnose, has_fixes
    from vl2.tools.doctor_facts import look

    findings = diagnose(look(port, hub))
    if is_json:
        click.echo(json.dumps({"findings": [dataclasses.asdict(f) for f in findings], "ok": not has_fixes(findings)}))
    else:
        for finding in findings:
            status = click.style(f"{finding.status:<8}", fg=COLORS[finding.status])
            click.echo(f"{status} {finding.name:<14} {finding.detail}")
            if finding.advice:
                click.echo(f"{'':<23} → {finding.advice}")
    if has_fixes(findings):
        raise click.exceptions.Exit(NEEDS_FIXES)

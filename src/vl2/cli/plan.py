"""vl2 plan: what a model takes, and which GPUs hold it."""

from __future__ import annotations

import dataclasses
import json

import click

from vl2.cli.options import model_argument, options
from vl2.core.config import EngineConfig, HubOptions, check_options
from vl2.core.errors import SetupError
from vl2.tools.plan import Plan, Verdict, Wanted, judge
from vl2.tools.plan_devices import DEVICES, GIB, Device, find_devices
from vl2.tools.plan_models import read_config

NOTHING_FITS = 1
FIELDS = {field.name: field for field in dataclasses.fields(EngineConfig)}
DTYPES = FIELDS["dtype"].metadata["choices"]
QUANTIZATIONS = FIELDS["quantization"].metadata["choices"]
KV_DTYPES = FIELDS["kv_dtype"].metadata["choices"]


@click.command("plan")
@model_argument
@click.option("--gpu", metavar="NAME", help="Only this GPU, as L4, A100 or H100. Default: all of the list.")
@click.option(
    "--memory", "memory_gib", type=float, metavar="GB", help="A GPU that is not in the list, by its memory, GiB."
)
@click.option(
    "--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="Number format, as in `vl2 serve`."
)
@click.option(
    "--quantization",
    type=click.Choice(QUANTIZATIONS),
    default="auto",
    show_default=True,
    help="Bits of the decoder's weights, as in `vl2 serve`.",
)
@click.option(
    "--kv-dtype",
    type=click.Choice(KV_DTYPES),
    default="auto",
    show_default=True,
    help="Number format of the KV cache, as in `vl2 serve`.",
)
@click.option("--context", type=int, metavar="N", help="Longest prompt + answer, tokens. Default: what the model can.")
@click.option(
    "--concurrency", type=int, default=1, show_default=True, metavar="N", help="Answers of that length at once."
)
@click.option("--json", "is_json", is_flag=True, help="Print everything in bytes as one JSON object.")
@options(hub=HubOptions)
def command(
    model: str,
    gpu: str | None,
    memory_gib: float | None,
    dtype: str,
    quantization: str,
    kv_dtype: str,
    context: int | None,
    concurrency: int,
    is_json: bool,
    hub: HubOptions,
) -> None:
    """Say what MODEL takes of a GPU's memory, and which GPUs hold it.

    Only config.json is read. The exit code is 1 when it fits nowhere. Where nobody has run vl2 on a GPU, its line says
    "computed".

    \b
    vl2 plan small                                       # every GPU of the list
    vl2 plan base --gpu A100 --concurrency 32
    vl2 plan /models/mine --memory 12 --quantization int4 --context 2048
    """
    engine = EngineConfig()
    check_options(dataclasses.replace(engine, max_sequences=concurrency))
    config = read_config(model, hub)
    devices = _devices(gpu, memory_gib)
    wanted = Wanted(dtype, quantization, context, concurrency, kv_dtype)
    verdicts = [judge(config, device, wanted, engine) for device in devices]
    if is_json:
        click.echo(json.dumps({"model": model, "devices": [_as_json(model, verdict) for verdict in verdicts]}))
    else:
        _print(model, verdicts)
    if not any(verdict.fits for verdict in verdicts):
        raise click.exceptions.Exit(NOTHING_FITS)


def _devices(gpu: str | None, memory_gib: float | None) -> list[Device]:
    if gpu is not None and memory_gib is not None:
        raise SetupError("--gpu and --memory exclude each other; give one of them")
    if memory_gib is not None:
        if memory_gib <= 0:
            raise SetupError(f"--memory is {memory_gib:g}, but must be above 0 GiB")
        return [Device(f"{memory_gib:g} GiB", int(memory_gib * GIB))]
    return list(DEVICES) if gpu is None else find_devices(gpu)


def _as_json(model: str, verdict: Verdict) -> dict[str, object]:
    plan = verdict.plan
    sizes = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan) if field.name != "device"}
    derived = {
        name: getattr(plan, name)
        for name in ("num_pages", "kv_tokens", "kv_bytes", "fixed_bytes", "total_bytes", "concurrency")
    }
    is_measured = _is_measured(model, plan)
    device = {"gpu": plan.device.name, "memory_bytes": plan.device.memory_bytes, "is_measured": is_measured}
    return device | {"fits": verdict.fits, "advice": verdict.advice} | sizes | derived


def _is_measured(model: str, plan: Plan) -> bool:
    return model in plan.device.measured_models and plan.dtype == "bfloat16" and not plan.quantization


def _print(model: str, verdicts: list[Verdict]) -> None:
    for dtype in sorted({verdict.plan.dtype for verdict in verdicts}):
        plan = next(verdict.plan for verdict in verdicts if verdict.plan.dtype == dtype)
        form = f"{plan.dtype}, decoder in {plan.quantization}" if plan.quantization else plan.dtype
        click.echo(f"{model} in {form}, {plan.context_tokens:,} tokens of context:")
        click.echo(f"  weights           {_gib(plan.weights_bytes)}")
        click.echo(f"  picture features  {_gib(plan.features_bytes)}")
        click.echo(f"  vision workspace  {_gib(plan.vision_bytes)}")
        click.echo(f"  step workspace    {_gib(plan.step_bytes)}")
        per_sequence = plan.pages_per_sequence * plan.page_size_tokens * plan.kv_bytes_per_token
        click.echo(
            f"  KV cache          {plan.kv_bytes_per_token:,} bytes a token, {_gib(per_sequence).strip()} a sequence"
        )
    click.echo(
        f"\n{'GPU':<11} {'memory':>10}  {'fits':<5} {'pages':>8} {'answers at once':>16}  {'':<9} what to change"
    )
    for verdict in verdicts:
        plan = verdict.plan
        source = "measured" if _is_measured(model, plan) else "computed"
        click.echo(
            f"{plan.device.name:<11} {_gib(plan.device.memory_bytes)}  {'yes' if verdict.fits else 'no':<5} "
            f"{plan.num_pages:>8,} {plan.concurrency:>16,}  {source:<9} "
            f"{verdict.advice or plan.device.note}".rstrip()
        )


def _gib(size: int) -> str:
    return f"{size / GIB:6.2f} GiB"

"""vl2 top: a running server, live in the terminal."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from vl2.cli.options import SECRET
from vl2.core.errors import SetupError
from vl2.core.secret import Secret

if TYPE_CHECKING:
    import httpx
    from rich.console import Group, RenderableType
    from rich.table import Table

    from vl2.cli.readings import Interval, Reading

TIMEOUT_S = 5.0
BAR_CELLS = 12
API = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/predict")
LATENCIES = {
    "first token": "vl2_time_to_first_token_seconds",
    "  intake": "vl2_intake_seconds",
    "  queue": "vl2_queue_seconds",
    "  vision": "vl2_vision_seconds",
    "  prefill": "vl2_prefill_seconds",
    "between tokens": "vl2_inter_token_seconds",
    "decode": "vl2_decode_seconds",
}


@click.command("top")
@click.argument("url", default="http://127.0.0.1:8000")
@click.option(
    "--key", type=SECRET, envvar="VL2_SCRAPE_KEY", metavar="SECRET", help="The server's scrape key, or API key."
)
@click.option(
    "--interval-s", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Between readings."
)
@click.option("--once", is_flag=True, help="Show the numbers since the server's start, once.")
def command(url: str, key: Secret | None, interval_s: float, once: bool) -> None:
    """Watch the server at URL (or at its admin port): requests, tokens, times, replicas, GPUs.

    Numbers are of the last interval; times too, or since the start where nothing ended in it. Ctrl-C ends it.

    \b
    vl2 top
    vl2 top http://10.0.0.5:9090 --interval-s 5
    """
    import httpx
    from rich.console import Console
    from rich.live import Live

    from vl2.cli.readings import Interval

    console = Console()
    headers = {"Authorization": f"Bearer {key.reveal()}"} if key else {}
    with httpx.Client(headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
        reading = _read(client, url)
        first = screen(Interval(None, reading), url)
        if once:
            console.print(first)
            return
        with Live(first, console=console, screen=console.is_terminal) as live:
            for shown in _screens(client, url, reading, interval_s):
                live.update(shown, refresh=True)


def _screens(client: httpx.Client, url: str, reading: Reading, interval_s: float) -> Iterator[RenderableType]:
    from vl2.cli.readings import Interval

    pause = threading.Event()
    while not pause.wait(interval_s):
        now = _tried(client, url)
        if isinstance(now, str):
            yield f"[red]{now}[/red]"
        else:
            yield screen(Interval(reading, now), url)
            reading = now


def _tried(client: httpx.Client, url: str) -> Reading | str:
    """A reading, or why there is none: the server may come back."""
    try:
        return _read(client, url)
    except SetupError as error:
        return error.message


def _read(client: httpx.Client, url: str) -> Reading:
    """Raises: SetupError."""
    import httpx

    from vl2.cli.readings import Reading

    address = url.rstrip("/").removesuffix("/metrics") + "/metrics"
    try:
        response = client.get(address)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SetupError(f"{address} does not answer ({error}); is `vl2 serve` running there?") from None
    if response.status_code in (401, 403):
        raise SetupError(f"{address} wants a key; give --key, or the address of the --admin-port")
    try:
        reading = Reading.parse(response.text)
    except ValueError:
        reading = Reading({})
    if response.status_code != 200 or reading.sum("vl2_ready") is None:
        raise SetupError(f"{address} (status {response.status_code}) does not look like a vl2 server; see --admin-port")
    return reading


def screen(interval: Interval, url: str) -> Group:
    from rich.columns import Columns
    from rich.console import Group

    parts: list[RenderableType] = [_headline(interval, url), Columns([_requests(interval), _latencies(interval)])]
    return Group(*parts, _replicas(interval))


def _headline(interval: Interval, url: str) -> str:
    now = interval.now
    labels = next((own for own, _ in now.matching("vl2_build_info", {})), {})
    state = "[green]ready[/green]" if now.sum("vl2_ready") else "[red]not ready[/red]"
    what = " ".join(labels.get(name, "") for name in ("model", "dtype", "device"))
    return f"[bold]vl2 {labels.get('version', '')}[/bold] {what} · {state} · {url}"


def _requests(interval: Interval) -> Table:
    table = _table("requests", "now", "total")
    now = interval.now
    in_flight = max(0.0, (now.sum("vl2_requests_in_flight") or 0) - 1)  # without this reading itself
    table.add_row("under way", _number(in_flight), "")
    totals: dict[str, list[float]] = {}
    for route in API:
        for outcome, count in now.by("outcome", "vl2_requests_total", route=route).items():
            rate = interval.rate("vl2_requests_total", route=route, outcome=outcome) or 0.0
            sums = totals.setdefault(outcome, [0.0, 0.0])
            totals[outcome] = [sums[0] + rate, sums[1] + count]
    for outcome, (rate, count) in totals.items():
        if count or outcome == "ok":
            table.add_row(f"{outcome}/s", _number(rate, 1), _number(count))
    for label, name in {"tokens/s": "vl2_generated_tokens_total", "prompt tokens/s": "vl2_prompt_tokens_total"}.items():
        table.add_row(label, _number(interval.rate(name), 1), _number(now.sum(name)))
    return table


def _latencies(interval: Interval) -> Table:
    from vl2.cli.readings import Interval

    table = _table("time", "P50", "P95", "P99")
    for label, name in LATENCIES.items():
        recent = interval if interval.rise(f"{name}_count") else Interval(None, interval.now)
        table.add_row(label, *(_seconds(recent.quantile(q, name)) for q in (0.5, 0.95, 0.99)))
    return table


def _replicas(interval: Interval) -> Table:
    now = interval.now
    has_gpu = now.sum("vl2_gpu_memory_reserved_bytes") is not None
    gpu = ["GPU", "memory", "power", "temp."] if has_gpu else []
    table = _table("replica", "state", "streams", "waiting", "KV pages", "tokens/s", "step", "image cache", "RSS", *gpu)
    for replica, is_ready in now.by("replica", "vl2_engine_ready").items():
        own = {"replica": replica}
        step = interval if interval.rise("vl2_engine_step_seconds_count", **own) else None
        cells = [
            replica,
            "[green]ready[/green]" if is_ready else "[red]down[/red]",
            _number(now.sum("vl2_engine_running_sequences", **own)),
            _number(now.sum("vl2_engine_waiting_sequences", **own)),
            _bar(now.sum("vl2_engine_kv_pages_used", **own), now.sum("vl2_engine_kv_pages", **own)),
            _number(interval.rate("vl2_engine_generated_tokens_total", **own), 1),
            _seconds(step.quantile(0.5, "vl2_engine_step_seconds", **own) if step else None),
            _bytes(now.sum("vl2_engine_image_cache_used_bytes", **own)),
            _bytes(now.sum("vl2_engine_resident_memory_bytes", **own)),
        ]
        table.add_row(*cells, *(_gpu_cells(now, own) if has_gpu else ()))
    return table


def _gpu_cells(now: Reading, own: dict[str, str]) -> list[str]:
    used, total = (now.sum(f"vl2_gpu_memory_{name}_bytes", **own) for name in ("used", "total"))
    utilization = now.sum("vl2_gpu_utilization_ratio", **own)
    reasons = [reason for reason, is_so in now.by("reason", "vl2_gpu_throttled", **own).items() if is_so]
    slow = f" [red]{','.join(reasons)}[/red]" if reasons else ""
    return [
        "–" if utilization is None else f"{utilization:.0%}{slow}",
        f"{_bytes(used)} / {_bytes(total)}",
        _number(now.sum("vl2_gpu_power_watts", **own)) + " W",
        _number(now.sum("vl2_gpu_temperature_celsius", **own)) + " °C",
    ]


def _table(first: str, *others: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def _bytes(value: float | None) -> str:
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def _bar(used: float | None, total: float | None) -> str:
    if used is None or not total:
        return "–"
    share = used / total
    filled = round(share * BAR_CELLS)
    colour = "green" if share < 0.7 else "yellow" if share < 0.95 else "red"
    return f"[{colour}]{'█' * filled}[/{colour}]{'░' * (BAR_CELLS - filled)} {share:4.0%}"

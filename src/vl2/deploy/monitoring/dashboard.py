"""The Grafana dashboard as code. `make docs` writes dashboard.json anew.

Needs grafana-foundation-sdk (extra: dev); whoever uses the dashboard needs dashboard.json only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders.common import ReduceDataOptions, StackingConfig
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.timeseries import Panel as Graph
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import StackingMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    VariableRefresh,
)

FILE = Path(__file__).with_name("dashboard.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24
HEIGHT = 8

OF_SERVER = 'model=~"$model", instance=~"$instance"'
OF_ENGINE = OF_SERVER + ', replica=~"$replica"'
API = 'route=~"/v1/.*|/predict"'
WHERE = "{{instance}} {{replica}}"


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str = ""


def reading(metric: str, legend: str = "") -> Query:
    """Of each engine."""
    return Query(f"{metric}{{{OF_ENGINE}}}", f"{legend} {WHERE}".strip())


def rate(metric: str, selector: str = OF_SERVER) -> str:
    return f"rate({metric}{{{selector}}}[$__rate_interval])"


def quantile(q: float, metric: str, selector: str = OF_SERVER, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) ({rate(metric + '_bucket', selector)}))"


def quantiles(metric: str, selector: str = OF_SERVER) -> list[Query]:
    return [Query(quantile(q / 100, metric, selector), f"P{q}") for q in (50, 95, 99)]


def mean(metric: str) -> str:
    return f"sum({rate(metric + '_sum')}) / sum({rate(metric + '_count')})"


def ratio(part: str, whole: str, selector: str = OF_ENGINE) -> str:
    return f"sum({rate(part, selector)}) / (sum({rate(part, selector)}) + sum({rate(whole, selector)}))"


def errors(window: str) -> str:
    bad, all_ = (
        f'sum(rate(vl2_requests_total{{{OF_SERVER}, {API}, outcome=~"{outcomes}"}}[{window}]))'
        for outcomes in ("failed|refused|expired", "ok|failed|refused|expired")
    )
    return f"{bad} / {all_}"


def targets(queries: list[Query]) -> list[Dataquery]:
    return [
        Dataquery().expr(query.expr).legend_format(query.legend or "__auto").ref_id(chr(65 + idx))
        for idx, query in enumerate(queries)
    ]


def graph(title: str, unit: str, queries: list[Query], about: str, *, span: int = 8, is_stacked: bool = False) -> Graph:
    panel = (
        Graph()
        .title(title)
        .description(about)
        .unit(unit)
        .min(0)
        .span(span)
        .height(HEIGHT)
        .datasource(SOURCE)
        .line_width(1)
        .fill_opacity(40 if is_stacked else 8)
    )
    if is_stacked:
        normal: Any = StackingMode.NORMAL  # an enum of strings from Python 3.11 on
        panel = panel.stacking(StackingConfig().mode(normal).group("A"))
    for target in targets(queries):
        panel = panel.with_target(target)
    return panel


def number(title: str, unit: str, expr: str, about: str, *steps: tuple[float | None, str]) -> Stat:
    """`steps`: from which value on it has which colour."""
    levels = [Threshold(value=value, color=color) for value, color in steps or ((None, "blue"),)]
    return (
        Stat()
        .title(title)
        .description(about)
        .unit(unit)
        .span(4)
        .height(4)
        .datasource(SOURCE)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(build.ThresholdsConfig().steps(levels))
        .with_target(targets([Query(expr)])[0])
    )


Panels = list["Graph | Stat"]


def overview() -> Panels:
    first = "vl2_time_to_first_token_seconds"
    stages = [Query(mean(f"vl2_{stage}_seconds"), stage) for stage in ("intake", "queue", "prefill")]
    vision = f"sum({rate('vl2_vision_seconds_sum')}) / sum({rate('vl2_prefill_seconds_count')})"
    by_outcome = f"sum by (outcome) ({rate('vl2_requests_total', f'{OF_SERVER}, {API}')})"
    return [
        number(
            "Ready", "percentunit", f"sum(vl2_engine_ready{{{OF_ENGINE}}}) / count(vl2_engine_ready{{{OF_ENGINE}}})",
            "Replicas that take requests.", (None, "red"), (0.01, "orange"), (1, "green"),
        ),
        number(
            "Alerts", "short", 'count(ALERTS{alertname=~"VL2.*", alertstate="firing"}) or vector(0)',
            "That fire now.", (None, "green"), (1, "red"),
        ),
        number(
            "Errors", "percentunit", errors("$__rate_interval"),
            "Of the requests that are not the client's fault: failed, refused, or late.",
            (None, "green"), (0.001, "orange"), (0.01, "red"),
        ),
        number(
            "First token, P99", "s", quantile(0.99, first), "From the request's arrival.",
            (None, "green"), (0.5, "orange"), (1, "red"),
        ),
        number("Tokens", "short", f"sum({rate('vl2_generated_tokens_total')})", "Given to clients, a second."),
        number(
            "Waiting", "short", f"sum(vl2_engine_waiting_sequences{{{OF_ENGINE}}})", "Answers in the queues.",
            (None, "green"), (1, "orange"), (64, "red"),
        ),
        graph("Requests", "reqps", [Query(by_outcome, "{{outcome}}")], "By what became of them.", is_stacked=True),
        graph(
            "Time to first token", "s", [*quantiles(first), Query("vl2:target_first_token_seconds", "target")],
            "From arrival; the target is a recording rule.",
        ),
        graph(
            "Where the first token's time goes", "s", [*stages, Query(vision, "vision")],
            "Means, one on the other: outside the engine, in its queue, vision tower, rest of the prompt.",
            is_stacked=True,
        ),
        graph("Between tokens", "s", quantiles("vl2_inter_token_seconds"), "Of one answer.", span=12),
        graph("Whole request", "s", quantiles("vl2_request_seconds", f"{OF_SERVER}, {API}"), "To its end.", span=12),
    ]  # fmt: skip


def capacity() -> Panels:
    pages = f"vl2_engine_kv_pages{{{OF_ENGINE}}}"
    return [
        graph(
            "Answers", "short",
            [
                reading("vl2_engine_running_sequences", "running"),
                reading("vl2_engine_waiting_sequences", "waiting"),
            ],
            "Being generated, and in the queue.",
        ),
        graph(
            "KV pages", "percentunit",
            [
                Query(f"vl2_engine_kv_pages_used{{{OF_ENGINE}}} / {pages}", f"held {WHERE}"),
                Query(f"vl2_engine_kv_pages_cached{{{OF_ENGINE}}} / {pages}", f"cached {WHERE}"),
            ],
            "Cached ones are free when they are needed.",
        ),
        graph(
            "Put back for want of pages", "ops",
            [Query(f"sum by (instance, replica) ({rate('vl2_engine_preemptions_total', OF_ENGINE)})", WHERE)],
            "Each is computed again later: too many answers at a time for the cache.",
        ),
        graph(
            "Answers in a step", "short",
            [
                Query(quantile(q, "vl2_engine_step_sequences", OF_ENGINE), f"P{100 * q:.0f}") for q in (0.5, 0.95)
            ],
            "How full the batches are.",
        ),
        graph(
            "Step, P95", "s",
            [Query(quantile(0.95, "vl2_engine_step_seconds", OF_ENGINE, by="kind"), "{{kind}}")],
            "By kind. A decoding step is the time between two tokens.",
        ),
        graph(
            "Engine's tokens", "short",
            [
                Query(f"sum({rate('vl2_engine_generated_tokens_total', OF_ENGINE)})", "generated"),
                Query(f"sum({rate('vl2_engine_prompt_tokens_total', OF_ENGINE)})", "prompt"),
                Query(f"sum({rate('vl2_engine_cached_tokens_total', OF_ENGINE)})", "prompt, cached"),
            ],
            "A second.",
        ),
        graph(
            "Memory", "bytes",
            [
                Query(f"vl2_server_resident_memory_bytes{{{OF_SERVER}}}", "{{instance}} {{process}}"),
                reading("vl2_engine_resident_memory_bytes", "engine"),
            ],
            "Of the processes, on the host.", span=12,
        ),
        graph(
            "Requests under way", "short", [Query(f"vl2_requests_in_flight{{{OF_SERVER}}}", "{{instance}}")],
            "In the HTTP servers, waiting ones too.", span=12,
        ),
    ]  # fmt: skip


def vision() -> Panels:
    return [
        graph("Vision of an answer", "s", quantiles("vl2_vision_seconds"), "Answers with pictures; 0 when all cached."),
        graph(
            "Tiles", "short",
            [
                Query(f"sum({rate('vl2_engine_tiles_encoded_total', OF_ENGINE)})", "encoded"),
                Query(f"sum({rate('vl2_engine_tile_hits_total', OF_ENGINE)})", "found in the cache"),
            ],
            "A second.",
        ),
        graph(
            "Tiles found in the cache", "percentunit",
            [Query(ratio("vl2_engine_tile_hits_total", "vl2_engine_tiles_encoded_total"), "share")],
            "Of all that were asked for.",
        ),
        graph(
            "Image cache", "bytes",
            [
                reading("vl2_engine_image_cache_used_bytes", "used"),
                reading("vl2_engine_image_cache_bytes", "room"),
            ],
            "Encoded tiles that are kept (--image-cache-tiles).",
        ),
        graph(
            "Vision tower at work", "percentunit",
            [Query(rate("vl2_engine_vision_seconds_total", OF_ENGINE), WHERE)],
            "Share of the time.",
        ),
        graph(
            "Prompt tokens", "short",
            [Query(f"sum by (kind) ({rate('vl2_prompt_tokens_total')})", "{{kind}}")],
            "Of complete answers, a second.", is_stacked=True,
        ),
    ]  # fmt: skip


def gpu() -> Panels:
    memory = [reading(f"vl2_gpu_memory_{name}_bytes", name) for name in ("used", "reserved", "allocated", "total")]
    return [
        graph(
            "Utilization", "percentunit", [reading("vl2_gpu_utilization_ratio")],
            "Share of the time in which a kernel ran.",
        ),
        graph("Memory", "bytes", memory, "Of the card; reserved and allocated by the engine."),
        graph(
            "Fragmentation", "percentunit", [reading("vl2_gpu_memory_fragmentation_ratio")],
            "Of the reserved memory.",
        ),
        graph("Power", "watt", [reading("vl2_gpu_power_watts")], "Drawn."),
        graph("Temperature", "celsius", [reading("vl2_gpu_temperature_celsius")], "Of the chip."),
        graph(
            "Throttled", "short", [reading("vl2_gpu_throttled", "{{reason}}")],
            "1: clocks are lowered. power_cap is usual under full load; thermal and hardware are not.",
        ),
    ]  # fmt: skip


def faults() -> Panels:
    not_ok = f'{OF_SERVER}, {API}, outcome!="ok"'
    return [
        graph(
            "Error ratio", "percentunit", [Query(errors(window), window) for window in ("5m", "1h")],
            "As the alerts see it: failed, refused, late.",
        ),
        graph(
            "Not answered", "reqps",
            [Query(f"sum by (outcome, status, route) ({rate('vl2_requests_total', not_ok)}) > 0",
                   "{{outcome}} {{status}} {{route}}")],
            "By outcome, status and route; invalid ones are the client's.",
        ),
        graph(
            "Engine restarts", "short",
            [Query(f"sum by (instance, replica) (increase(vl2_engine_restarts_total{{{OF_ENGINE}}}[15m]))", WHERE)],
            "In 15 minutes; each ended the answers under way.",
        ),
        graph(
            "Ready", "short",
            [
                reading("vl2_engine_ready", "engine"),
                Query(f"vl2_ready{{{OF_SERVER}}}", "server {{instance}}"),
            ],
            "1: takes requests. A server that stops is not ready while its engines still are.", span=12,
        ),
        graph(
            "What runs", "short",
            [Query(f"count by (version, device, dtype) (vl2_build_info{{{OF_SERVER}}})",
                   "{{version}} {{device}} {{dtype}}")],
            "Servers by version: during an update there are two.", span=12,
        ),
    ]  # fmt: skip


ROWS = {"Overview": overview, "Capacity": capacity, "Vision": vision, "GPU": gpu, "Errors": faults}


def variable(name: str, query: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .query(query)
        .datasource(SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def dashboard() -> build.Dashboard:
    made = (
        build.Dashboard("vl2")
        .uid("vl2")
        .tags(["vl2"])
        .refresh("10s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(build.DatasourceVariable("datasource").type("prometheus"))
        .with_variable(variable("model", "label_values(vl2_build_info, model)"))
        .with_variable(variable("instance", 'label_values(vl2_build_info{model=~"$model"}, instance)'))
        .with_variable(
            variable("replica", 'label_values(vl2_engine_ready{model=~"$model", instance=~"$instance"}, replica)')
        )
    )
    for title, panels in ROWS.items():
        made = made.with_row(build.Row(title))
        for panel in panels():
            made = made.with_panel(panel)
    return made


def render() -> str:
    return JSONEncoder(sort_keys=True, indent=1).encode(dashboard().build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")

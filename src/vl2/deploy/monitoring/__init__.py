"""Prometheus' configuration, rules and alerts, and the Grafana dashboard: files as they are used."""

from __future__ import annotations

from importlib import resources

from vl2.deploy.render import Files

NAMES = ("prometheus.yml", "rules.yml", "dashboard.json")


def monitoring_files() -> Files:
    folder = resources.files("vl2.deploy") / "monitoring"
    return {name: (folder / name).read_text(encoding="utf-8") for name in NAMES}

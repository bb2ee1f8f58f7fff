"""The files that we ship, by Prometheus' own checker and against what they are made from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.cluster import need
from tests.deploy.monitoring.prometheus import HOW, MONITORING
from vl2.cli import execute

HERE = Path(__file__).parent
DOCS = Path(__file__).parents[3] / "docs"
RULES = yaml.safe_load((MONITORING / "rules.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]


def promtool(*arguments: str) -> None:
    ran = subprocess.run([need("promtool", HOW), *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_promtool_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", str(MONITORING / "prometheus.yml"))
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(MONITORING / "rules.yml"))


def test_each_alert_fires_on_its_fault_and_only_then() -> None:
    promtool("test", "rules", str(HERE / "rules_test.yml"))


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases = [
        case
        for test in yaml.safe_load((HERE / "rules_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    for alert in ALERTS:
        own = [case for case in cases if case["alertname"] == alert["alert"]]
        assert any(case.get("exp_alerts") for case in own), f"{alert['alert']} never fires"
        assert any(not case.get("exp_alerts") for case in own), f"{alert['alert']} is never silent"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_what_it_is_and_has_a_runbook(alert: dict) -> None:
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"]["summary"] and alert["annotations"]["description"]
    page = DOCS.parent / alert["annotations"]["runbook"]
    text = page.read_text(encoding="utf-8")
    assert alert["alert"] in text, f"{page} does not name the alert that leads to it"
    for heading in ("## What it means", "## Look", "## Do"):
        assert heading in text


@pytest.mark.skipif(sys.version_info < (3, 11), reason="grafana-foundation-sdk needs Python 3.11")
def test_the_dashboard_is_what_its_code_says() -> None:
    from vl2.deploy.monitoring import dashboard

    assert dashboard.FILE.read_text(encoding="utf-8") == dashboard.render(), "run `make docs`"


def test_the_dashboard_and_the_rules_use_only_metrics_that_exist() -> None:
    known = set(re.findall(r"^\| `(vl2_\w+)`", (DOCS / "reference/metrics.md").read_text(), re.MULTILINE))
    suffixed = known | {name + suffix for name in known for suffix in ("_bucket", "_sum", "_count")}
    texts = [(MONITORING / "dashboard.json").read_text(), (MONITORING / "rules.yml").read_text()]
    used = set(re.findall(r"(?<![\w:])vl2_\w+(?![\w:])", " ".join(texts)))
    assert used and used <= suffixed, used - suffixed


def test_the_dashboard_has_rows_for_each_question_and_variables_for_model_and_replica() -> None:
    board = json.loads((MONITORING / "dashboard.json").read_text())
    assert [panel["title"] for panel in board["panels"] if panel["type"] == "row"] == [
        "Overview", "Capacity", "Vision", "GPU", "Errors",
    ]  # fmt: skip
    assert {"model", "instance", "replica"} <= {variable["name"] for variable in board["templating"]["list"]}
    assert all(panel["description"] for panel in board["panels"] if panel["type"] != "row")


def test_vl2_deploy_monitoring_writes_files_that_work_together(tmp_path: Path) -> None:
    assert execute(["deploy", "monitoring", "--out", str(tmp_path)]) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"prometheus.yml", "rules.yml", "dashboard.json"}
    promtool("check", "config", str(tmp_path / "prometheus.yml"))

"""Every flag, variable, metric and path that a template or a guide names is there in the code."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import click
import pytest

from tests.fakes import FakeModel
from vl2.cli import COMMANDS, cli
from vl2.core.config import EngineConfig, HubOptions, ProcessorConfig, ServerConfig
from vl2.server.app import create_app
from vl2.server.auth import OPERATOR_PATHS, PUBLIC_PATHS, PUBLIC_PREFIX

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "src/vl2/deploy"
TEMPLATES = [
    path
    for folder in ("templates", "chart", "monitoring")
    for path in sorted((DEPLOY / folder).rglob("*"))
    if path.is_file() and path.suffix not in (".py", ".pyc")
] + [*sorted((ROOT / ".ci").iterdir()), ROOT / ".gitlab-ci.yml"]
TEXTS = [*TEMPLATES, *sorted(ROOT.glob("docs/guides/*.md")), *ROOT.glob("README*.md"), ROOT / "SECURITY.md"]
OUTSIDE = {"VL2_MODEL", "VL2_WITHOUT_NATIVE", "VL2_TEST_DEPLOY", "VL2_SCREENSHOTS"}
"""An argument's variable, the build's, and two of the tests."""
PATH = r"(?<![\w./}-])/(?:v1|health|metrics|status|predict|web)(?:/[a-z_]+)*"
SUFFIXES = ("_total", "_bucket", "_count", "_sum")


def ids(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def flags_of(words: list[str]) -> set[str]:
    """Of the command that `words` begin with, as deploy nginx."""
    command: click.Command = cli
    for word in words:
        if isinstance(command, click.Group):
            found = command.get_command(click.Context(command), word)
            if found is None:
                break
            command = found
    return {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)} | {"--help", "--version"}


@pytest.mark.parametrize("path", TEXTS, ids=ids(TEXTS))
def test_flags_of_commands_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = "|".join(COMMANDS)
    for match in re.finditer(rf"vl2 ((?:{commands})\b[^\n`|&;)]*)", text):
        words = match[1].split()
        used = {word.split("=")[0] for word in words if re.fullmatch(r"--[a-z][a-z-]+(=.*)?", word)}
        assert used <= flags_of(words), f"{match[0]}: {used - flags_of(words)}"


@pytest.mark.parametrize("path", TEXTS, ids=ids(TEXTS))
def test_variables_are_options(path: Path) -> None:
    configs = (ServerConfig, EngineConfig, ProcessorConfig, HubOptions)
    known = {f"VL2_{field.name.upper()}" for config in configs for field in dataclasses.fields(config)} | OUTSIDE
    used = set(re.findall(r"\bVL2_[A-Z][A-Z_]+[A-Z]\b", path.read_text(encoding="utf-8")))
    assert used <= known, used - known


@pytest.mark.parametrize("path", TEMPLATES, ids=ids(TEMPLATES))
def test_metrics_are_in_the_catalogue(path: Path) -> None:
    table = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^\| `(vl2_\w+)`", table, re.MULTILINE))
    known |= {name + suffix for name in known for suffix in SUFFIXES}
    used = set(re.findall(r"(?<![\w:$])vl2_[a-z_]+(?=[\[{ )])", _queries(path)))
    assert used <= known, used - known


def _queries(path: Path) -> str:
    """The text in which `vl2_…` is a metric: nginx has variables and upstreams of such names."""
    return "" if "nginx" in path.parts else path.read_text(encoding="utf-8")


def test_paths_that_proxies_and_probes_name_are_routes() -> None:
    described = create_app(FakeModel(), ServerConfig()).openapi()["paths"]
    routes = [*described, *PUBLIC_PATHS, PUBLIC_PREFIX, *OPERATOR_PATHS]
    known = {"/" + "/".join(route.split("/")[1:end]) for route in routes for end in range(2, 6)}
    own = {"/health/proxy"}  # nginx answers it itself
    for path in TEMPLATES:
        text = re.sub(r"https?://", "", path.read_text(encoding="utf-8"))
        for found in set(re.findall(PATH, text)) - own:
            assert found in known, f"{path.name}: {found}"


def test_the_drift_tests_would_notice() -> None:
    assert "--max-sequences" in flags_of(["serve"]) and "--max-sequence" not in flags_of(["serve"])
    assert "--upstream" in flags_of(["deploy", "nginx"])

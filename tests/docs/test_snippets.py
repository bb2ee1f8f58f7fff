"""Every command and every program in README, guides and concepts is run, or, where it needs a GPU, a cluster or a
download, read by what would run it: the shell, make, and vl2's own command line.

Chinese pages have the same blocks (`test_translations.py`), so the English ones stand for both. `docker`, `helm`,
`kubectl`, `nginx`, `prometheus` and `ray` run what `vl2 deploy` wrote in `tests/deploy`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from docs.snippets import ROOT, Block, blocks, make_targets, vl2_commands
from tests.e2e.server_process import LIMIT_S, serving
from vl2.cli import cli

HERE = "http://127.0.0.1:8000"  # where the documentation's server is
RUN = ("plan", "key", "deploy")  # need nothing but themselves
PRELUDE = """\
import base64
from openai import OpenAI
client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
data = base64.b64encode(open("docs/images/scene.png", "rb").read()).decode()
picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + data}}
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    state = str(tmp_path_factory.mktemp("state"))
    with serving("nano", "--device", "cpu", "--state-dir", state) as server:
        yield server.url


def run(command: list[str], timeout: float = LIMIT_S) -> str:
    """What it printed."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ids(block: Block) -> str:
    return str(block)


@pytest.mark.parametrize("block", blocks("bash"), ids=ids)
def test_the_shell_can_read_it(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.code, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [b for b in blocks("bash") if list(vl2_commands(b.code))], ids=ids)
def test_vl2_takes_its_options(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs what can be run anywhere; of the rest each option must be known and have a value that it takes."""
    pictures = tmp_path / "docs/images"
    pictures.mkdir(parents=True)
    (pictures / "scene.png").write_bytes((ROOT / "docs/images/scene.png").read_bytes())
    for name in ("cert.pem", "key.pem", "keys.jsonl"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "camera").mkdir()
    for name, *given in vl2_commands(block.code):
        arguments = [argument.replace("/run/camera", "camera") for argument in given]
        command = cli.get_command(cli.make_context("vl2", ["--help"], resilient_parsing=True), name)
        assert command is not None, f"there is no vl2 {name}"
        if name in RUN and not any(argument.startswith("/") for argument in arguments):
            result = CliRunner().invoke(cli, [name, *arguments])
            fits = (0, 1) if name == "plan" else (0,)  # 1: it does not fit, as some pages show
            assert result.exit_code in fits, result.output
        elif not getattr(command, "commands", None):
            command.make_context(name, arguments)


@pytest.mark.parametrize("block", [b for b in blocks("bash") if list(make_targets(b.code))], ids=ids)
def test_make_knows_its_targets(block: Block) -> None:
    for arguments in make_targets(block.code):
        run(["make", "-n", *arguments])


@pytest.mark.parametrize("block", [b for b in blocks("bash") if f"curl -s {HERE}" in b.code], ids=ids)
def test_curl_is_answered(block: Block, url: str) -> None:
    (command,) = re.findall(r"^curl .*?(?:^EOF$|\Z)", block.code.split("|")[0], re.M | re.S)
    told = run(["bash", "-c", command.replace(HERE, url)])
    assert told and '"error"' not in told


@pytest.mark.parametrize("block", blocks("python"), ids=ids)
def test_python_runs_and_prints_what_is_said_behind_it(block: Block, url: str) -> None:
    """`print(x)  # (3, 2): three tiles …` must print what its comment begins with. Models are all nano here."""
    code = PRELUDE + block.code.replace('LLM("tiny"', 'LLM("nano"')
    told = run([sys.executable, "-c", code.replace(HERE, url)])
    expected = re.findall(r"^print\(.*\) +# (.*)", block.code, re.M)
    for line, comment in zip(told.splitlines(), expected, strict=False):
        assert comment.startswith(line)


@pytest.mark.parametrize("block", [b for b in blocks("bash") if "examples/" in b.code], ids=ids)
def test_examples_that_are_named_are_there(block: Block) -> None:
    for name in re.findall(r"examples/[\w/.]+", block.code):
        assert (ROOT / name).exists()


@pytest.mark.parametrize("block", [b for b in blocks("bash") if re.search(r"vl2 run docs/", b.code)], ids=ids)
def test_one_answer_on_the_command_line(block: Block) -> None:
    (command,) = re.findall(r"vl2 (run docs/.*)", block.code)
    told = run(["bash", "-c", f"{sys.executable} -m vl2 {command}"])
    assert "airplane" in told or "飞机" in told

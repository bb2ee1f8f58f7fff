"""Help, errors and exit codes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Result, SyncFakeModel
from vl2.cli import COMMANDS
from vl2.core.errors import EngineError, InvalidImage, SetupError

Run = Callable[..., Result]


def test_help_is_fast_because_it_loads_nothing_that_is_slow() -> None:
    code = "import sys, vl2.cli; code = vl2.cli.execute(['--help']); print(*sys.modules); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)
    assert not {"torch", "PIL", "tokenizers", "fastapi", "pydantic", "uvicorn", "httpx", "zmq", "rich"} & set(
        done.stdout.splitlines()[-1].split()
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_by_example(vl2: Run, command: str) -> None:
    result = vl2(command, "--help")
    assert result.code == 0
    assert f"\n  vl2 {command} " in result.stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [(SetupError("no\nsuch thing"), 2), (InvalidImage("no such thing"), 1), (EngineError("no such thing"), 1)],
)
def test_an_error_is_one_line_and_an_exit_code(vl2: Run, fake: SyncFakeModel, error: Exception, code: int) -> None:
    fake._script = [error]
    result = vl2("run", "Hello?")
    assert (result.code, result.stderr) == (code, "error: no such thing\n")


def test_ctrl_c_is_quiet(vl2: Run, fake: SyncFakeModel) -> None:
    fake._script = [KeyboardInterrupt()]
    result = vl2("run", "Hello?")
    assert (result.code, result.stderr.strip()) == (130, "")


def test_wrong_usage_is_code_2(vl2: Run) -> None:
    result = vl2("serve", "--dtype", "int3")
    assert result.code == 2
    assert "'int3' is not one of 'auto', 'float32', 'bfloat16', 'float16'" in result.stderr
    assert vl2("sevre").code == 2


def test_pull_prints_the_folder(vl2: Run, tmp_path: Path) -> None:
    assert vl2("pull", str(tmp_path)) == Result(0, f"{tmp_path}\n", "")


def test_pull_of_a_wrong_name_gives_advice(vl2: Run) -> None:
    result = vl2("pull", "tinny")
    assert result.code == 2
    assert result.stderr.startswith("error: there is no model 'tinny': did you mean tiny?")


def test_a_reader_that_stops_early_is_no_traceback() -> None:
    code = "import vl2.cli; vl2.cli.main(['serve', '--help'])"
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | head -c 1', sys.executable, code], capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr

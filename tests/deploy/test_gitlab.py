"""GitLab's pipeline: valid, runnable by hand, its test job really run, and a failed deployment taken back."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.cluster import need

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / ".gitlab-ci.yml"
RUNNER = ROOT / "tests/deploy/npm/node_modules/.bin/gitlab-ci-local"
NOT_JOBS = {"stages", "default", "variables", "workflow"}


def jobs() -> dict[str, dict[str, Any]]:
    return {name: job for name, job in yaml.safe_load(PIPELINE.read_text()).items() if name not in NOT_JOBS}


def test_the_pipeline_follows_gitlabs_schema(tmp_path: Path) -> None:
    tool = need("check-jsonschema", "pip install check-jsonschema")
    command = [tool, "--builtin-schema", "vendor.gitlab-ci"]
    done = subprocess.run([*command, str(PIPELINE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / ".gitlab-ci.yml"
    broken.write_text(PIPELINE.read_text().replace("  script: .ci/test", "  skript: .ci/test"))
    assert subprocess.run([*command, str(broken)], capture_output=True, check=False).returncode == 1


def test_every_stage_has_a_job_and_every_job_is_a_script_that_can_be_run_by_hand() -> None:
    stages = yaml.safe_load(PIPELINE.read_text())["stages"]
    assert {job["stage"] for job in jobs().values()} == set(stages) == {"test", "bench", "build", "deploy"}
    for job in jobs().values():
        script = ROOT / job["script"]
        assert os.access(script, os.X_OK)
        assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


class Machine:
    """Stands in for helm and kubectl: logs each call, and fails where it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls_file = folder / "calls"

    def deploy(self, *, fails_at: str = "", revisions: tuple[tuple[int, str], ...] = ()) -> tuple[int, list[str]]:
        """The exit code of .ci/deploy, and the calls that it made."""
        history = json.dumps([{"revision": number, "status": status} for number, status in revisions])
        for program in ("helm", "kubectl"):
            script = f"""#!/bin/sh
echo "{program} $*" >>"{self.calls_file}"
case "{program} $*" in
  *history*) [ '{history}' != '[]' ] || exit 1; echo '{history}' ;;
  *"get deployment"*) echo deployment.apps/vl2 ;;
esac
[ -z "{fails_at}" ] || case "{program} $*" in *"{fails_at}"*) exit 1 ;; esac
"""
            path = self.folder / program
            path.write_text(script)
            path.chmod(0o755)
        environment = os.environ | {"PATH": f"{self.folder}:{os.environ['PATH']}", "CI_COMMIT_SHA": "abc"}
        done = subprocess.run([str(ROOT / ".ci/deploy")], env=environment, capture_output=True, text=True, check=False)
        return done.returncode, self.calls_file.read_text().splitlines()


def rollbacks(calls: list[str]) -> list[str]:
    return [call for call in calls if call.startswith("helm rollback")]


def test_a_deployment_upgrades_waits_and_asks(tmp_path: Path) -> None:
    code, calls = Machine(tmp_path).deploy(revisions=((1, "superseded"), (2, "deployed")))
    assert code == 0 and rollbacks(calls) == []
    order = [
        index for index, call in enumerate(calls) for word in ("upgrade", "rollout status", "exec") if word in call
    ]
    assert len(order) == 3 and order == sorted(order)
    assert any("image.tag=abc" in call for call in calls), "the image of this commit"


@pytest.mark.parametrize("fails_at", ["helm upgrade", "rollout status", "exec"])
def test_a_deployment_that_fails_goes_back(fails_at: str, tmp_path: Path) -> None:
    code, calls = Machine(tmp_path).deploy(fails_at=fails_at, revisions=((1, "superseded"), (2, "deployed")))
    assert code == 1 and rollbacks(calls) == ["helm rollback vl2 2 --namespace vl2 --wait --timeout 45m"]


def test_a_first_deployment_that_fails_has_nothing_to_go_back_to(tmp_path: Path) -> None:
    code, calls = Machine(tmp_path).deploy(fails_at="rollout status")
    assert code == 1 and rollbacks(calls) == []


def test_gitlabs_test_job_runs(tmp_path: Path) -> None:
    """By gitlab-ci-local, in a fresh clone with an environment of its own; of the tests only those of `core`."""
    if "VL2_TEST_DEPLOY" not in os.environ:
        pytest.skip("makes a whole environment: make test-deploy")
    need("rsync", "on Debian: apt-get install rsync")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    command = [str(RUNNER), "--force-shell-executor", "--variable", "PYTEST_ARGS=tests/core", "test"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500, cwd=clone)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "passed" in done.stdout and (clone / "coverage.xml").exists()

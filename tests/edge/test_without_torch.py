"""The edge runtime where there is no PyTorch. `make edge-check` does the same in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import openai

from tests.e2e.server_process import serving
from tests.edge.conftest import Exported

SCENE = Path(__file__).parents[2] / "docs/images/scene.png"
BLOCKED = ("torch", "triton", "onnx", "safetensors", "sympy", "transformers")
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED}))"


def run(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HOME": str(home)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_run_and_watch_answer(exported: Exported, home: Path) -> None:
    words = ["run", "--model", str(exported("nano")), "--max-tokens", "8", str(SCENE), "What is in the picture?"]
    result = run(f"{BLOCK}\nfrom vl2.cli import main\nmain({words})", home)
    assert result.returncode == 0 and result.stdout.strip(), result.stderr


def test_a_checkpoint_without_the_package_onnx_says_what_to_install(home: Path) -> None:
    result = run(f"{BLOCK}\nfrom vl2.cli import main\nmain(['run', 'Hello?'])", home)
    assert result.returncode == 2
    assert result.stderr.strip().endswith("error: exporting needs the package onnx; install vl2[edge]")


def test_the_server_has_the_same_api(exported: Exported, home: Path) -> None:
    """The real client: a stream, n answers under a grammar, and usage; the engine's process never loads torch."""
    with serving(exported("nano"), "--engine", "onnx", "--provider", "cpu", HOME=str(home)) as server:
        engine, front = (Path(f"/proc/{pid}/maps").read_text() for pid in (server.engine_pid, server.process.pid))
        assert "onnxruntime" in engine and "libtorch" not in engine + front
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
        message = {"role": "user", "content": "How many cats are there?"}
        stream = client.chat.completions.create(
            model="default", messages=[message], stream=True, max_tokens=6, extra_body={"ignore_eos": True}
        )
        assert sum(len(chunk.choices) > 0 for chunk in stream) >= 2
        choices = client.chat.completions.create(
            model="default",
            messages=[message],
            n=3,
            seed=1,
            temperature=1.0,
            logprobs=True,
            extra_body={"guided_choice": ["one", "two"]},
        )
        assert {choice.message.content for choice in choices.choices} <= {"one", "two"}
        assert len(choices.choices) == 3 and choices.choices[0].logprobs is not None
        assert choices.system_fingerprint.startswith("vl2-onnx-")

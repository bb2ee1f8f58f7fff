"""The edge runtime in an environment of its own, without PyTorch: its size, its first answer, its graphs.

    make edge-check                               # with the Python of .venv
    python tests/edge/install_run.py python3.10 python3.13

It builds the wheel, installs `vl2[edge]` into a fresh environment for each Python, exports nano there and asks it; and
asks pip whether the requirements resolve for aarch64 on the oldest Python, as on a Jetson.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCENE = ROOT / "docs/images/scene.png"
MAX_BYTES = 400 * 10**6
MAX_FIRST_ANSWER_S = 3.0
GLIBCS = ("2014", "_2_17", "_2_24", "_2_26", "_2_27", "_2_28", "_2_31", "_2_34", "_2_35")
"""What JetPack 6 (Ubuntu 22.04) takes."""
LINTERS = ("polygraphy", "onnx-graphsurgeon", "onnxslim")
QUIET = ("--quiet", "--disable-pip-version-check")


def call(*command: str | Path) -> str:
    return subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def check_python(python: str, wheel: Path, folder: Path) -> None:
    call(python, "-m", "venv", folder)
    pip = (folder / "bin/python", "-m", "pip", "install", *QUIET)
    call(*pip, f"{wheel}[edge]")
    packages = call(*pip[:3], "list", "--format=freeze", "--disable-pip-version-check")
    found = {line.partition("==")[0]: line.partition("==")[2] for line in packages.split()}
    assert "torch" not in found and "triton" not in found, packages
    num_bytes = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    call(folder / "bin/vl2", "export", "nano", folder / "nano")
    question = ("run", "--model", folder / "nano", SCENE, "What is in the picture?")
    times_s = [_timed(folder / "bin/vl2", *question) for _ in range(3)]
    print(
        f"{call(python, '--version').strip()}: onnxruntime {found['onnxruntime']}, numpy {found['numpy']}, "
        f"{num_bytes / 1e6:.0f} MB, start to first answer {min(times_s):.2f} s (median {sorted(times_s)[1]:.2f})",
        flush=True,
    )
    assert num_bytes <= MAX_BYTES
    assert min(times_s) <= MAX_FIRST_ANSWER_S


def check_graphs(folder: Path) -> None:
    """polygraphy's linter finds nothing wrong, onnxslim nothing to take away; in the environment in `folder`."""
    call(folder / "bin/python", "-m", "pip", "install", *QUIET, *LINTERS)
    for precision in ("fp32", "fp16", "int8"):
        out = folder / precision
        call(folder / "bin/vl2", "export", "nano", out, "--precision", precision)
        for graph in ("vision", "embedding", "decoder"):
            call(folder / "bin/polygraphy", "check", "lint", out / f"{graph}.onnx")
            call(folder / "bin/onnxslim", out / f"{graph}.onnx", folder / "slim.onnx")
            before, after = (
                num_nodes(folder / "bin/python", path) for path in (out / f"{graph}.onnx", folder / "slim.onnx")
            )
            assert before == after, f"{graph}, {precision}: onnxslim makes {after} nodes of {before}"
    print("polygraphy and onnxslim find nothing in the graphs of fp32, fp16 and int8", flush=True)


def num_nodes(python: Path, graph: Path) -> int:
    code = "import onnx, sys; print(len(onnx.load(sys.argv[1], load_external_data=False).graph.node))"
    return int(call(python, "-c", code, graph))


def _timed(*command: str | Path) -> float:
    started_s = time.monotonic()
    assert call(*command).strip()
    return time.monotonic() - started_s


def check_resolves(wheel: Path, folder: Path) -> None:
    """Wheels alone, nothing to compile."""
    platforms = [f"--platform=manylinux{tag}_aarch64" for tag in GLIBCS]
    target = ("--only-binary=:all:", "--python-version=3.10", "--implementation=cp", "--target", folder, *platforms)
    call(sys.executable, "-m", "pip", "install", *QUIET, "--dry-run", "--ignore-installed", *target, f"{wheel}[edge]")
    print("vl2[edge] resolves for aarch64, Python 3.10", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="vl2-edge-") as name:
        folder = Path(name)
        os.environ["VL2_WITHOUT_NATIVE"] = "1"  # a wheel for all machines
        call(sys.executable, "-m", "pip", "wheel", *QUIET, "--no-deps", "--wheel-dir", folder, ROOT)
        (wheel,) = folder.glob("*.whl")
        check_resolves(wheel, folder / "aarch64")
        for idx, python in enumerate(sys.argv[1:] or [sys.executable]):
            check_python(python, wheel, folder / f"venv{idx}")
        check_graphs(folder / "venv0")


if __name__ == "__main__":
    main()

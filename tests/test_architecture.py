"""The shape of the code: imports point one way, the light parts stay light, files stay short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vl2

SOURCE = Path(vl2.__file__).parent
MAX_LINES = 450

MAY_IMPORT = {
    "core": set(),
    "checkpoint": {"core"},
    "ops": {"core"},
    "model": {"core", "ops", "checkpoint"},
    "processing": {"core"},
    "edge": {"core", "checkpoint"},
    "quant": {"core", "checkpoint", "ops", "model", "processing"},
    "engine": {"core", "ops", "model", "checkpoint", "processing", "edge"},  # the tokenizer and grammars; ONNX Runtime
    "llm": {"core", "checkpoint", "processing", "engine"},
    "server": {"core"},
    "tools": {"core", "checkpoint", "ops", "processing", "llm"},  # of ops: which native library there is
    "deploy": {"core", "llm", "server", "tools"},  # Ray's application is a server
    "cli": {
        "core",
        "checkpoint",
        "ops",
        "model",
        "processing",
        "edge",
        "engine",
        "llm",
        "server",
        "tools",
        "deploy",
        "quant",
    },
}
WITHOUT_TORCH = (
    "vl2", "vl2.core", "vl2.checkpoint.source", "vl2.processing.processor", "vl2.server.app", "vl2.cli", "vl2.llm",
    "vl2.edge.export", "vl2.edge.network", "vl2.engine.engine", "vl2.engine.onnx_runner", "vl2.engine.worker",
    "vl2.tools.doctor",
)  # fmt: skip


def layers_imported_by(file: Path) -> set[str]:
    """First-level names below `vl2` that a file imports, also inside functions and for type checkers."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "vl2":
            modules += [f"vl2.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.append(node.module)
    return {module.split(".")[1] for module in modules if module.startswith("vl2.")} - {"__version__"}


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_imports_point_one_way(layer: str) -> None:
    folder = SOURCE / layer
    files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
    wrong = {str(file): layers_imported_by(file) - MAY_IMPORT[layer] - {layer} for file in files}
    assert not {file: layers for file, layers in wrong.items() if layers}


UNPICKLERS = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def test_nothing_is_unpickled() -> None:
    """What crosses sockets and lies on disks is plain data; an import of these is how it would begin otherwise."""
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {module.split(".")[0] for module in modules} & UNPICKLERS, file
            assert not (isinstance(node, ast.Attribute) and node.attr in ("recv_pyobj", "send_pyobj")), file


def test_every_layer_is_known() -> None:
    found = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"__init__", "__main__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_light_modules_do_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_files_stay_short() -> None:
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCE.rglob("*.py")}
    assert not {path: length for path, length in lengths.items() if length > MAX_LINES}

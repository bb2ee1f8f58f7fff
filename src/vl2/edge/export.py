"""A checkpoint → a bundle of ONNX graphs (`bundle.py`). Weights are streamed: memory holds one tensor at a time."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from vl2 import __version__
from vl2.checkpoint.fingerprint import fingerprint_weights
from vl2.checkpoint.folder import read_model_config
from vl2.checkpoint.source import OFFICIAL
from vl2.core.errors import SetupError
from vl2.edge.bundle import GRAPHS, SETTINGS, Manifest, is_bundle, write_manifest
from vl2.edge.tensorrt import write_tensorrt_files

PRECISIONS = ("fp32", "fp16", "int8")
OFFICIAL_LICENCE = "DeepSeek Model License (LICENSE-MODEL of the official repository); commercial use is allowed"

OnProgress = Callable[[int, int], None]


def export(
    checkpoint: Path, out: Path, precision: str = "fp32", *, source: str = "", on_progress: OnProgress | None = None
) -> Manifest:
    """Write the bundle `out`; one that is there already is replaced. `on_progress(bytes read, bytes in all)`.

    `source`: the model as people name it, for the manifest.

    Raises: SetupError, CheckpointError.
    """
    if precision not in PRECISIONS:
        raise SetupError(f"--precision is {precision}, but must be one of {', '.join(PRECISIONS)}")
    if is_bundle(checkpoint):
        raise SetupError(f"{checkpoint} is an exported model already; export from its checkpoint")
    if out.exists() and not is_bundle(out) and (not out.is_dir() or any(out.iterdir())):
        raise SetupError(f"{out} exists and is no exported model; name a new folder")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        num_parameters = _write_graphs(checkpoint, partial, precision, on_progress)
        for name in SETTINGS:
            if (checkpoint / name).exists():
                shutil.copyfile(checkpoint / name, partial / name)
        manifest = write_manifest(
            partial,
            precision=precision,
            source=source or str(checkpoint),
            weights=fingerprint_weights(checkpoint).hex(),
            licence=licence_of(checkpoint, source),
            vl2=__version__,
            num_parameters=num_parameters,
        )
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    except OSError as error:
        raise SetupError(f"cannot write the exported model to {out}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _write_graphs(checkpoint: Path, out: Path, precision: str, on_progress: OnProgress | None) -> int:
    """Number of parameters."""
    try:
        import onnx
    except ImportError:
        raise SetupError("exporting needs the package onnx; install vl2[edge]") from None
    from vl2.edge.decoder_graph import build_decoder, build_embedding
    from vl2.edge.graph import DataFile, Graph
    from vl2.edge.vision_graph import build_vision
    from vl2.edge.weights import Weights

    config = read_model_config(checkpoint)
    if config.quantization is not None:
        raise SetupError(
            f"the weights of {checkpoint} are quantised already; export the checkpoint they were made from"
        )
    weights = Weights(checkpoint, on_progress)
    builds = {
        "vision": lambda g: build_vision(g, weights, config),
        "embedding": lambda g: build_embedding(g, weights, config.language),
        "decoder": lambda g: build_decoder(g, weights, config.language),
    }
    for name in GRAPHS:
        with DataFile(out / f"{name}.onnx.data") as data:
            graph = Graph(name, data, precision)
            builds[name](graph)
        onnx.save(graph.model({"vl2.precision": precision}), str(out / f"{name}.onnx"))
    weights.check_all_used()
    if precision == "fp16":
        write_tensorrt_files(out, config)
    return weights.num_parameters


def licence_of(checkpoint: Path, source: str) -> str:
    """Of the weights: as the folder says, or as it is known of the published ones."""
    for path in sorted(checkpoint.glob("LICEN[CS]E*")):
        return f"see {path.name} of {source or checkpoint.name}: {_first_line(path)}"
    readme = checkpoint / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^license(?:_name)?: *(.+)$", text, re.MULTILINE) or re.search(
            r"\*\*Licence of the weights\*\*: *([\w.-]+\w)", text
        )
        if found:
            return found[1].strip()
    repositories = {repository.partition("/")[2] for repository in OFFICIAL.values()}
    is_official = source in OFFICIAL or any(name in source.lower() or name in str(checkpoint) for name in repositories)
    return OFFICIAL_LICENCE if is_official else "unknown: the checkpoint does not say"


def _first_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in lines if line.strip()), "")[:100]

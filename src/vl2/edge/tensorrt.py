"""The vision tower as an engine that trtexec builds on the device itself. Not verified on a Jetson.

A bundle in fp16 carries the script that builds `vision.engine`, and a graph of one node through which ONNX Runtime's
TensorRT provider runs it. The script notes the hash of the graph that it built from, so that an engine of other weights
is found out.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from vl2.core.errors import SetupError
from vl2.core.model_config import ModelConfig
from vl2.edge.bundle import Manifest
from vl2.edge.providers import MAX_TILES

SCRIPT, ENGINE, BUILT_FROM, WRAPPER = "build_tensorrt.sh", "vision.engine", "vision.engine.sha256", "vision.engine.onnx"


def write_tensorrt_files(folder: Path, config: ModelConfig) -> None:
    """The script and the wrapper, beside `vision.onnx`."""
    import onnx
    from onnx import TensorProto, helper

    from vl2.edge.graph import IR_VERSION, OPSET

    side, tokens = config.tile_geometry.side, config.tile_geometry.tokens_per_tile
    text = (resources.files("vl2.edge") / SCRIPT).read_text(encoding="utf-8")
    script = folder / SCRIPT
    script.write_text(text.replace("@SIDE@", str(side)).replace("@MAX_TILES@", str(MAX_TILES)), encoding="utf-8")
    script.chmod(0o755)
    tiles = helper.make_tensor_value_info("tiles", TensorProto.UINT8, ("N", side, side, 3))
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ("N", tokens, config.projector.n_embed))
    node = helper.make_node(
        "EPContext", ["tiles"], ["features"], domain="com.microsoft", embed_mode=0, ep_cache_context=ENGINE
    )
    graph = helper.make_graph([node], "vision_engine", [tiles], [features])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), str(folder / WRAPPER))


def engine_graph(folder: Path, manifest: Manifest) -> Path | None:
    """The wrapper of an engine that was built here; None where there is no engine.

    Raises: SetupError where it was built from other weights, or its building was cut short.
    """
    if not (folder / ENGINE).exists():
        return None
    try:
        built_from = (folder / BUILT_FROM).read_text().split()
    except OSError:
        built_from = []
    if built_from != [manifest.files["vision.onnx.data"].sha256]:
        raise SetupError(
            f"{folder / ENGINE} was built from other weights, or not to its end; run {folder / SCRIPT} again, "
            f"or remove it"
        )
    return folder / WRAPPER

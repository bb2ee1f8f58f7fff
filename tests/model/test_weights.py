"""Loading: every official tensor has one place, and a checkpoint that does not fit is refused in one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden_cases import GOLDEN_ROOT, VARIANTS
from vl2.checkpoint.folder import INDEX_FILE, list_tensors, read_model_config
from vl2.core.errors import CheckpointError
from vl2.model.vl2 import DeepseekVL2
from vl2.model.weights import destinations, load_weights


def build(folder: Path, dtype: torch.dtype = torch.float32) -> DeepseekVL2:
    return DeepseekVL2(read_model_config(folder), 64, dtype=dtype, device="cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of one shard that a test may spoil."""
    source = GOLDEN_ROOT / "mla-noaux" / "ckpt"
    tensors = {}
    for shard in source.glob("*.safetensors"):
        tensors |= load_file(shard)
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(source / "config.json", tmp_path)
    return tmp_path


def spoil(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_parameter_element_is_filled_exactly_once(variant):
    folder = GOLDEN_ROOT / variant / "ckpt"
    model = build(folder)
    for parameter in model.parameters():
        parameter.fill_(0)
    for _, target in destinations(model):
        target += 1  # slices of fused parameters overlap nowhere and leave nothing out
    assert all(bool((parameter == 1).all()) for parameter in model.parameters())
    names = {name for name, _ in destinations(model)}
    assert names == {name for name in list_tensors(folder) if not name.startswith("vision.attn_pool.")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_cast_once_and_the_router_stays_float32(folder: Path, dtype):
    model = build(folder, dtype)
    load_weights(model, folder)
    tensors = load_file(folder / "model.safetensors")
    layer = model.decoder.layers[1]
    torch.testing.assert_close(
        layer.mlp.down[3], tensors["language.model.layers.1.mlp.experts.3.down_proj.weight"].to(dtype)
    )
    assert layer.mlp.router.dtype == layer.mlp.router_bias.dtype == torch.float32
    torch.testing.assert_close(layer.mlp.router, tensors["language.model.layers.1.mlp.gate.weight"].float())


def test_a_weight_beyond_float16_is_kept_finite(folder: Path):
    spoil(folder, image_newline=torch.full((80,), 1e6))
    model = build(folder, torch.float16)
    load_weights(model, folder)
    assert bool(torch.isfinite(model.image_newline).all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_newline": None}, "lacks 1 tensors, first image_newline"),
        ({"image_oldline": torch.ones(1)}, "has unknown 1 tensors, first image_oldline"),
        ({"view_seperator": torch.ones(81)}, r"view_seperator has shape \[81\], but config.json asks for \[80\]"),
        ({"image_newline": torch.ones(80, dtype=torch.int32)}, "type I32"),
    ],
)
def test_missing_extra_and_misshapen_tensors(folder: Path, changes, message):
    spoil(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_weights(build(folder), folder)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_type", "llava", "serves only 'deepseek_vl_v2'"),
        ("tile_tag", "1D", "tile_tag is '1D'"),
        ("language_config.topk_method", "gready", "topk_method is 'gready'"),
        ("language_config.hidden_size", -1, "hidden_size is -1"),
        ("language_config.hidden_size", 96, "n_embed 80 is not hidden_size 96"),
        ("language_config", [], "language_config"),
        ("candidate_resolutions", "many", "candidate_resolutions"),
    ],
)
def test_a_config_that_is_not_supported(folder: Path, path: str, value, message):
    config = json.loads((folder / "config.json").read_text())
    *parents, key = path.split(".")
    section = config
    for parent in parents:
        section = section[parent]
    section[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        read_model_config(folder)


def test_loading_never_holds_the_weights_twice(tmp_path: Path):
    """Peak memory of a process that loads 64 MiB, against one that only makes the model."""
    source = GOLDEN_ROOT / "mla-greedy" / "ckpt"
    config = json.loads((source / "config.json").read_text())
    config["language_config"] |= {"vocab_size": 262144}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes = {name: info.shape for name, info in list_tensors(source).items()}
    big = dict.fromkeys(("language.model.embed_tokens.weight", "language.lm_head.weight"), (262144, 64))
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in (shapes | big).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    script = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from vl2.checkpoint.folder import read_model_config\n"
        "from vl2.model.vl2 import DeepseekVL2; from vl2.model.weights import load_weights\n"
        "folder = Path(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "model = DeepseekVL2(read_model_config(folder), 64, dtype=torch.bfloat16, device='cpu')\n"
        "load_weights(model, folder)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)\n"
    )
    out = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    weights_bytes = sum(tensor.nbytes for tensor in tensors.values())
    buffer_bytes = 16 * 2**20
    assert int(out.stdout) < 1.15 * weights_bytes + buffer_bytes
    assert (tmp_path / INDEX_FILE).exists() is False, "a single file needs no index"

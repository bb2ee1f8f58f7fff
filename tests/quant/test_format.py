"""What is written is what the `compressed-tensors` package reads, and what others wrote is read as they meant it."""

import json
import re
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.utils.match import match_name
from safetensors.torch import load_file, save_file

from tests.quant.checkpoints import NANO, write_checkpoint
from vl2.checkpoint.folder import BlockReader, list_tensors, read_model_config
from vl2.core.errors import CheckpointError, SetupError
from vl2.core.quantization import StoredScheme, WeightScheme, parse_quantization
from vl2.core.quantization_default import default_quantization, with_quantization
from vl2.model.stored import WeightReader, group_tensors
from vl2.model.vl2 import DeepseekVL2
from vl2.model.weights import QuantizedPart, destinations, load_weights
from vl2.ops.quantized_weight.codes import round_to_nearest
from vl2.quant.job import Settings, quantize


class Silent:
    def start(self, num_linears: int, num_done: int) -> None:
        pass

    def advance(self, num_linears: int) -> None:
        pass


def rtn(source: Path, out: Path, bits: int = 4, group: int | None = 128, head_bits: int = 16) -> Path:
    settings = Settings("rtn", bits, group, head_bits, None, 16, 1, torch.device("cpu"), torch.bfloat16)
    quantize(source, "nano", out, settings, Silent())
    return out


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source") / "small")


@pytest.fixture(scope="module")
def int4(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rtn(source, tmp_path_factory.mktemp("int4") / "out", head_bits=8)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in load_file(shard).items()}


def scheme_by_the_package(config: QuantizationConfig, linear: str) -> QuantizationScheme | None:
    """As its loader matches names: ignored, then a name or expression, then the class."""
    if any(match_name(linear, target) for target in config.ignore):
        return None
    groups = list(config.config_groups.values())
    named = [group for group in groups if any(match_name(linear, target) for target in group.targets)]
    return (named or [group for group in groups if "Linear" in group.targets])[0]


def test_the_package_opens_a_checkpoint_and_dequantises_it_to_our_bits(source: Path, int4: Path):
    config = QuantizationConfig.model_validate(json.loads((int4 / "config.json").read_text())["quantization_config"])
    assert (config.format, config.quantization_status.value) == ("pack-quantized", "compressed")
    tensors, originals = tensors_of(int4), tensors_of(source)
    quantised = {name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")}
    for name in originals:
        linear = name.removesuffix(".weight")
        is_linear = name.endswith("_proj.weight") or "mqa" in name or "lm_head" in name
        is_quantised = is_linear and scheme_by_the_package(config, linear) is not None
        assert is_quantised == (linear in quantised), name
        if not is_quantised:
            assert torch.equal(tensors[name], originals[name])  # the rest is copied to the byte
    stored = group_tensors(list_tensors(int4).values())
    with BlockReader() as blocks:
        reader = WeightReader(blocks, read_model_config(int4).quantization)
        for linear in quantised:
            scheme = scheme_by_the_package(config, linear)
            own = {part: tensors[f"{linear}.{part}"] for part in ("weight_packed", "weight_scale", "weight_shape")}
            theirs = PackedQuantizationCompressor.decompress(own, scheme)["weight"]
            assert theirs.shape == originals[f"{linear}.weight"].shape
            assert torch.equal(reader.dense(stored[f"{linear}.weight"]), theirs)


def test_the_package_packs_the_same_bits(source: Path, int4: Path):
    """Given our scales, its rounding and packing give our file; its observer gives our scales."""
    config = QuantizationConfig.model_validate(json.loads((int4 / "config.json").read_text())["quantization_config"])
    tensors, originals = tensors_of(int4), tensors_of(source)
    for linear in ("language.model.layers.1.mlp.experts.2.gate_proj", "language.model.layers.0.mlp.down_proj"):
        scheme = scheme_by_the_package(config, linear)
        scale = tensors[f"{linear}.weight_scale"]
        state = {"weight": originals[f"{linear}.weight"].float(), "weight_scale": scale.float()}
        packed = PackedQuantizationCompressor.compress(state, scheme)
        assert torch.equal(packed["weight_packed"], tensors[f"{linear}.weight_packed"])


def test_a_width_that_128_does_not_divide_gets_groups_of_64(int4: Path):
    tensors = tensors_of(int4)
    assert tensors["language.model.layers.0.mlp.down_proj.weight_scale"].shape == (128, 192 // 64)
    assert tensors["language.model.layers.0.mlp.gate_proj.weight_scale"].shape == (192, 1)
    assert tensors["language.lm_head.weight_packed"].shape == (2432, 128 // 4)


def test_what_stays_in_16_bits(source: Path):
    plan = default_quantization(read_model_config(source).language, StoredScheme(4, 128))
    kept = (
        "vision.blocks.0.attn.qkv", "projector.layers.0", "language.lm_head", "language.model.layers.1.mlp.gate",
        "language.model.layers.1.self_attn.kv_b_proj",
    )  # fmt: skip
    assert not any(plan.scheme_of(name) for name in kept)
    assert plan.scheme_of("language.model.layers.1.mlp.shared_experts.up_proj") == WeightScheme(4, 128)
    assert parse_quantization({"quantization_config": plan.to_config()}).groups == plan.groups


def build(folder: Path, dtype: torch.dtype, mode: str = "auto") -> DeepseekVL2:
    config = with_quantization(read_model_config(folder), mode)
    model = DeepseekVL2(config, 64, dtype=dtype, device="cpu")
    load_weights(model, folder)
    return model


@pytest.mark.parametrize(("bits", "group"), [(4, 128), (8, None)])
def test_rounded_while_loaded_is_rounded_by_the_tool(source: Path, tmp_path: Path, bits: int, group: int | None):
    """The tool with --head-bits 8."""
    written = build(rtn(source, tmp_path / "out", bits, group, head_bits=8), torch.bfloat16)
    loaded = build(source, torch.bfloat16, f"int{bits}")
    for (name, one), (_, other) in zip(written.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    parts = [target for _, target in destinations(loaded) if isinstance(target, QuantizedPart)]
    # q, kv_a, o; the dense MLP; two layers of experts and shared ones; the vocabulary's matrix
    assert len(parts) == 3 * 3 + 3 + 2 * (4 + 1) * 3 + 1


def test_each_quantised_element_is_loaded_to_its_place(int4: Path):
    """Also where several linears are one matrix of ours, or one is several experts."""
    model = build(int4, torch.bfloat16)
    with BlockReader() as blocks:
        reader = WeightReader(blocks, model.config.quantization)
        stored = group_tensors(list_tensors(int4).values())
        for name, target in destinations(model):
            if isinstance(target, QuantizedPart):
                pieces = [target.layout.dequantize(piece.weight) for piece in target.pieces]
                axis = 0 if target.pieces[-1].first_row else 1
                assert torch.equal(torch.cat(pieces, axis).bfloat16(), reader.dense(stored[name])), name


# ---- what others wrote


def replace_linear(folder: Path, linear: str, tensors: dict[str, torch.Tensor], quantization: dict) -> None:
    """Exchange one linear's weight for other tensors, and say so in config.json."""
    (shard,) = folder.glob("*.safetensors")
    held = load_file(shard)
    held.pop(f"{linear}.weight")
    save_file(held | {f"{linear}.{part}": tensor.contiguous() for part, tensor in tensors.items()}, shard)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"quantization_config": quantization}))


LINEAR = "language.model.layers.1.self_attn.o_proj"


def pack_by_hand(values: torch.Tensor, bits: int) -> torch.Tensor:
    """AutoGPTQ's packing, down the first axis, value by value."""
    per_word, packed = 32 // bits, torch.zeros(len(values) * bits // 32, values.shape[1], dtype=torch.int64)
    for row, line in enumerate(values.long()):
        packed[row // per_word] |= line << bits * (row % per_word)
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("variant", ["symmetric", "asymmetric", "act-order"])
def test_gptq_checkpoints(tmp_path: Path, form: str, variant: str):
    folder, bits, group = write_checkpoint(tmp_path / "c"), 4, 64
    weight = tensors_of(folder)[f"{LINEAR}.weight"]
    torch.manual_seed(0)
    codes = torch.randint(0, 16, weight.shape)
    scales = torch.rand(weight.shape[0], weight.shape[1] // group).half() / 100
    zeros = torch.randint(1, 16, scales.shape) if variant == "asymmetric" else torch.full(scales.shape, 8)
    order = torch.arange(weight.shape[1]) // group
    order = order[torch.randperm(len(order))] if variant == "act-order" else order
    stored_zeros = zeros - 1 if form == "gptq" else zeros
    tensors = {
        "qweight": pack_by_hand(codes.T, bits),
        "qzeros": pack_by_hand(stored_zeros, bits).T,
        "scales": scales.T,
        "g_idx": order.int(),
    }
    config = dict(quant_method="gptq", bits=bits, group_size=group, desc_act=variant == "act-order",
                  sym=variant != "asymmetric", checkpoint_format=form)  # fmt: skip
    replace_linear(folder, LINEAR, tensors, config)
    expected = (codes - zeros[:, order]) * scales.double()[:, order]
    model = build(folder, torch.float32)
    held = model.decoder.layers[1].attention.o_proj
    is_packed = variant == "symmetric"
    found = held.ops.quantized_layout.dequantize(held.weight) if is_packed else held.weight
    assert hasattr(held, "codes") == is_packed  # what we have no product for is held in the model's dtype
    torch.testing.assert_close(found.double(), expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


def test_compressed_tensors_with_zero_points(tmp_path: Path):
    folder = write_checkpoint(tmp_path / "c")
    args = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=64, symmetric=False)
    scheme = QuantizationScheme(targets=[LINEAR], weights=args)
    weight = tensors_of(folder)[f"{LINEAR}.weight"].float()
    low, high = (f(weight.unflatten(1, (-1, 64)), 2) for f in (torch.amin, torch.amax))
    scale = (high - low) / 15
    zero = (-8 - low / scale).round().to(torch.int8)
    packed = PackedQuantizationCompressor.compress(
        {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}, scheme
    )
    expected = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
    config = {"config_groups": {"group_0": json.loads(scheme.model_dump_json())}, "format": "pack-quantized"}
    replace_linear(folder, LINEAR, packed, config | {"quant_method": "compressed-tensors", "ignore": []})
    assert torch.equal(build(folder, torch.float32).decoder.layers[1].attention.o_proj.weight, expected)


@pytest.mark.parametrize("strategy", ["tensor", "channel"])
def test_fp8_of_compressed_tensors(tmp_path: Path, strategy: str):
    folder = write_checkpoint(tmp_path / "c")
    args = QuantizationArgs(num_bits=8, type="float", strategy=strategy, symmetric=True)
    scheme = QuantizationScheme(targets=[LINEAR], weights=args)
    weight = tensors_of(folder)[f"{LINEAR}.weight"].float()
    scale = weight.abs().amax(1, keepdim=True) / 448 if strategy == "channel" else weight.abs().max().view(1) / 448
    packed = NaiveQuantizationCompressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    expected = NaiveQuantizationCompressor.decompress(dict(packed), scheme)["weight"]
    config = {"config_groups": {"group_0": json.loads(scheme.model_dump_json())}, "format": "float-quantized"}
    replace_linear(folder, LINEAR, packed, config | {"quant_method": "compressed-tensors", "ignore": []})
    found = build(folder, torch.float32).decoder.layers[1].attention.o_proj.weight
    assert packed["weight"].dtype == torch.float8_e4m3fn
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-6)


def test_fp8_with_blocks(tmp_path: Path):
    """DeepSeek-V3's form: a float32 scale for each 128 × 128 weights, edges cut."""
    folder, linear = write_checkpoint(tmp_path / "c"), "language.model.layers.0.mlp.gate_proj"
    weight = tensors_of(folder)[f"{linear}.weight"].float()  # 192 × 128
    scale = torch.tensor([[0.5], [0.25]])
    codes = (weight / scale.repeat_interleave(128, 0)[:192]).to(torch.float8_e4m3fn)
    config = dict(quant_method="fp8", fmt="e4m3", weight_block_size=[128, 128], activation_scheme="dynamic")
    replace_linear(folder, linear, {"weight": codes, "weight_scale_inv": scale}, config)
    found = build(folder, torch.float32).decoder.layers[0].mlp.gate_up.weight[:192]
    assert torch.equal(found, codes.float() * scale.repeat_interleave(128, 0)[:192])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "awq"}, "quant_method is 'awq'"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "3 bits"),
        ({"quant_method": "compressed-tensors"}, "malformed"),
        (
            {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {"a": {}}},
            "format is 'nvfp4-pack-quantized'",
        ),
    ],
)
def test_what_is_not_supported_is_named(change: dict, message: str):
    with pytest.raises(CheckpointError, match=message):
        parse_quantization({"quantization_config": change})


def test_a_checkpoint_that_is_quantised_otherwise_is_not_rounded_again(int4: Path):
    with pytest.raises(SetupError, match="quantised already, to"):
        with_quantization(read_model_config(rtn_config_of(int4, 4)), "int8")
    with pytest.raises(SetupError, match="quantised already, to int4;"):  # 8 bits of the vocabulary are not int8
        with_quantization(read_model_config(int4), "int8")


def rtn_config_of(folder: Path, bits: int) -> Path:
    """A folder with the same config.json, of which all groups have so many bits."""
    raw = (folder / "config.json").read_text()
    copy = folder.parent / f"only-{bits}"
    copy.mkdir(exist_ok=True)
    (copy / "config.json").write_text(re.sub(r'"num_bits": \d', f'"num_bits": {bits}', raw))
    return copy


def test_tensors_that_config_json_does_not_explain_are_refused(int4: Path, tmp_path: Path):
    raw = json.loads((int4 / "config.json").read_text())
    raw.pop("quantization_config")
    for path in int4.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="quantization_config does not say how"):
        build(tmp_path, torch.float32)


def test_nano_can_be_quantised_and_knows_its_size(tmp_path: Path):
    out = rtn(NANO, tmp_path / "nano-int4")
    model, original = build(out, torch.bfloat16), build(NANO, torch.bfloat16)
    assert model.num_parameters == original.num_parameters
    assert sum(p.nbytes for p in model.parameters()) < 0.72 * sum(p.nbytes for p in original.parameters())


def test_scales_fit_the_largest_weight():
    weight = torch.tensor([[7.5, -7.5, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    codes, scales = round_to_nearest(weight, WeightScheme(4, 4), torch.float32)
    assert scales.tolist() == [[1.0], [1.0]]
    assert codes.tolist() == [[7, -8, 1, 0], [0, 0, 0, 0]]

"""An estimate, not a measurement: the least time of DeepSeek-VL2-Tiny in fp16 on a Jetson AGX Orin.

    python bench/orin.py

The floors of `floors.py` at the module's rated bandwidth and fp16 rate: a step takes at least its bytes over the
bandwidth, and its operations over the rate. Real kernels reach a part of that; half is usual.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from floors import prefill_flops, vision_flops

from vl2.core.model_config import ModelConfig, MoEConfig
from vl2.core.tiling import num_image_tokens
from vl2.tools.plan_models import official_config
from vl2.tools.plan_sizes import kv_bytes_per_token

TEXT_TOKENS, ANSWER_TOKENS = 16, 2
BYTES = 2


@dataclass(frozen=True)
class Module:
    """Rated by NVIDIA (Jetson AGX Orin series technical brief): 170 sparse int8 TOPS of the GPU with 64 tensor cores at
    1.3 GHz; fp16 without sparsity is a fourth of that. The 32 GB module has 56 at 930 MHz.
    """

    name: str
    tensor_cores: int
    ghz: float
    bytes_per_s: float = 204.8e9

    @property
    def flops_per_s(self) -> float:
        return 170e12 / 4 * (self.tensor_cores / 64) * (self.ghz / 1.3)


MODULES = (Module("AGX Orin 64 GB", 64, 1.3), Module("AGX Orin 32 GB", 56, 0.93))


def expert_numbers(config: ModelConfig, moe: MoEConfig) -> int:
    """Parameters of one routed expert in all MoE layers together."""
    layers = sum(config.language.is_moe_layer(layer) for layer in range(config.language.layers))
    return layers * 3 * config.language.hidden_size * moe.expert_width


def decoder_bytes(config: ModelConfig, experts: int) -> float:
    """Weights that a step reads in which tokens hit so many experts of each layer; embeddings are rows only."""
    language, moe = config.language, config.language.moe
    assert moe is not None
    for_one_token = prefill_flops(language, 1, 0) / 2  # an operation pair is a weight
    head = language.vocab_size * language.hidden_size
    return BYTES * (for_one_token + (experts - moe.num_active) * expert_numbers(config, moe) + head)


def estimate(config: ModelConfig, module: Module) -> dict[str, float]:
    """Of a 384 × 384 picture, whose two views are one tile, a question and a one-word answer."""
    moe = config.language.moe
    assert moe is not None
    prompt = num_image_tokens(1, 1, config.tile_geometry) + TEXT_TOKENS
    tile_s = vision_flops(config, 1) / module.flops_per_s
    prefill_s = max(
        decoder_bytes(config, moe.num_experts) / module.bytes_per_s,
        prefill_flops(config.language, prompt, prompt) / module.flops_per_s,
    )
    token_bytes = decoder_bytes(config, moe.num_active) + prompt * kv_bytes_per_token(config.language, "float16")
    token_s = token_bytes / module.bytes_per_s
    frame_s = tile_s + prefill_s + (ANSWER_TOKENS - 1) * token_s
    return {
        "fp16 TFLOP/s": module.flops_per_s / 1e12,
        "decoder's weights, GB": decoder_bytes(config, moe.num_experts) / 1e9,
        "tile, ms": 1e3 * tile_s,
        f"prompt of {prompt} tokens, ms": 1e3 * prefill_s,
        "token, ms": 1e3 * token_s,
        "tokens/s at the floor": 1 / token_s,
        "frames/s at the floor": 1 / frame_s,
        "frames/s at half of it": 0.5 / frame_s,
    }


def main() -> None:
    config = official_config("tiny")
    results = {module.name: estimate(config, module) for module in MODULES}
    for key in next(iter(results.values())):
        print(f"{key:32}" + "".join(f"{own[key]:12.1f}" for own in results.values()))
    print(json.dumps({"benchmark": "orin", "kind": "estimate, nothing was measured", **results}))


if __name__ == "__main__":
    main()

"""Checkpoint folders with the real shapes of Tiny, Small and base, but no weights: for `--random-weights`.

    python bench/shapes.py OUT          # OUT/tiny, OUT/small, OUT/base, OUT/a, OUT/b

a and b are small ones for CPUs: 82M parameters with MLA and a small vision tower, 68M with MHA.

The tokenizer is vl2-nano's: its ids lie inside every vocabulary, and speed does not depend on what they spell.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import vl2

NANO = Path(vl2.__file__).parent / "assets" / "nano"
SIDES = (
    (1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (4, 1), (2, 2), (1, 5), (5, 1), (1, 6), (6, 1), (2, 3), (3, 2),
    (1, 7), (7, 1), (1, 8), (8, 1), (2, 4), (4, 2), (1, 9), (9, 1), (3, 3),
)  # fmt: skip
RESOLUTIONS = [[384 * across, 384 * down] for across, down in SIDES]
COMMON = dict(
    model_type="deepseek_v2", bos_token_id=0, eos_token_id=1, q_lora_rank=None, n_shared_experts=2,
    num_experts_per_tok=6, first_k_dense_replace=1, n_group=1, topk_group=1, max_position_embeddings=4096,
    torch_dtype="bfloat16",
)  # fmt: skip
LANGUAGE = {
    "tiny": dict(
        use_mla=False, kv_lora_rank=None, qk_nope_head_dim=0, qk_rope_head_dim=0, v_head_dim=0, vocab_size=129280,
        hidden_size=1280, intermediate_size=6848, num_hidden_layers=12, num_attention_heads=10, num_key_value_heads=10,
        n_routed_experts=64, moe_intermediate_size=896, topk_method="greedy",
    ),
    "small": dict(
        vocab_size=102400, hidden_size=2048, intermediate_size=10944, num_hidden_layers=27, num_attention_heads=16,
        num_key_value_heads=16, n_routed_experts=64, moe_intermediate_size=1408, topk_method="greedy",
    ),
    "base": dict(
        vocab_size=129280, hidden_size=2560, intermediate_size=12288, num_hidden_layers=30, num_attention_heads=32,
        num_key_value_heads=32, n_routed_experts=72, moe_intermediate_size=1536, topk_method="noaux_tc",
        scoring_func="sigmoid", norm_topk_prob=True, routed_scaling_factor=2.0,
    ),
    "a": dict(
        vocab_size=16384, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, n_routed_experts=16, num_experts_per_tok=4, moe_intermediate_size=256,
        topk_method="greedy", kv_lora_rank=128, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64,
    ),
    "b": dict(
        use_mla=False, kv_lora_rank=None, qk_nope_head_dim=0, qk_rope_head_dim=0, v_head_dim=0, vocab_size=8192,
        hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8,
        n_routed_experts=16, num_experts_per_tok=4, moe_intermediate_size=384, topk_method="greedy",
    ),
}  # fmt: skip
SO400M = dict(width=1152, layers=27, patch_size=14, mlp_ratio=3.7362)
SMALL_TOWER = dict(width=256, layers=6, heads=8, patch_size=14, mlp_ratio=3.7362, image_size=384)


def config(name: str) -> dict:
    language = COMMON | LANGUAGE[name]
    vision = dict(
        model_type="vision",
        model_name="siglip_so400m_patch14_384",
        **(SMALL_TOWER if name in ("a", "b") else SO400M),
    )
    return dict(
        model_type="deepseek_vl_v2", tile_tag="2D", global_view_pos="head", candidate_resolutions=RESOLUTIONS,
        vision_config=vision, projector_config=dict(
            model_type="mlp_projector", n_embed=language["hidden_size"], input_dim=vision["width"]
        ),
        language_config=language, torch_dtype="bfloat16",
    )  # fmt: skip


def write(name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(name), indent=1))
    processor = json.loads((NANO / "processor_config.json").read_text()) | dict(candidate_resolutions=RESOLUTIONS)
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=1))
    for path in NANO.glob("*token*.json"):
        shutil.copy(path, folder)
    return folder


if __name__ == "__main__":
    for shape in LANGUAGE:
        print(write(shape, Path(sys.argv[1]) / shape))

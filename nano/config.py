"""Nano's architecture as an official `config.json`, and how its weights start and are written.

Under 8 million parameters, so that the file is at most 16 MB in bfloat16. Every linear width is a multiple of 128 (the
router's excepted): that is what int4 groups, fp8 tiles and tensor cores like, so nano can stand in for the large models
wherever a kernel is tried.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizer import build, save
from views import GRIDS, TILE

from model import NanoVL2

HIDDEN = 256
CANDIDATES = [[w * TILE, h * TILE] for w, h in GRIDS]

CONFIG: dict = {
    "model_type": "deepseek_vl_v2",
    "tile_tag": "2D",
    "global_view_pos": "head",
    "candidate_resolutions": CANDIDATES,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.2",
    "vision_config": {
        "model_type": "vision", "model_name": "siglip_so400m_patch14_384", "image_size": 384, "patch_size": 14,
        "width": 256, "layers": 5, "heads": 4, "mlp_ratio": 2.0, "global_pool": "",
    },
    "projector_config": {"model_type": "mlp_projector", "input_dim": 256, "n_embed": HIDDEN, "depth": 2, "mlp_ratio": 1, "downsample_ratio": 2},
    "language_config": {
        "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"],
        "vocab_size": 2432, "hidden_size": HIDDEN, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4, "use_mla": True, "q_lora_rank": None, "kv_lora_rank": 128,
        "qk_nope_head_dim": 64, "qk_rope_head_dim": 128, "v_head_dim": 64,
        "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "moe_intermediate_size": 128, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
        "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1, "max_position_embeddings": 4096,
        "bos_token_id": 0, "eos_token_id": 1, "rms_norm_eps": 1e-6, "rope_theta": 10000, "rope_scaling": None,
        "lm_head": True, "rm_head": False, "torch_dtype": "bfloat16",
    },
}  # fmt: skip

PROCESSOR: dict = {
    "processor_class": "DeepseekVLV2Processor", "candidate_resolutions": CANDIDATES, "patch_size": 14, "downsample_ratio": 2,
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "normalize": True, "image_token": "<image>", "pad_token": "<｜▁pad▁｜>",
    "sft_format": "deepseek", "mask_prompt": False, "add_special_token": False, "ignore_id": -100,
}  # fmt: skip


def initialise(model: NanoVL2, seed: int = 0) -> None:
    """Variance-keeping weights; what writes to a residual stream starts small; numbers start as neighbours."""
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.dim() >= 2:
            fan_in = p.shape[-1] if p.dim() < 4 else p[0].numel()
            gain = (
                0.2
                if name.endswith(("attn.proj.weight", "fc2.weight", "o_proj.weight", "down_proj.weight", "down_proj"))
                else 1.0
            )
            std = {"embed_tokens": 0.5, "lm_head": 0.02, "pos_embed": 0.3}.get(
                next((k for k in ("embed_tokens", "lm_head", "pos_embed") if k in name), ""), gain / fan_in**0.5
            )
            p.data.copy_(torch.randn(p.shape, generator=g) * std)
        elif name.endswith("bias") and "correction" not in name:
            p.data.zero_()
    for mark in (model.image_newline, model.view_seperator):
        mark.data.copy_(torch.randn(mark.shape, generator=g) * 0.5)
    # A number's embedding holds smooth waves of its value, so that close coordinates start out alike.
    tok = build()
    value = torch.arange(1000.0)[:, None] / 1000
    waves = value * torch.pi * 2 ** torch.linspace(0, 7, 32)
    smooth = torch.cat((waves.sin(), waves.cos()), -1) * 0.5
    rows = [tok.token_to_id(str(n)) for n in range(10, 1000)]
    for table, size in ((model.language.model["embed_tokens"].weight, 1.0), (model.language.lm_head.weight, 0.1)):
        table.data[rows, :64] = smooth[10:] * size


def write_checkpoint(state: dict[str, torch.Tensor], out: Path) -> int:
    """Write official-format files from official-named fp32 tensors; returns the bytes of the weights file."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (out / "processor_config.json").write_text(json.dumps(PROCESSOR, indent=2, ensure_ascii=False) + "\n")
    save(build(), out)
    tensors = {
        k: (t.float() if k.endswith("correction_bias") else t.bfloat16()).cpu().contiguous().clone()
        for k, t in state.items()
    }
    shard = "model-00001-of-000001.safetensors"
    save_file(tensors, str(out / shard), metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(t.numel() * t.element_size() for t in tensors.values())},
        "weight_map": dict.fromkeys(sorted(tensors), shard),
    }
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return (out / shard).stat().st_size

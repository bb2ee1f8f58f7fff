"""MODEL → its config.json, without its weights. The official three are known here, so a plan needs no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vl2.checkpoint.folder import read_json
from vl2.checkpoint.source import EMBEDDED, OFFICIAL, resolve_model
from vl2.core.config import HubOptions
from vl2.core.errors import SetupError
from vl2.core.model_config import ModelConfig, parse_model_config

_SIDES = "1x1 1x2 2x1 1x3 3x1 1x4 4x1 2x2 1x5 5x1 1x6 6x1 2x3 3x2 1x7 7x1 1x8 8x1 2x4 4x2 1x9 9x1 3x3"
_COMMON = {
    "q_lora_rank": None,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 4096,
}
_LANGUAGE: dict[str, dict[str, Any]] = {
    "tiny": {
        "use_mla": False,
        "vocab_size": 129280,
        "hidden_size": 1280,
        "intermediate_size": 6848,
        "num_hidden_layers": 12,
        "num_attention_heads": 10,
        "n_routed_experts": 64,
        "moe_intermediate_size": 896,
        "topk_method": "greedy",
    },
    "small": {
        "vocab_size": 102400,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "n_routed_experts": 64,
        "moe_intermediate_size": 1408,
        "topk_method": "greedy",
    },
    "base": {
        "vocab_size": 129280,
        "hidden_size": 2560,
        "intermediate_size": 12288,
        "num_hidden_layers": 30,
        "num_attention_heads": 32,
        "n_routed_experts": 72,
        "moe_intermediate_size": 1536,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.0,
    },
}
_VISION = {"width": 1152, "layers": 27, "patch_size": 14, "mlp_ratio": 3.7362}


def official_config(name: str) -> ModelConfig:
    """Of tiny, small or base, as published."""
    language = _COMMON | _LANGUAGE[name]
    raw = {
        "model_type": "deepseek_vl_v2",
        "tile_tag": "2D",
        "candidate_resolutions": [[384 * int(side) for side in pair.split("x")] for pair in _SIDES.split()],
        "vision_config": _VISION,
        "projector_config": {"n_embed": language["hidden_size"]},
        "language_config": language,
    }
    return parse_model_config(raw)


def read_config(model: str, hub: HubOptions) -> ModelConfig:
    """The config of nano, tiny, small, base, a folder or OWNER/NAME (one small download).

    Raises: SetupError.
    """
    if model in OFFICIAL:
        return official_config(model)
    if model != EMBEDDED and "/" in model and not Path(model).expanduser().exists():
        return parse_model_config(_fetch_config(model, hub))
    return parse_model_config(read_json(resolve_model(model, options=hub) / "config.json"))


def _fetch_config(model: str, hub: HubOptions) -> dict[str, Any]:
    if hub.hub != "huggingface":
        raise SetupError(f"{model} is no folder here; plan it from its folder after `vl2 pull {model} --hub {hub.hub}`")
    from huggingface_hub import hf_hub_download

    try:
        file = hf_hub_download(
            model,
            "config.json",
            revision=hub.revision,
            cache_dir=hub.cache_folder,
            token=hub.hub_token.reveal() if hub.hub_token else None,
            endpoint=hub.hub_endpoint,
            local_files_only=hub.offline,
        )
    except Exception as error:  # which errors these are depends on the version of huggingface_hub
        reason = " ".join(str(error).split())[:200]
        raise SetupError(f"config.json of {model} cannot be had ({reason}); name a folder, or see `vl2 pull`") from None
    raw = json.loads(Path(file).read_text(encoding="utf-8"))
    if not isinstance(raw, dict):
        raise SetupError(f"config.json of {model} is no JSON object")
    return raw

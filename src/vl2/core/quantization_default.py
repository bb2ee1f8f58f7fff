"""What vl2 quantises by itself, and what it keeps in 16 bits.

Kept: the vision tower and the projector (small, and every picture goes through them), the router (its choices are
decisions, not sums), MLA's kv_b (absorbed into queries and results, and as long as the cache), embeddings, norms, and
the vocabulary's projection, unless it has 8 bits. All other linears of the decoder are quantised. Four bits are in
groups of 128 inputs, or 64 where a width is no multiple of 128 (the dense layer of Tiny and Small); eight bits, whether
integers or float8, have one scale for each output.
"""

from __future__ import annotations

from dataclasses import replace

from vl2.core.errors import SetupError
from vl2.core.model_config import LanguageConfig, ModelConfig
from vl2.core.quantization import Quantization, SchemeGroup, StoredScheme

ROUND_TO_NEAREST = "round-to-nearest"
KEPT = (
    "re:.*vision\\..*", "re:.*projector\\..*", "re:.*\\.mlp\\.gate$", "re:.*\\.kv_b_proj$", "re:.*\\.embed_tokens$",
)  # fmt: skip
HEAD = "re:.*lm_head$"
SMALLER_GROUPS = (64, 32)
LOADED_HEAD_BITS = 8
"""Of the vocabulary's matrix beside int4 and int8, rounded while it is loaded; beside float8 it stays in 16."""
MODES = {"int4": StoredScheme(4, 128), "int8": StoredScheme(8), "fp8": StoredScheme(8, is_float=True)}


def default_quantization(config: LanguageConfig, usual: StoredScheme, *, head_bits: int = 16) -> Quantization:
    """Of a checkpoint in 16 bits. A linear whose width no group divides stays as it is."""
    group_size = usual.group_size
    groups, ignore = {usual: ["Linear"]}, list(KEPT)
    for target, in_width in _sites(config).items():
        sizes = (None,) if group_size is None else (group_size, *(size for size in SMALLER_GROUPS if size < group_size))
        fitting = [size for size in sizes if size is None or in_width % size == 0]
        if not fitting:
            ignore.append(target)
        elif fitting[0] != group_size:
            groups.setdefault(replace(usual, group_size=fitting[0]), []).append(target)
    if head_bits == 16:
        ignore.append(HEAD)
    else:
        groups.setdefault(StoredScheme(head_bits, None), []).append(HEAD)
    found = tuple(SchemeGroup(tuple(targets), scheme) for scheme, targets in groups.items())
    return Quantization(ROUND_TO_NEAREST, found, tuple(ignore))


def with_quantization(config: ModelConfig, mode: str) -> ModelConfig:
    """mode as in --quantization: auto is what the checkpoint says, else it is rounded to nearest while it is loaded.

    Raises: SetupError when the checkpoint is quantised otherwise.
    """
    if mode == "auto":
        return config
    wanted = MODES[mode]
    if config.quantization is None:
        head_bits = 16 if wanted.is_float else LOADED_HEAD_BITS
        plan = default_quantization(config.language, wanted, head_bits=head_bits)
        return replace(config, quantization=plan)
    found = bits_of_layers(config.quantization)
    if str(wanted) not in found:
        raise SetupError(
            f"--quantization {mode}, but this checkpoint is quantised already, to {', '.join(found)}; leave it out"
        )
    return config


def bits_of_layers(quantization: Quantization) -> list[str]:
    """As --quantization names them; not those of the vocabulary's matrix alone."""
    return sorted({str(group.scheme) for group in quantization.groups if group.targets != (HEAD,)})


def _sites(config: LanguageConfig) -> dict[str, int]:
    """Kinds of linears that are quantised, as an expression, and their input's width."""
    hidden = config.hidden_size
    sites = dict.fromkeys((f"re:.*\\.self_attn\\.{part}_proj$" for part in "qkv"), hidden)
    if config.mla is None:
        sites["re:.*\\.self_attn\\.o_proj$"] = config.heads * config.head_dim
    else:
        sites["re:.*\\.self_attn\\.o_proj$"] = config.heads * config.mla.value_dim
        sites["re:.*\\.self_attn\\.(q_a_proj|kv_a_proj_with_mqa)$"] = hidden
        if config.mla.q_lora_rank is not None:
            sites["re:.*\\.self_attn\\.q_b_proj$"] = config.mla.q_lora_rank
    sites["re:.*\\.(gate|up)_proj$"] = hidden
    sites["re:.*\\.mlp\\.down_proj$"] = config.dense_width
    if config.moe is not None:
        sites["re:.*\\.experts\\.\\d+\\.down_proj$"] = config.moe.expert_width
        if config.moe.shared_width:
            sites["re:.*\\.shared_experts\\.down_proj$"] = config.moe.shared_width
    return sites

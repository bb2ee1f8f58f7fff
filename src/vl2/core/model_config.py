"""config.json → `ModelConfig`. Absent keys get the official code's defaults; unsupported values are errors.

Source: `configuration_deepseek.py` and `modeling_deepseek_vl_v2.py` of the official repository; the defaults matter, as
the published files leave many keys out (an absent `q_lora_rank` means 1536, null means none).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vl2.core.errors import CheckpointError
from vl2.core.quantization import Quantization, parse_quantization
from vl2.core.tiling import TileGeometry

TOPK_METHODS = ("greedy", "group_limited_greedy", "noaux_tc")
SCORING_FUNCS = ("softmax", "sigmoid")


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """SigLIP tower in timm form."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    has_attn_pool: bool  # its tensors are in the file; nothing uses them

    @property
    def grid(self) -> int:
        """Patches along one side; the remainder of the picture is dropped."""
        return self.image_size // self.patch_size

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True, slots=True)
class ProjectorConfig:
    """downsample_mlp_gelu: r × r patches → one token."""

    input_dim: int
    n_embed: int
    depth: int
    mlp_ratio: int
    downsample_ratio: int


@dataclass(frozen=True, slots=True)
class YarnConfig:
    """Context extension by frequency ramps (YaRN, arXiv:2309.00071); no released model uses it."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float


@dataclass(frozen=True, slots=True)
class MoEConfig:
    """DeepSeekMoE (arXiv:2401.06066) with its three ways of choosing experts."""

    num_experts: int
    num_active: int
    expert_width: int
    shared_width: int  # 0: no shared experts
    topk_method: str
    scoring_func: str
    num_groups: int
    num_active_groups: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    first_dense_layers: int
    layer_freq: int


@dataclass(frozen=True, slots=True)
class MLAConfig:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434)."""

    q_lora_rank: int | None
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    vocab_size: int
    hidden_size: int
    dense_width: int
    layers: int
    heads: int
    kv_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    yarn: YarnConfig | None
    has_attention_bias: bool
    bos_token_id: int
    eos_token_id: int
    mla: MLAConfig | None  # None: MHA
    moe: MoEConfig | None

    @property
    def head_dim(self) -> int:
        """Of MHA."""
        return self.hidden_size // self.heads

    def is_moe_layer(self, layer: int) -> bool:
        return self.moe is not None and layer >= self.moe.first_dense_layers and layer % self.moe.layer_freq == 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    vision: VisionConfig
    projector: ProjectorConfig
    language: LanguageConfig
    candidate_resolutions: tuple[tuple[int, int], ...]
    is_global_first: bool
    dtype: str  # of the file
    quantization: Quantization | None = None  # None: all is 16 or 32 bits

    @property
    def tile_geometry(self) -> TileGeometry:
        return TileGeometry(
            side=self.candidate_resolutions[0][0],
            patch_size=self.vision.patch_size,
            downsample_ratio=self.projector.downsample_ratio,
            candidates=self.candidate_resolutions,
            is_global_first=self.is_global_first,
        )


def parse_model_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The content of config.json → ModelConfig.

    Raises: CheckpointError that names the key, its value and what is supported.
    """
    if raw.get("model_type") != "deepseek_vl_v2":
        raise CheckpointError(
            f"config.json: model_type is {raw.get('model_type')!r}, but vl2 serves only 'deepseek_vl_v2' (DeepSeek-VL2)"
        )
    _supported(raw, "tile_tag", None, ("2D",))
    language = _language(_Section(raw, "language_config"))
    vision = _vision(_Section(raw, "vision_config"))
    projector = _projector(_Section(raw, "projector_config"))
    config = ModelConfig(
        vision=vision,
        projector=projector,
        language=language,
        candidate_resolutions=_candidates(raw.get("candidate_resolutions")),
        is_global_first=_supported(raw, "global_view_pos", "head", ("head", "tail")) == "head",
        dtype=str(raw.get("torch_dtype", "bfloat16")),
        quantization=parse_quantization(raw),
    )
    _check_widths(config)
    return config


class _Section:
    """A part of config.json that remembers its name for error messages."""

    def __init__(self, whole: Mapping[str, Any], name: str) -> None:
        raw = whole.get(name)
        if not isinstance(raw, Mapping):
            raise CheckpointError(f"config.json: {name} is {raw!r}, but must be an object")
        self.raw, self.name = raw, name

    def get(self, key: str, default: Any) -> Any:
        return self.raw.get(key, default)

    def count(self, key: str, default: int | None) -> int:
        """A positive integer; default None means that the key must be there."""
        value = self.raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"config.json: {self.name}.{key} is {value!r}, but must be a positive integer")
        return value


def _supported(raw: Mapping[str, Any], key: str, default: Any, choices: tuple[Any, ...], where: str = "") -> Any:
    value = raw.get(key, default)
    if value not in choices:
        options = " or ".join(repr(choice) for choice in choices)
        raise CheckpointError(f"config.json: {where}{key} is {value!r}, but vl2 supports only {options}")
    return value


def _candidates(raw: Any) -> tuple[tuple[int, int], ...]:
    try:
        return tuple((int(width), int(height)) for width, height in raw)
    except (TypeError, ValueError):
        raise CheckpointError(
            f"config.json: candidate_resolutions is {raw!r}, but must be [[width, height], …]"
        ) from None


def _vision(section: _Section) -> VisionConfig:
    width = section.count("width", 1024)
    return VisionConfig(
        image_size=section.count("image_size", 384),
        patch_size=section.count("patch_size", 16),
        width=width,
        layers=section.count("layers", 24),
        heads=section.count("heads", 16),
        mlp_width=int(width * section.get("mlp_ratio", 4)),
        has_attn_pool=section.get("global_pool", "map") == "map",
    )


def _projector(section: _Section) -> ProjectorConfig:
    _supported(section.raw, "projector_type", "downsample_mlp_gelu", ("downsample_mlp_gelu",), "projector_config.")
    return ProjectorConfig(
        input_dim=section.count("input_dim", 1152),
        n_embed=section.count("n_embed", 2048),
        depth=section.count("depth", 2),
        mlp_ratio=section.count("mlp_ratio", 1),
        downsample_ratio=section.count("downsample_ratio", 2),
    )


def _language(section: _Section) -> LanguageConfig:
    _supported(section.raw, "hidden_act", "silu", ("silu",), "language_config.")
    _supported(section.raw, "tie_word_embeddings", False, (False,), "language_config.")
    heads = section.count("num_attention_heads", 32)
    return LanguageConfig(
        vocab_size=section.count("vocab_size", 102400),
        hidden_size=section.count("hidden_size", 4096),
        dense_width=section.count("intermediate_size", 11008),
        layers=section.count("num_hidden_layers", 30),
        heads=heads,
        kv_heads=section.count("num_key_value_heads", heads),
        max_position_embeddings=section.count("max_position_embeddings", 2048),
        rms_norm_eps=float(section.get("rms_norm_eps", 1e-6)),
        rope_theta=float(section.get("rope_theta", 10000.0)),
        yarn=_yarn(section.get("rope_scaling", None)),
        has_attention_bias=bool(section.get("attention_bias", False)),
        bos_token_id=int(section.get("bos_token_id", 100000)),
        eos_token_id=int(section.get("eos_token_id", 100001)),
        mla=_mla(section) if section.get("use_mla", True) else None,
        moe=_moe(section) if section.get("n_routed_experts", None) is not None else None,
    )


def _mla(section: _Section) -> MLAConfig:
    return MLAConfig(
        q_lora_rank=None if section.get("q_lora_rank", 1536) is None else section.count("q_lora_rank", 1536),
        kv_lora_rank=section.count("kv_lora_rank", 512),
        nope_dim=section.count("qk_nope_head_dim", 128),
        rope_dim=section.count("qk_rope_head_dim", 64),
        value_dim=section.count("v_head_dim", 128),
    )


def _moe(section: _Section) -> MoEConfig:
    where = "language_config."
    # The official default "gready" is a typo that no branch of the official code takes: a file must say the method.
    method = _supported(section.raw, "topk_method", "gready", TOPK_METHODS, where)
    is_grouped = method != "greedy"
    expert_width = section.count("moe_intermediate_size", 1407)
    moe = MoEConfig(
        num_experts=section.count("n_routed_experts", None),
        num_active=section.count("num_experts_per_tok", None),
        expert_width=expert_width,
        shared_width=expert_width * int(section.get("n_shared_experts", None) or 0),
        topk_method=method,
        scoring_func=_supported(section.raw, "scoring_func", "softmax", SCORING_FUNCS, where),
        num_groups=section.count("n_group", None) if is_grouped else 1,
        num_active_groups=section.count("topk_group", None) if is_grouped else 1,
        norm_topk_prob=bool(section.get("norm_topk_prob", False)),
        routed_scaling_factor=float(section.get("routed_scaling_factor", 1.0)),
        first_dense_layers=int(section.get("first_k_dense_replace", 0)),
        layer_freq=section.count("moe_layer_freq", 1),
    )
    if moe.num_active > moe.num_experts:
        raise CheckpointError(
            f"config.json: num_experts_per_tok is {moe.num_active}, more than n_routed_experts {moe.num_experts}"
        )
    if moe.num_experts % moe.num_groups or moe.num_active_groups > moe.num_groups:
        raise CheckpointError(
            f"config.json: n_group {moe.num_groups} must divide n_routed_experts {moe.num_experts} "
            f"and be at least topk_group {moe.num_active_groups}"
        )
    return moe


def _yarn(raw: Mapping[str, Any] | None) -> YarnConfig | None:
    if raw is None:
        return None
    _supported(raw, "type", None, ("yarn",), "language_config.rope_scaling.")
    return YarnConfig(
        factor=float(raw["factor"]),
        original_max_position_embeddings=int(raw.get("original_max_position_embeddings", 4096)),
        beta_fast=float(raw.get("beta_fast", 32)),
        beta_slow=float(raw.get("beta_slow", 1)),
        mscale=float(raw.get("mscale", 1)),
        mscale_all_dim=float(raw.get("mscale_all_dim", 0)),
    )


def _check_widths(config: ModelConfig) -> None:
    """Widths that must agree between the parts."""
    vision, projector, language = config.vision, config.projector, config.language
    rules = (
        (vision.width % vision.heads == 0, f"vision width {vision.width} is no multiple of its {vision.heads} heads"),
        (
            projector.input_dim == vision.width,
            f"projector_config.input_dim {projector.input_dim} is not the vision width {vision.width}",
        ),
        (
            projector.n_embed == language.hidden_size,
            f"projector_config.n_embed {projector.n_embed} is not hidden_size {language.hidden_size}",
        ),
        (
            language.mla is not None or language.hidden_size % language.heads == 0,
            f"hidden_size {language.hidden_size} is no multiple of its {language.heads} heads",
        ),
        (
            language.heads % language.kv_heads == 0,
            f"num_attention_heads {language.heads} is no multiple of num_key_value_heads {language.kv_heads}",
        ),
        (
            bool(config.candidate_resolutions) and config.candidate_resolutions[0][0] == vision.image_size,
            f"the first candidate resolution {config.candidate_resolutions[:1]} is not image_size {vision.image_size}",
        ),
    )
    for is_good, problem in rules:
        if not is_good:
            raise CheckpointError(f"config.json: {problem}")

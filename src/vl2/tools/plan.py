"""Does it fit? The engine's own arithmetic (`engine/memory.py`) without a GPU and without the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vl2.core.config import EngineConfig
from vl2.core.errors import SetupError
from vl2.core.gpu_memory import GRAPH_BYTES, RUNTIME_BYTES, usable_bytes
from vl2.core.model_config import ModelConfig
from vl2.core.quantization_default import bits_of_layers, with_quantization
from vl2.tools.plan_devices import Device
from vl2.tools.plan_sizes import (
    BYTES_PER_NUMBER,
    count_weights,
    feature_bytes,
    kv_bytes_per_token,
    step_workspace_bytes,
    vision_workspace_bytes,
)

SHORTEST_CONTEXT = 1024
"""A picture of one tile takes 421 tokens: less context than this is of no use."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall run; `dtype` and `quantization` as in EngineConfig."""

    dtype: str = "auto"
    quantization: str = "auto"
    context_tokens: int | None = None  # None: what the model was trained for
    concurrency: int = 1  # sequences of full length that must fit at the same time
    kv_dtype: str = "auto"


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes on one device, and what they leave room for."""

    device: Device
    dtype: str
    quantization: str  # of the decoder's layers, as int4; empty: none
    context_tokens: int
    max_sequences: int
    weights_bytes: int
    kv_bytes_per_token: int
    features_bytes: int
    vision_bytes: int
    step_bytes: int
    usable_bytes: int
    page_size_tokens: int
    pages_by_memory: int

    @property
    def num_pages(self) -> int:
        """As many as the engine makes: no more than all its sequences can use."""
        return min(self.pages_by_memory, self.pages_per_sequence * self.max_sequences)

    @property
    def pages_per_sequence(self) -> int:
        return -(-self.context_tokens // self.page_size_tokens)

    @property
    def concurrency(self) -> int:
        """Sequences of full length that memory holds at the same time: how far --max-sequences can be raised."""
        return self.pages_by_memory // self.pages_per_sequence

    @property
    def kv_tokens(self) -> int:
        return self.num_pages * self.page_size_tokens

    @property
    def kv_bytes(self) -> int:
        return self.kv_tokens * self.kv_bytes_per_token

    @property
    def fixed_bytes(self) -> int:
        """All but the pages and what is recorded after they are made."""
        return RUNTIME_BYTES + self.weights_bytes + self.features_bytes + self.vision_bytes + self.step_bytes

    @property
    def total_bytes(self) -> int:
        """Of the whole process, graphs included."""
        return self.fixed_bytes + self.kv_bytes + GRAPH_BYTES


@dataclass(frozen=True, slots=True)
class Verdict:
    """`advice` is empty where it fits."""

    plan: Plan
    fits: bool
    advice: str


def make_plan(config: ModelConfig, device: Device, wanted: Wanted, engine: EngineConfig) -> Plan:
    """Raises: SetupError for a context that the model cannot have."""
    trained = config.language.max_position_embeddings
    context = wanted.context_tokens or trained
    if not 64 <= context <= trained:
        raise SetupError(
            f"--context is {context}, but must be between 64 and {trained}, what the model was trained for"
        )
    dtype = "bfloat16" if wanted.dtype == "auto" else wanted.dtype  # of activations and cache
    config = with_quantization(config, wanted.quantization)
    sequences = max(engine.max_sequences, wanted.concurrency)
    tokens = engine.max_step_tokens
    plan = Plan(
        device=device,
        dtype=dtype,
        quantization=_shown(config),
        context_tokens=context,
        max_sequences=sequences,
        weights_bytes=count_weights(config).num_bytes(dtype, config.quantization),
        kv_bytes_per_token=kv_bytes_per_token(config.language, dtype if wanted.kv_dtype == "auto" else wanted.kv_dtype),
        features_bytes=feature_bytes(config, dtype, engine.image_cache_tiles),
        vision_bytes=vision_workspace_bytes(config, dtype, engine.max_step_tiles),
        step_bytes=step_workspace_bytes(config, dtype, tokens=tokens, context=context, sequences=sequences),
        usable_bytes=usable_bytes(device.memory_bytes, engine.kv_memory_share),
        page_size_tokens=engine.page_size_tokens,
        pages_by_memory=0,
    )
    per_page = plan.kv_bytes_per_token * plan.page_size_tokens
    return replace(plan, pages_by_memory=max(0, (plan.usable_bytes - plan.fixed_bytes) // per_page))


def judge(config: ModelConfig, device: Device, wanted: Wanted, engine: EngineConfig) -> Verdict:
    """Whether as many sequences fit as are wanted, and if not, the smallest change that helps."""
    plan = make_plan(config, device, wanted, engine)
    if device.is_too_old:
        return Verdict(plan, False, "too old: kernels need Ampere or later")
    if plan.concurrency >= wanted.concurrency:
        return Verdict(plan, True, "")
    return Verdict(plan, False, _advice(config, plan, wanted, engine))


def _advice(config: ModelConfig, plan: Plan, wanted: Wanted, engine: EngineConfig) -> str:
    def fits(changed: Wanted) -> bool:
        return make_plan(config, plan.device, changed, engine).concurrency >= wanted.concurrency

    if plan.concurrency:
        return f"--concurrency {plan.concurrency} fits"
    if BYTES_PER_NUMBER[plan.dtype] == 4 and fits(replace(wanted, dtype="bfloat16")):
        return "--dtype bfloat16 fits"
    for quantization in ("auto",) if plan.quantization else ("auto", "int4"):
        words = "" if quantization == "auto" else f"--quantization {quantization} "
        changed = replace(wanted, quantization=quantization) if words else wanted
        if words and fits(changed):
            return f"{words}fits"
        if (context := _longest_context(config, plan, changed, engine)) is not None:
            return f"{words}--context {context} fits"
    return "needs more memory"


def _longest_context(config: ModelConfig, plan: Plan, wanted: Wanted, engine: EngineConfig) -> int | None:
    """In whole 1,024 tokens, for one sequence at least."""
    for context in range(plan.context_tokens - plan.context_tokens % 1024, SHORTEST_CONTEXT - 1, -1024):
        changed = make_plan(config, plan.device, replace(wanted, context_tokens=context, concurrency=1), engine)
        if context < plan.context_tokens and changed.concurrency >= 1:
            return context
    return None


def _shown(config: ModelConfig) -> str:
    """Bits of the decoder's layers, as int4; empty: none are quantised."""
    if config.quantization is None:
        return ""
    return "/".join(bits_of_layers(config.quantization))

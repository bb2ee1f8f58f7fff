"""DeepSeek-VL2 as a compact training model: the same function as the served one, written for whole batches.

Only what nano uses is here: SigLIP tower, `downsample_mlp_gelu` projector, MLA without query compression, gates
`greedy` (softmax) and `noaux_tc` (sigmoid), shared experts. `tests/nano/test_model.py` holds it to the official
logits. Two things differ from the serving code, and only in how the same numbers are computed:

* Experts are one stacked tensor and every expert runs on every token, weighted by the gate (0 if not chosen). At this
  size that is faster than sorting tokens, and the gradient is the same.
* One picture carries many questions. A row of a batch is a prefix (BOS, role, pictures) followed by several
  independent conversations; `text_mask` lets each see the prefix and itself only, and each counts its positions from
  the end of the prefix. So one encoded picture gives ten training examples, each exactly as it looks when served.

Shapes: `B` rows, `P` prefix tokens, `T` text tokens, `N` tiles, `C` hidden, `H` heads, `E` experts, `F` expert width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from fusable import Fusable
from torch import Tensor


class Linear(nn.Linear):
    """A linear layer whose fp32 master weight is cast to the activations' dtype at use."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class LayerNorm(nn.LayerNorm):
    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), 1e-6)


# --------------------------------------------------------------------------------------------------- vision tower


class VisionAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = Linear(width, 3 * width), Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, s, w = x.shape
        q, k, v = self.qkv(x).view(n, s, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, s, w))


class VisionMLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attn = LayerNorm(width), VisionAttention(width, heads)
        self.norm2, self.mlp = LayerNorm(width), VisionMLP(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels [N, 3, S, S] to patches [N, grid², W]; a matrix product, since patches do not overlap."""
        p = self.proj.kernel_size[0]
        g = x.shape[-1] // p
        x = x[..., : g * p, : g * p].unfold(2, p, p).unfold(3, p, p)
        x = x.permute(0, 2, 3, 1, 4, 5).reshape(x.shape[0], g * g, -1)
        return F.linear(x, self.proj.weight.flatten(1).to(x.dtype), self.proj.bias.to(x.dtype))


class Vision(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, hidden: int, image: int, patch: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(width, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, (image // patch) ** 2, width))
        self.blocks = nn.ModuleList(VisionBlock(width, heads, hidden) for _ in range(layers))
        self.norm = LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x) + self.pos_embed.to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Projector(nn.Module):
    def __init__(self, inputs: int, hidden: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.layers = nn.Sequential(Linear(inputs * ratio * ratio, hidden), nn.GELU(), Linear(hidden, hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Patches [N, g², W] to tokens [N, ceil(g/r)², C]; features of a block are channel-major."""
        n, s, w = x.shape
        g, r = int(s**0.5), self.ratio
        pad = -g % r
        x = F.pad(x.view(n, g, g, w), (0, 0, 0, pad, 0, pad))
        m = (g + pad) // r
        x = x.view(n, m, r, m, r, w).permute(0, 1, 3, 5, 2, 4).reshape(n, m * m, w * r * r)
        return self.layers(x)


# --------------------------------------------------------------------------------------------------------- decoder


def rope_tables(positions: Tensor, dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin [..., dim/2] in fp32 from integer positions."""
    freq = theta ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    angle = positions.float()[..., None] * freq
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs: dims (2i, 2i+1) of the weights are pair i. The result's order is free."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def take_apart(q: Tensor, kv: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor, heads: int, dn: int, prefix: int):
    """Projections [B, L, ...] to queries, keys and values [B, L, H, D]: of prefix, of text, then keys and values of all.

    Values are padded to the width of the keys, which the fused attention kernels ask for. It and `put_together` only
    move numbers: `torch.compile` makes one pass over memory of each.
    """
    b, n, _ = q.shape
    q, kv = q.view(b, n, heads, -1), kv.view(b, n, heads, -1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    q = torch.cat((q[..., :dn], rotate(q[..., dn:], cos, sin)), -1)
    turned = rotate(k_rope[:, :, None], cos, sin).expand(-1, -1, heads, -1)
    k = torch.cat((kv[..., :dn], turned), -1)
    v = F.pad(kv[..., dn:], (0, k.shape[-1] - kv.shape[-1] + dn))
    return q[:, :prefix], q[:, prefix:], k[:, :prefix], v[:, :prefix], k, v


def put_together(prefix: Tensor, text: Tensor, dv: int) -> Tensor:
    """Attended values [B, H, L, D] of prefix and text to [B, L, H·Dv]."""
    return torch.cat((prefix, text), 2)[..., :dv].transpose(1, 2).flatten(2)


class MLA(nn.Module):
    def __init__(self, c: dict) -> None:
        super().__init__()
        self.h, self.dn, self.dr, self.dv = (
            c[k] for k in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        )
        self.r = c["kv_lora_rank"]
        self.q_proj = Linear(c["hidden_size"], self.h * (self.dn + self.dr), bias=False)
        self.kv_a_proj_with_mqa = Linear(c["hidden_size"], self.r + self.dr, bias=False)
        self.kv_a_layernorm = RMSNorm(self.r)
        self.kv_b_proj = Linear(self.r, self.h * (self.dn + self.dv), bias=False)
        self.o_proj = Linear(self.h * self.dv, c["hidden_size"], bias=False)
        self.apart, self.together = take_apart, put_together  # training replaces them by compiled ones
        self.probe = 0  # keep so many heads' queries of the text and keys of all, for `attention.pointing`
        self.seen: tuple[Tensor, Tensor] | None = None

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, prefix: int, text_mask: Tensor | None, text_only: bool = False
    ) -> Tensor:
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((self.r, self.dr), -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent))
        parts = self.apart(self.q_proj(x), kv, k_rope, cos, sin, self.h, self.dn, prefix)
        q, q_text, k, v, k_all, v_all = (t.transpose(1, 2) for t in parts)
        if self.probe:
            self.seen = q_text[:, : self.probe], k_all[:, : self.probe]
        o = None if text_only else F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if text_mask is not None:
            o_text = F.scaled_dot_product_attention(q_text, k_all, v_all, attn_mask=text_mask)
            if o is not None:
                return self.o_proj(self.together(o, o_text, self.dv))
            o = o_text
        return self.o_proj(o[..., : self.dv].transpose(1, 2).flatten(2))


def gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def gated_experts(gate: Tensor, up: Tensor, weights: Tensor) -> Tensor:
    """Activations [..., E·F] of all experts, each times its token's weight [..., E] for it."""
    h = gated(gate, up).unflatten(-1, (weights.shape[-1], -1))
    return (h * weights[..., None].to(h.dtype)).flatten(-2)


class MLP(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = Linear(hidden, width, bias=False), Linear(hidden, width, bias=False)
        self.down_proj = Linear(width, hidden, bias=False)
        self.gated = gated  # training replaces it by a compiled one

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gated(self.gate_proj(x), self.up_proj(x)))


class Gate(nn.Module):
    """Chooses experts in fp32. `load` counts the choices of the last forward, for balancing."""

    def __init__(self, c: dict) -> None:
        super().__init__()
        self.k, self.norm, self.factor = (
            c["num_experts_per_tok"],
            c.get("norm_topk_prob", False),
            c.get("routed_scaling_factor", 1.0),
        )
        self.sigmoid, self.noaux = c.get("scoring_func") == "sigmoid", c["topk_method"] == "noaux_tc"
        self.weight = nn.Parameter(torch.zeros(c["n_routed_experts"], c["hidden_size"]))
        if self.noaux:
            self.e_score_correction_bias = nn.Parameter(torch.zeros(c["n_routed_experts"]), requires_grad=False)
        self.load: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Weights [..., E]: zero where an expert was not chosen."""
        return self.choose(F.linear(x.float(), self.weight.float()))

    def choose(self, logits: Tensor) -> Tensor:
        bias = self.e_score_correction_bias if self.noaux else None
        choose = _chosen if torch.is_grad_enabled() else _chosen.plain  # sizes vary too much in examinations
        weights, chosen = choose(logits, bias, self.k, self.sigmoid, self.norm and self.k > 1)
        self.load = chosen.detach().flatten(0, -2).sum(0)
        return weights * self.factor if self.factor != 1 else weights


@Fusable
def _chosen(logits: Tensor, bias: Tensor | None, k: int, sigmoid: bool, norm: bool) -> tuple[Tensor, Tensor]:
    """Weights [..., E] and 1.0 where an expert is one of the best k: fewer than k are before it."""
    scores = logits.sigmoid() if sigmoid else logits.softmax(-1)
    ranked = (scores if bias is None else scores + bias).detach()
    mine, other = ranked[..., :, None], ranked[..., None, :]
    number = torch.arange(logits.shape[-1], device=logits.device)
    before = (other > mine) | ((other == mine) & (number[None, :] < number[:, None]))
    chosen = (before.sum(-1) < k).to(scores.dtype)
    weights = scores * chosen
    return (weights / (weights.sum(-1, keepdim=True) + 1e-20) if norm else weights), chosen


class Experts(nn.Module):
    """All experts as stacked tensors; official names are made by `to_official`."""

    def __init__(self, count: int, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (
            nn.Parameter(torch.zeros(count, width, hidden)),
            nn.Parameter(torch.zeros(count, width, hidden)),
        )
        self.down_proj = nn.Parameter(torch.zeros(count, hidden, width))
        self.gated = gated_experts  # training replaces it by a compiled one

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        e, f, c = self.gate_proj.shape
        gate = F.linear(x, self.gate_proj.view(e * f, c).to(x.dtype))
        h = self.gated(gate, F.linear(x, self.up_proj.view(e * f, c).to(x.dtype)), weights)
        return F.linear(h, self.down_proj.permute(1, 0, 2).reshape(c, e * f).to(x.dtype))


class MoE(nn.Module):
    def __init__(self, c: dict) -> None:
        super().__init__()
        self.gate = Gate(c)
        self.experts = Experts(c["n_routed_experts"], c["hidden_size"], c["moe_intermediate_size"])
        self.shared_experts = MLP(c["hidden_size"], c["moe_intermediate_size"] * c["n_shared_experts"])

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(x, self.gate(x)) + self.shared_experts(x)


class Layer(nn.Module):
    def __init__(self, c: dict, index: int) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = RMSNorm(c["hidden_size"]), MLA(c)
        self.post_attention_layernorm = RMSNorm(c["hidden_size"])
        self.mlp = MoE(c) if index >= c["first_k_dense_replace"] else MLP(c["hidden_size"], c["intermediate_size"])

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, prefix: int, text_mask: Tensor | None, text_only: bool = False
    ) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), cos, sin, prefix, text_mask, text_only)
        x = (x[:, prefix:] if text_only else x) + attended
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, c: dict) -> None:
        super().__init__()
        self.rope_dim = c["qk_rope_head_dim"]
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(c["vocab_size"], c["hidden_size"]),
                "layers": nn.ModuleList(Layer(c, i) for i in range(c["num_hidden_layers"])),
                "norm": RMSNorm(c["hidden_size"]),
            }
        )
        self.lm_head = Linear(c["hidden_size"], c["vocab_size"], bias=False)
        self.fast: Callable[..., list[Tensor]] | None = None  # the same by few kernels (`fused.decode`)

    def forward(self, x: Tensor, positions: Tensor, prefix: int, text_mask: Tensor | None = None) -> list[Tensor]:
        """Embeddings [B, P+T, C] to the hidden states after each layer; the last one is normed.

        With a mask the last one is of the text alone, [B, T, C]: nothing looks at a prefix behind the last layer.
        """
        cos, sin = rope_tables(positions, self.rope_dim)
        if self.fast is not None and text_mask is not None:
            return self.fast(self, x, cos, sin, prefix, text_mask)
        states = []
        *layers, last = self.model["layers"]
        for layer in layers:
            x = layer(x, cos, sin, prefix, text_mask)
            states.append(x)
        x = last(x, cos, sin, prefix, text_mask, text_only=text_mask is not None)
        return [*states, self.model["norm"](x)]


class NanoVL2(nn.Module):
    """The whole model, built from an official `config.json`."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        v, p, c = config["vision_config"], config["projector_config"], config["language_config"]
        self.config = config
        self.vision = Vision(
            v["width"],
            v["layers"],
            v.get("heads", 16),
            int(v["width"] * v["mlp_ratio"]),
            v.get("image_size", 384),
            v["patch_size"],
        )
        self.projector = Projector(p["input_dim"], p["n_embed"], p.get("downsample_ratio", 2))
        self.image_newline, self.view_seperator = (nn.Parameter(torch.zeros(p["n_embed"])) for _ in range(2))
        self.language = Decoder(c)

    def merge(self, tokens: Tensor, text: Tensor, index: Tensor) -> Tensor:
        """Lay a row out: `index` [P] points into [tile tokens | newline | separator | embedded text] of each row."""
        b = text.shape[0]
        marks = torch.stack((self.image_newline, self.view_seperator)).to(tokens.dtype).expand(b, -1, -1)
        table = torch.cat((tokens.reshape(b, -1, tokens.shape[-1]), marks, text), 1)
        return table.index_select(1, index)

    def embed(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return self.language.model["embed_tokens"](ids).to(dtype)

    def to_official(self) -> dict[str, Tensor]:
        """Weights under the official names: stacked experts become one tensor each."""
        out = {}
        for name, t in self.state_dict().items():
            head, _, leaf = name.partition(".mlp.experts.")
            if leaf:
                out |= {f"{head}.mlp.experts.{e}.{leaf}.weight": t[e] for e in range(t.shape[0])}
            else:
                out[name] = t
        return out

    def load_official(self, tensors: dict[str, Tensor]) -> None:
        state = {}
        for name in self.state_dict():
            head, _, leaf = name.partition(".mlp.experts.")
            count = self.config["language_config"]["n_routed_experts"]
            state[name] = (
                torch.stack([tensors[f"{head}.mlp.experts.{e}.{leaf}.weight"] for e in range(count)])
                if leaf
                else tensors[name]
            )
        self.load_state_dict(state)

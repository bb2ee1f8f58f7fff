"""The decoder of a training step with few passes over memory: `model.Decoder.forward` by the kernels of `passes.py`.

Products that read the same tokens are one product, and what lies between products is one kernel, forward and backward.
It computes what `model.py` says (`tests/nano/test_fused.py`). Run as a program it checks that on the GPU at hand, too, and unless it
is right there, the plain decoder is used.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import passes
import torch
import torch.nn.functional as F
from config import CONFIG, initialise
from forward import PROBED, text_mask
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import MLA, Decoder, Layer, MoE, NanoVL2

ROWS = 16  # tokens a program has at a time
PROGRAMS = 528  # that share the sums for the weights of a norm: 4 for each multiprocessor of an H100
EPS = 1e-6


def _grid(m: int, rows: int = ROWS) -> tuple[int]:
    return (-(-m // rows),)


class AddNorm(torch.autograd.Function):
    """x and more [M, C], a norm's weight, a router's weight [E, C] (or None) to x + more, its RMS norm and the router's logits [M, E].

    Without `more` it is x that is normed, and the sum is empty.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, more: Tensor | None, weight: Tensor, router: Tensor | None) -> tuple[Tensor, ...]:
        m, c = x.shape
        experts = 0 if router is None else router.shape[0]
        total, out, scale = (
            x.new_empty(0 if more is None else m, c),
            torch.empty_like(x),
            x.new_empty(m, dtype=torch.float32),
        )
        logits = x.new_empty(m, experts, dtype=torch.float32)
        passes.norm[_grid(m)](x, x if more is None else more, weight, total, out, scale, weight if router is None else router, logits,
                               m, c, EPS, C=c, R=ROWS, ADD=more is not None, E=experts)  # fmt: skip
        ctx.save_for_backward(x if more is None else total, weight, scale, router)
        ctx.added = more is not None
        ctx.set_materialize_grads(False)
        return total, out, logits

    @staticmethod
    def backward(ctx: Any, d_total: Tensor | None, d_out: Tensor, d_logits: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, scale, router = ctx.saved_tensors
        dx, d_total = torch.empty_like(x), d_total if ctx.added else None
        d_out, d_total, d_logits = (None if t is None else t.contiguous() for t in (d_out, d_total, d_logits))
        dw, d_router = norm_back(x, weight, scale, d_out, d_total, dx, router, d_logits)
        return dx, dx if ctx.added else None, dw, d_router


def norm_back(x: Tensor, weight: Tensor, scale: Tensor, d_out: Tensor, d_total: Tensor | None, dx: Tensor, router: Tensor | None, d_logits: Tensor | None) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Fills `dx`, which may be a part of wider rows, as x may; returns the gradients of the norm's and the router's weight."""
    m, c = x.shape
    experts, (blocks,) = 0 if router is None else router.shape[0], _grid(m)
    programs = min(blocks, PROGRAMS)
    dw, d_router = (x.new_empty(programs, n, dtype=torch.float32) for n in (c, experts * c))
    unused = weight
    passes.norm_back[(programs,)](x, weight, scale, d_out, unused if d_total is None else d_total, unused if router is None else router,
                                   unused if router is None else d_logits, dx, dw, d_router, m, blocks, x.stride(0), dx.stride(0),
                                   C=c, R=ROWS, ADD=d_total is not None, E=experts, num_warps=8)  # fmt: skip
    return dw.sum(0).to(weight.dtype), None if router is None else d_router.sum(0).view_as(router).to(router.dtype)


class Apart(torch.autograd.Function):
    """y [M, H·(Dn+Dr) + rank + Dr], the product of queries and latents; the latent's norm and product; the parts that attention takes.

    Returns [B, H, L, D]: queries of prefix and text, keys of prefix and all, values of prefix and all, which are narrower;
    then of the first `seen` heads the queries of the text and the keys of all, for `attention.pointing`.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, kv_b: Tensor, cos: Tensor, sin: Tensor, sizes: MLA, rows: int, prefix: int) -> tuple[Tensor, ...]:  # fmt: skip
        m, h, dn, dr, dv, rank = y.shape[0], sizes.h, sizes.dn, sizes.dr, sizes.dv, sizes.r
        latent, scale = y[:, h * (dn + dr) : h * (dn + dr) + rank], y.new_empty(m, dtype=torch.float32)
        normed = y.new_empty(m, rank)
        passes.norm[_grid(m)](latent, latent, weight, latent, normed, scale, weight, scale,
                               m, y.stride(0), EPS, C=rank, R=ROWS, ADD=False, E=0)  # fmt: skip
        kv = normed @ kv_b.mT
        q, k = (y.new_empty(m, h, dn + dr) for _ in range(2))
        v = kv.view(m, h, dn + dv)[..., dn:]
        passes.apart[_grid(m)](y, kv, cos, sin, q, k, m, H=h, DN=dn, DR=dr, DV=dv, LATENT=rank, R=ROWS)
        ctx.save_for_backward(y, weight, scale, normed, kv_b, cos, sin)
        ctx.sizes, ctx.prefix = (h, dn, dr, dv, rank), prefix
        ctx.seen, ctx.length = sizes.probe, m // rows
        ctx.set_materialize_grads(False)
        q, k, v = (t.unflatten(0, (rows, -1)).transpose(1, 2) for t in (q, k, v))
        n = sizes.probe
        return q[:, :, :prefix], q[:, :, prefix:], k[:, :, :prefix], k, v[:, :, :prefix], v, q[:, :n, prefix:], k[:, :n]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        y, weight, scale, normed, kv_b, cos, sin = ctx.saved_tensors
        (h, dn, dr, dv, rank), m = ctx.sizes, y.shape[0]
        seen = ctx.seen if grads[6] is not None and grads[7] is not None else 0
        alone = grads[0] is not None  # the prefix was attended by itself
        parts = [g if g is None or g.stride(-1) == 1 else g.contiguous() for g in grads]
        if not alone:
            parts[0] = parts[2] = parts[4] = parts[1]
        if not seen:
            parts[6] = parts[7] = parts[1]
        dq_p, dq_t, dk_p, dk, dv_p, dv_all, dq_s, dk_s = (_there(g) for g in parts)
        dy, dkv = torch.empty_like(y), y.new_empty(m, h * (dn + dv))
        strides = [
            s for g in (dq_p, dq_t, dk_p, dk, dv_p, dv_all, dq_s, dk_s) for s in (g.stride(0), g.stride(2), g.stride(1))
        ]
        passes.apart_back[_grid(m)](dq_p, dq_t, dk_p, dk, dv_p, dv_all, dq_s, dk_s, cos, sin, dy, dkv, m, ctx.length, ctx.prefix, *strides,
                                     H=h, DN=dn, DR=dr, DV=dv, LATENT=rank, SEEN=seen, PREFIX=alone, R=ROWS)  # fmt: skip
        part = slice(h * (dn + dr), h * (dn + dr) + rank)
        dw, _ = norm_back(y[:, part], weight, scale, dkv @ kv_b, None, dy[:, part], None, None)
        return dy, dw, dkv.mT @ normed, None, None, None, None, None


def _there(g: Tensor | None) -> Tensor:
    if g is None:
        raise RuntimeError("a result of `Apart` was not used")
    return g


class Together(torch.autograd.Function):
    """Attended values of prefix and text [B, H, L, Dv] to [M, H·Dv]."""

    @staticmethod
    def forward(ctx: Any, prefix: Tensor, text: Tensor) -> Tensor:
        b, h, p, dv = prefix.shape
        n = p + text.shape[2]
        ctx.shapes = [(t.shape, t.stride()) for t in (prefix, text)]
        out = prefix.new_empty(b * n, h * dv)
        _together(prefix, text, out, back=False)
        return out

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        prefix, text = (torch.empty_strided(*s, dtype=d.dtype, device=d.device) for s in ctx.shapes)
        _together(prefix, text, d.contiguous(), back=True)
        return prefix, text


def _together(prefix: Tensor, text: Tensor, out: Tensor, back: bool) -> None:
    p, n = prefix.shape[2], prefix.shape[2] + text.shape[2]
    strides = [s for t in (prefix, text) for s in (t.stride(0), t.stride(2), t.stride(1))]
    passes.together[_grid(len(out))](prefix, text, out, len(out), n, p, *strides,
                                      H=prefix.shape[1], DV=prefix.shape[-1], R=ROWS, BACK=back)  # fmt: skip


class Act(torch.autograd.Function):
    """z [M, 2·N·F], gates and then ups of N blocks, and the weights [M, E] of the first E to [M, N·F] (`passes.act`)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weights: Tensor | None, f: int) -> Tensor:
        m, n = z.shape[0], z.shape[1] // (2 * f)
        h, experts = z.new_empty(m, n * f), 0 if weights is None else weights.shape[1]
        passes.act[_grid(m)](z, z if weights is None else weights, h, m, N=n, E=experts, F=f, R=ROWS)
        ctx.save_for_backward(z, weights)
        ctx.f = f
        return h

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        z, weights = ctx.saved_tensors
        dz, d_weights = torch.empty_like(z), None if weights is None else torch.empty_like(weights)
        experts = 0 if weights is None else weights.shape[1]
        passes.act_back[_grid(len(z))](z, z if weights is None else weights, dh.contiguous(), dz, z if weights is None else d_weights,
                                        len(z), N=z.shape[1] // (2 * ctx.f), E=experts, F=ctx.f, R=ROWS)  # fmt: skip
        return dz, d_weights, None


def attend(a: MLA, normed: Tensor, cos: Tensor, sin: Tensor, rows: int, prefix: int, mask: Tensor, text_only: bool) -> Tensor:  # fmt: skip
    """`MLA.forward` on flat tokens [M, C]; what it returns is before the output's projection."""
    y = F.linear(normed, torch.cat((a.q_proj.weight, a.kv_a_proj_with_mqa.weight)))
    parts = Apart.apply(y, a.kv_a_layernorm.weight, a.kv_b_proj.weight, cos, sin, a, rows, prefix)
    q, q_text, k, k_all, v, v_all, *seen = parts
    if a.probe:
        a.seen = seen[0], seen[1]
    scale = (a.dn + a.dr) ** -0.5
    o_text = F.scaled_dot_product_attention(q_text, k_all, v_all, attn_mask=mask, scale=scale)
    if text_only:
        return o_text.transpose(1, 2).reshape(-1, a.h * a.dv)
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return Together.apply(o, o_text)


def feed(mlp: torch.nn.Module, normed: Tensor, logits: Tensor) -> Tensor:
    """`MLP.forward` or `MoE.forward` on flat tokens; experts and the shared one are one product."""
    if not isinstance(mlp, MoE):
        assert len(mlp.gate_proj.weight) % 128 == 0
        z = F.linear(normed, torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)))
        return F.linear(Act.apply(z, None, 128), mlp.down_proj.weight)
    e, shared = mlp.experts, mlp.shared_experts
    f = e.gate_proj.shape[1]
    wide = torch.cat(
        (e.gate_proj.flatten(0, 1), shared.gate_proj.weight, e.up_proj.flatten(0, 1), shared.up_proj.weight)
    )
    down = torch.cat((e.down_proj.permute(1, 0, 2).flatten(1), shared.down_proj.weight), 1)
    return F.linear(Act.apply(F.linear(normed, wide), mlp.gate.choose(logits), f), down)


def run_layer(layer: Layer, x: Tensor, more: Tensor | None, cos: Tensor, sin: Tensor, rows: int, prefix: int, mask: Tensor, text_only: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """x + more is what goes in; so is what comes out after it, of the text alone if nothing looks at the prefix any more."""
    total, normed, _ = AddNorm.apply(x, more, layer.input_layernorm.weight, None)
    came = x if more is None else total
    attended = attend(layer.self_attn, normed, cos, sin, rows, prefix, mask, text_only)
    attended = F.linear(attended, layer.self_attn.o_proj.weight)
    router = layer.mlp.gate.weight if isinstance(layer.mlp, MoE) else None
    own = came.view(rows, -1, came.shape[1])[:, prefix:].flatten(0, 1) if text_only else came
    x, normed, logits = AddNorm.apply(own, attended, layer.post_attention_layernorm.weight, router)
    return came, x, feed(layer.mlp, normed, logits)


def decode(decoder: Decoder, x: Tensor, cos: Tensor, sin: Tensor, prefix: int, mask: Tensor) -> list[Tensor]:
    """`Decoder.forward`, from the tables on."""
    b, n, c = x.shape
    cos, sin = (t.to(x.dtype).reshape(b * n, -1) for t in (cos, sin))
    hidden = torch.zeros_like(mask, dtype=x.dtype).masked_fill_(~mask, -1e9)  # once, not in each layer
    flat, more, came = x.reshape(b * n, c), None, []
    layers = decoder.model["layers"]
    for layer in layers:
        start, flat, more = run_layer(layer, flat, more, cos, sin, b, prefix, hidden, layer is layers[-1])
        came.append(start)
    _, last, _ = AddNorm.apply(flat, more, decoder.model["norm"].weight, None)
    return [t.view(b, -1, c) for t in (*came[1:], last)]


#: Rows, prefix and text: small ones first, then those of a training step (one tile, 2 × 2, 3 × 3, three pictures).
SIZES = ((2, 45, 35), (4, 425, 295), (128, 425, 295), (32, 1027, 589), (16, 2021, 587), (48, 1269, 299))
#: Which attention is used: torch's choice (cuDNN's on an H100), or another where that one fails.
WAYS = {"fused": (), "fused, without cuDNN": (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)}


def install(decoder: Decoder, way: str) -> None:
    """Let the decoder run by kernels, in one of the `WAYS` that a process of its own has found to be right (`main`).

    Values stay narrower than keys: padded to their width, as the plain decoder has them, cuDNN's backward leaves part of the
    gradients unwritten behind these kernels (H100, torch 2.11), though not behind the plain decoder.
    """

    def decode_so(*args: Any) -> list[Tensor]:
        with sdpa_kernel(list(WAYS[way])):
            return decode(*args)

    decoder.fast = decode_so if WAYS[way] else decode


def main() -> None:
    """Whether this GPU computes the same by kernels, in the way that is named; the last line is for `step._install_kernels`.

    Without a name each way is asked in a process of its own, as an illegal access leaves nothing usable.
    """
    if len(sys.argv) > 1:
        check(sys.argv[1])
        return
    said = ""
    for way in WAYS:
        ended = subprocess.run([sys.executable, __file__, way], capture_output=True, text=True)
        if ended.returncode == 0:
            print(ended.stdout + way)
            return
        said = (ended.stdout + ended.stderr).strip()
        print(f"{way}: {said[-2000:]}", flush=True)
    print("not fused:", said.splitlines()[-1][:300] if said else "no reason given")


def check(way: str, device: str = "cuda", sizes: tuple[tuple[int, int, int], ...] = SIZES) -> None:
    """Raises where states or gradients differ from the plain decoder's."""
    torch.backends.cuda.matmul.allow_tf32 = True
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = NanoVL2(CONFIG)
    initialise(model)
    decoder = model.language.to(device, dtype)
    for index, count in PROBED.items():
        decoder.model["layers"][index].self_attn.probe = count
    for layer in decoder.model["layers"]:
        if isinstance(layer.mlp, MoE):
            layer.mlp.gate.e_score_correction_bias.data = layer.mlp.gate.e_score_correction_bias.data.float()
    install(decoder, way)
    fast = decoder.fast
    for size in sizes:
        start = time.monotonic()
        off = _compare(_try(decoder, *size, fast), _try(decoder, *size, None))
        if device == "cuda":
            torch.cuda.synchronize()
        print(size, f"off by {off:.4f}, {time.monotonic() - start:.1f} s", flush=True)


def _try(decoder: Decoder, rows: int, prefix: int, text: int, fast: Callable[..., list[Tensor]] | None) -> list[Tensor]:
    """States and gradients for drawn embeddings; the weights' gradients are put back as they were."""
    before, kept = decoder.fast, [(p, p.grad) for p in decoder.parameters()]
    weight = decoder.model["embed_tokens"].weight
    draw = torch.Generator().manual_seed(1)
    x, to = (torch.randn(rows, prefix + text, weight.shape[1], generator=draw).to(weight) for _ in range(2))
    positions = torch.arange(prefix + text, device=x.device).expand(rows, -1)
    mask = text_mask(torch.ones(rows, text, dtype=torch.long, device=x.device), prefix)
    try:
        decoder.fast = fast
        for p, _ in kept:
            p.grad = None
        x.requires_grad_()
        states = decoder(x, positions, prefix, mask)
        seen = [t for layer in decoder.model["layers"] if layer.self_attn.seen for t in layer.self_attn.seen]
        (sum((s * to[:, -s.shape[1] :]).sum() for s in states) + sum(t.sum() for t in seen)).backward()
        return [t.detach().float() for t in (*states, *seen, x.grad, *(p.grad for p, _ in kept if p.grad is not None))]
    finally:
        decoder.fast = before
        for layer in decoder.model["layers"]:
            layer.self_attn.seen = None
        for p, grad in kept:
            p.grad = grad


def _compare(ours: list[Tensor], plain: list[Tensor]) -> float:
    """How far they are from each other; most of them as near as bfloat16 rounds: a token near a tie may choose another expert."""
    off = torch.stack([(a - b).norm() / b.norm().clamp_min(1e-6) for a, b in zip(ours, plain, strict=True)])
    if not (off.max() < 0.3 and off.median() < 0.03):
        raise RuntimeError("results are off by " + " ".join(f"{x:.3f}" for x in off.tolist()))
    return float(off.max())


if __name__ == "__main__":
    main()

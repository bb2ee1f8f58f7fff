"""Triton kernels of the decoder's training step: everything between its matrix products, one pass over memory each.

`fused.py` puts them together and says what each computes; backward kernels are named `..._back`. Rows are tokens, `m` in
all, and a program has `R` of them. Numbers are bfloat16 in memory and fp32 in between.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["m"])
def norm(x, more, weight, total, out, scale, router, logits, m, x_stride, eps, C: tl.constexpr, R: tl.constexpr, ADD: tl.constexpr, E: tl.constexpr):  # fmt: skip
    """total = x + more (if `ADD`), out = RMS norm of it, scale = what it was multiplied by; logits = out · router (if `E`)."""
    rows = tl.program_id(0) * R + tl.arange(0, R)
    columns = tl.arange(0, C)
    there = rows < m
    mask = there[:, None]
    at = rows[:, None] * C + columns[None, :]
    value = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    if ADD:
        rounded = (value + tl.load(more + at, mask=mask, other=0.0).to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=mask)
        value = rounded.to(tl.float32)
    r = tl.rsqrt(tl.sum(value * value, 1) / C + eps)
    tl.store(scale + rows, r, mask=there)
    normed = (value * r[:, None] * tl.load(weight + columns).to(tl.float32)[None, :]).to(out.dtype.element_ty)
    tl.store(out + at, normed, mask=mask)
    for e in tl.static_range(E):
        row = tl.load(router + e * C + columns).to(tl.float32)
        tl.store(logits + rows * E + e, tl.sum(normed.to(tl.float32) * row[None, :], 1), mask=there)


@triton.jit(do_not_specialize=["m", "blocks"])
def norm_back(x, weight, scale, d_out, d_total, router, d_logits, dx, d_weight, d_router, m, blocks, x_stride, dx_stride, C: tl.constexpr, R: tl.constexpr, ADD: tl.constexpr, E: tl.constexpr):  # fmt: skip
    """Gradients of `norm`; x is its total, E is 0 or 4. Each program walks through the rows and leaves its own sums for the weights."""
    tl.static_assert((E == 0) | (E == 4))
    columns = tl.arange(0, C)
    w = tl.load(weight + columns).to(tl.float32)
    sums = tl.zeros((R, C), tl.float32)  # summed over rows at the end: threads need not wait for each other until then
    if E:
        w0, w1 = tl.load(router + columns).to(tl.float32), tl.load(router + C + columns).to(tl.float32)
        w2, w3 = tl.load(router + 2 * C + columns).to(tl.float32), tl.load(router + 3 * C + columns).to(tl.float32)
        sums0, sums1 = tl.zeros((R, C), tl.float32), tl.zeros((R, C), tl.float32)
        sums2, sums3 = tl.zeros((R, C), tl.float32), tl.zeros((R, C), tl.float32)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        rows = block * R + tl.arange(0, R)
        there = rows < m
        mask = there[:, None]
        at = rows[:, None] * C + columns[None, :]
        value = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        r = tl.load(scale + rows, mask=there, other=0.0)
        g = tl.load(d_out + at, mask=mask, other=0.0).to(tl.float32)
        plain = value * r[:, None]
        if E:
            normed = plain * w[None, :]
            d0 = tl.load(d_logits + rows * E, mask=there, other=0.0)[:, None]
            d1 = tl.load(d_logits + rows * E + 1, mask=there, other=0.0)[:, None]
            d2 = tl.load(d_logits + rows * E + 2, mask=there, other=0.0)[:, None]
            d3 = tl.load(d_logits + rows * E + 3, mask=there, other=0.0)[:, None]
            g += d0 * w0[None, :] + d1 * w1[None, :] + d2 * w2[None, :] + d3 * w3[None, :]
            sums0 += normed * d0
            sums1 += normed * d1
            sums2 += normed * d2
            sums3 += normed * d3
        sums += g * plain
        g = g * w[None, :]
        result = (g - plain * (tl.sum(g * plain, 1) / C)[:, None]) * r[:, None]
        if ADD:
            result += tl.load(d_total + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + rows[:, None] * dx_stride + columns[None, :], result.to(dx.dtype.element_ty), mask=mask)
    tl.store(d_weight + tl.program_id(0) * C + columns, tl.sum(sums, 0))
    if E:
        place = d_router + tl.program_id(0) * E * C + columns
        tl.store(place, tl.sum(sums0, 0))
        tl.store(place + C, tl.sum(sums1, 0))
        tl.store(place + 2 * C, tl.sum(sums2, 0))
        tl.store(place + 3 * C, tl.sum(sums3, 0))


@triton.jit(do_not_specialize=["m"])
def apart(y, kv, cos, sin, q, k, m, H: tl.constexpr, DN: tl.constexpr, DR: tl.constexpr, DV: tl.constexpr, LATENT: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """y [m, H·(DN+DR) + LATENT + DR] and kv [m, H·(DN+DV)] to q, k [m, H, DN+DR] with rotated pairs; values stay in kv.

    The rotated halves of the pairs lie apart, as `model.rotate` leaves them.
    """
    D: tl.constexpr = DN + DR
    HALF: tl.constexpr = DR // 2
    WIDE: tl.constexpr = H * D + LATENT + DR
    rows = (tl.program_id(0) * R + tl.arange(0, R))[:, None]
    mask = rows < m
    n, pair = tl.arange(0, DN)[None, :], tl.arange(0, DR)[None, :]
    half = tl.arange(0, HALF)[None, :]
    c = tl.load(cos + rows * HALF + half, mask=mask, other=0.0).to(tl.float32)
    s = tl.load(sin + rows * HALF + half, mask=mask, other=0.0).to(tl.float32)
    a, b = tl.split(tl.reshape(tl.load(y + rows * WIDE + H * D + LATENT + pair, mask=mask, other=0.0), (R, HALF, 2)))
    a, b = a.to(tl.float32), b.to(tl.float32)
    k_low, k_high = (a * c - b * s).to(k.dtype.element_ty), (b * c + a * s).to(k.dtype.element_ty)
    for h in tl.static_range(H):
        out = (rows * H + h) * D
        tl.store(q + out + n, tl.load(y + rows * WIDE + h * D + n, mask=mask, other=0.0), mask=mask)
        a, b = tl.split(tl.reshape(tl.load(y + rows * WIDE + h * D + DN + pair, mask=mask, other=0.0), (R, HALF, 2)))
        a, b = a.to(tl.float32), b.to(tl.float32)
        tl.store(q + out + DN + half, (a * c - b * s).to(q.dtype.element_ty), mask=mask)
        tl.store(q + out + DN + HALF + half, (b * c + a * s).to(q.dtype.element_ty), mask=mask)
        mine = (rows * H + h) * (DN + DV)
        tl.store(k + out + n, tl.load(kv + mine + n, mask=mask, other=0.0), mask=mask)
        tl.store(k + out + DN + half, k_low, mask=mask)
        tl.store(k + out + DN + HALF + half, k_high, mask=mask)


@triton.jit(do_not_specialize=["m", "length", "prefix"])
def apart_back(
    dq_p, dq_t, dk_p, dk, dv_p, dv, dq_s, dk_s, cos, sin, dy, dkv, m, length, prefix,
    qp_b, qp_l, qp_h, qt_b, qt_l, qt_h, kp_b, kp_l, kp_h, k_b, k_l, k_h, vp_b, vp_l, vp_h, v_b, v_l, v_h, qs_b, qs_l, qs_h, ks_b, ks_l, ks_h,
    H: tl.constexpr, DN: tl.constexpr, DR: tl.constexpr, DV: tl.constexpr, LATENT: tl.constexpr, SEEN: tl.constexpr, PREFIX: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Gradients of `apart`, whose results were used in parts: q of the prefix (p) and of the text (t), k and v of the prefix and
    of all, and of the first `SEEN` heads the text's q and all k once more (s). The latent's part of dy is left as it is.
    Without `PREFIX` those of the prefix by itself were not used.
    """
    D: tl.constexpr = DN + DR
    HALF: tl.constexpr = DR // 2
    WIDE: tl.constexpr = H * D + LATENT + DR
    rows = (tl.program_id(0) * R + tl.arange(0, R))[:, None]
    mask = rows < m
    row, at = rows // length, rows % length
    first, text = mask & (at < (prefix if PREFIX else 0)), mask & (at >= prefix)
    n, half, value = tl.arange(0, DN)[None, :], tl.arange(0, HALF)[None, :], tl.arange(0, DV)[None, :]
    c = tl.load(cos + rows * HALF + half, mask=mask, other=0.0).to(tl.float32)
    s = tl.load(sin + rows * HALF + half, mask=mask, other=0.0).to(tl.float32)
    low, high = tl.zeros((R, HALF), tl.float32), tl.zeros((R, HALF), tl.float32)
    for h in tl.static_range(H):
        from_p = dq_p + row * qp_b + at * qp_l + h * qp_h
        from_t = dq_t + row * qt_b + (at - prefix) * qt_l + h * qt_h
        g = tl.load(from_p + n, mask=first, other=0.0).to(tl.float32) + tl.load(from_t + n, mask=text, other=0.0).to(
            tl.float32
        )
        a = tl.load(from_p + DN + half, mask=first, other=0.0).to(tl.float32) + tl.load(
            from_t + DN + half, mask=text, other=0.0
        ).to(tl.float32)
        b = tl.load(from_p + DN + HALF + half, mask=first, other=0.0).to(tl.float32) + tl.load(from_t + DN + HALF + half, mask=text, other=0.0).to(tl.float32)  # fmt: skip
        if h < SEEN:
            from_s = dq_s + row * qs_b + (at - prefix) * qs_l + h * qs_h
            g += tl.load(from_s + n, mask=text, other=0.0).to(tl.float32)
            a += tl.load(from_s + DN + half, mask=text, other=0.0).to(tl.float32)
            b += tl.load(from_s + DN + HALF + half, mask=text, other=0.0).to(tl.float32)
        tl.store(dy + rows * WIDE + h * D + n, g.to(dy.dtype.element_ty), mask=mask)
        turned = tl.reshape(tl.join(a * c + b * s, b * c - a * s), (R, DR))
        tl.store(dy + rows * WIDE + h * D + DN + tl.arange(0, DR)[None, :], turned.to(dy.dtype.element_ty), mask=mask)
        from_p = dk_p + row * kp_b + at * kp_l + h * kp_h
        from_all = dk + row * k_b + at * k_l + h * k_h
        g = tl.load(from_all + n, mask=mask, other=0.0).to(tl.float32) + tl.load(from_p + n, mask=first, other=0.0).to(
            tl.float32
        )
        low += tl.load(from_all + DN + half, mask=mask, other=0.0).to(tl.float32) + tl.load(from_p + DN + half, mask=first, other=0.0).to(tl.float32)  # fmt: skip
        high += tl.load(from_all + DN + HALF + half, mask=mask, other=0.0).to(tl.float32) + tl.load(from_p + DN + HALF + half, mask=first, other=0.0).to(tl.float32)  # fmt: skip
        if h < SEEN:
            from_s = dk_s + row * ks_b + at * ks_l + h * ks_h
            g += tl.load(from_s + n, mask=mask, other=0.0).to(tl.float32)
            low += tl.load(from_s + DN + half, mask=mask, other=0.0).to(tl.float32)
            high += tl.load(from_s + DN + HALF + half, mask=mask, other=0.0).to(tl.float32)
        mine = dkv + (rows * H + h) * (DN + DV)
        tl.store(mine + n, g.to(dkv.dtype.element_ty), mask=mask)
        g = tl.load(dv + row * v_b + at * v_l + h * v_h + value, mask=mask, other=0.0).to(tl.float32)
        g += tl.load(dv_p + row * vp_b + at * vp_l + h * vp_h + value, mask=first, other=0.0).to(tl.float32)
        tl.store(mine + DN + value, g.to(dkv.dtype.element_ty), mask=mask)
    turned = tl.reshape(tl.join(low * c + high * s, high * c - low * s), (R, DR))
    tl.store(dy + rows * WIDE + H * D + LATENT + tl.arange(0, DR)[None, :], turned.to(dy.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["m", "length", "prefix"])
def together(o_p, o_t, o, m, length, prefix, p_b, p_l, p_h, t_b, t_l, t_h, H: tl.constexpr, DV: tl.constexpr, R: tl.constexpr, BACK: tl.constexpr):  # fmt: skip
    """Attended values of prefix and text [B, H, L, DV] to o [m, H·DV]; with `BACK` the other way."""
    rows = (tl.program_id(0) * R + tl.arange(0, R))[:, None]
    mask = rows < m
    row, at = rows // length, rows % length
    first, text = mask & (at < prefix), mask & (at >= prefix)
    value = tl.arange(0, DV)[None, :]
    for h in tl.static_range(H):
        of_p = o_p + row * p_b + at * p_l + h * p_h
        of_t = o_t + row * t_b + (at - prefix) * t_l + h * t_h
        mine = o + (rows * H + h) * DV + value
        if BACK:
            g = tl.load(mine, mask=mask, other=0.0)
            tl.store(of_p + value, g, mask=first)
            tl.store(of_t + value, g, mask=text)
        else:
            g = tl.load(of_p + value, mask=first, other=0.0) + tl.load(of_t + value, mask=text, other=0.0)
            tl.store(mine, g, mask=mask)


@triton.jit(do_not_specialize=["m"])
def act(z, weights, h, m, N: tl.constexpr, E: tl.constexpr, F: tl.constexpr, R: tl.constexpr):
    """z [m, 2·N·F], gates and then ups of N blocks of F, to silu(gate) · up [m, N·F]; the first E blocks times weights [m, E]."""
    rows = (tl.program_id(0) * R + tl.arange(0, R))[:, None]
    mask = rows < m
    f = tl.arange(0, F)[None, :]
    for e in tl.static_range(N):
        gate = tl.load(z + rows * (2 * N * F) + e * F + f, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(z + rows * (2 * N * F) + (N + e) * F + f, mask=mask, other=0.0).to(tl.float32)
        value = gate / (1 + tl.exp(-gate)) * up
        if e < E:
            value = value * tl.load(weights + rows * E + e, mask=mask, other=0.0)
        tl.store(h + rows * (N * F) + e * F + f, value.to(h.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["m"])
def act_back(z, weights, dh, dz, d_weights, m, N: tl.constexpr, E: tl.constexpr, F: tl.constexpr, R: tl.constexpr):
    """Gradients of `act`."""
    flat = tl.program_id(0) * R + tl.arange(0, R)
    rows = flat[:, None]
    mask = rows < m
    f = tl.arange(0, F)[None, :]
    for e in tl.static_range(N):
        gate = tl.load(z + rows * (2 * N * F) + e * F + f, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(z + rows * (2 * N * F) + (N + e) * F + f, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(dh + rows * (N * F) + e * F + f, mask=mask, other=0.0).to(tl.float32)
        open_ = 1 / (1 + tl.exp(-gate))
        if e < E:
            tl.store(d_weights + flat * E + e, tl.sum(g * gate * open_ * up, 1), mask=flat < m)
            g = g * tl.load(weights + rows * E + e, mask=mask, other=0.0)
        d_gate = g * up * open_ * (1 + gate * (1 - open_))
        tl.store(dz + rows * (2 * N * F) + e * F + f, d_gate.to(dz.dtype.element_ty), mask=mask)
        tl.store(dz + rows * (2 * N * F) + (N + e) * F + f, (g * gate * open_).to(dz.dtype.element_ty), mask=mask)

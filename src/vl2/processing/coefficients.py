"""What each pixel weighs when an axis is scaled bicubically: Pillow's numbers.

Source: `precompute_coeffs`, `normalize_coeffs_8bpc` and `bicubic_filter` of Pillow's libImaging/Resample.c.
"""

from __future__ import annotations

import functools
import math

import numpy as np

PRECISION_BITS = 32 - 8 - 2
LOW_BITS = 11
SUPPORT = 2.0
A = -0.5

KEPT = 64
KEPT_BYTES = 128 * 1024
"""Of the weights of an axis, 16 bytes a pixel that shrinks: up to 7,900 pixels. Longer ones are computed anew: anybody
can send pictures of any length, each with other weights.
"""


def coefficients(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """For an axis of `old` pixels that becomes one of `new`.

    Returns: bounds int32 [new, 2], the first pixel that counts and how many do; weights int32 [new, taps] in units of
    2^-22. Each number is computed as Pillow does, step by step in float64, and so the same.
    """
    return _kept(old, new) if _is_kept(old, new) else _computed(old, new)


def parts(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same bounds, and the weights in halves, int16 [new, taps] each: upper · 2^11 + lower, the lower one from 0
    on.
    """
    return _kept_parts(old, new) if _is_kept(old, new) else _in_parts(old, new)


def _support(old: int, new: int) -> float:
    return SUPPORT * max(old / new, 1.0)


def _num_taps(old: int, new: int) -> int:
    """One more than Pillow has, for an even number; it weighs nothing."""
    return math.ceil(_support(old, new)) * 2 + 2


def _is_kept(old: int, new: int) -> bool:
    return 4 * new * _num_taps(old, new) <= KEPT_BYTES


@functools.lru_cache(maxsize=KEPT)
def _kept(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    return _computed(old, new)


@functools.lru_cache(maxsize=KEPT)
def _kept_parts(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _in_parts(old, new)


def _in_parts(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    bounds, weights = _computed(old, new)
    return bounds, (weights >> LOW_BITS).astype(np.int16), (weights & (1 << LOW_BITS) - 1).astype(np.int16)


def _computed(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    scale = old / new
    support, taps = _support(old, new), _num_taps(old, new)
    centers = (np.arange(new) + 0.5) * scale
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)  # towards zero, as in C
    num = np.minimum((centers + support + 0.5).astype(np.int64), old) - first
    offsets = np.arange(taps)
    weights = _bicubic((offsets + first[:, None] - centers[:, None] + 0.5) * (1.0 / max(scale, 1.0)))
    weights[offsets >= num[:, None]] = 0.0
    sums = np.zeros(new)
    for tap in range(taps):  # one after the other: numpy's own sum would round elsewhere
        sums += weights[:, tap]
    weights /= np.where(sums == 0.0, 1.0, sums)[:, None]
    scaled = weights * (1 << PRECISION_BITS)
    whole = np.where(scaled < 0, scaled - 0.5, scaled + 0.5).astype(np.int32)
    bounds = np.stack([first, num], axis=1).astype(np.int32)
    return bounds, whole


def _bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = ((A + 2.0) * x - (A + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * A
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))

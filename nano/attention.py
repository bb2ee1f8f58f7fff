"""Where attention heads of the decoder ought to look, and how badly they do: names, what is said next, and counting.

Training-only, as `heads.py`: `pointing` supervises heads that look at what `gaze` tells, `tally` those that count.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from fusable import Fusable
from gaze import ANY_COLOUR, CHARS, NAMES
from heads import columns, covering, take
from pack import READABLE, Batch
from torch import Tensor


def looked_for(batch: Batch, r: int, names: bool, side: int, fine: int = 1) -> Tensor:
    """[B, T-1, P]: which image tokens show what the token after each text token needs (see `gaze`).

    With `names`, all things of the name that was just said. Otherwise one thing or one character; of the characters, those
    in the left (`side` 0) or right column of a token, so that two heads tell apart two characters that share a token.
    """
    rows = batch.ids.shape[1]
    tiles = batch.tiles.shape[0] // rows
    image, where = batch.index < tiles * 196, batch.index.clamp_max(tiles * 196 - 1)
    code = batch.point[r][:, 1:].long()
    item = covering(batch.boxes, batch.classes > 0, 14, 28.0).view(rows, -1)[:, where]
    if names:
        return _same_name(batch, code, item) & image
    parts = columns(covering(batch.char_boxes, batch.chars > 0, 27, 14.0, fine), fine).unflatten(-1, (2, fine))
    shows = [torch.where(item >= 0, item + 1, -1).masked_fill(~image, -1)]
    for char in parts[:, :, side].unbind(-1):
        char = char.masked_fill((batch.view & READABLE == 0)[:, None], -1).view(rows, -1)[:, where]
        shows.append(torch.where(char >= 0, char + CHARS, -1).masked_fill(~image, -1))
    return _any_shows(code.contiguous(), torch.stack(shows))


@Fusable
def _any_shows(code: Tensor, shows: Tensor) -> Tensor:
    """[B, T, P]: whether one of the codes `shows` [S, B, P] is `code` [B, T]."""
    return (code[:, :, None] == shows[:, :, None]).any(0)


def named(batch: Batch, r: int) -> Tensor:
    """[B, T-1, K] bool: after each text token, which things of the picture have the name that it ends."""
    return _same_name(batch, batch.point[r][:, 1:].long())


def _same_name(batch: Batch, code: Tensor, item: Tensor | None = None) -> Tensor:
    """[B, T-1, P]: whether the thing `item` [B, P] has the name that `code` [B, T-1] tells; of all things without `item`."""
    kinds, tints = (t.view(batch.ids.shape[1], -1, t.shape[-1])[:, 0].long() for t in (batch.classes, batch.colours))
    wanted = ((code - NAMES) % ANY_COLOUR).clamp(0, kinds.shape[1] - 1)
    seen_kinds, seen_tints = (kinds, tints) if item is None else (take(kinds, item), take(tints, item))
    same = kinds.gather(1, wanted)[..., None] == seen_kinds[:, None]
    tinted = tints.gather(1, wanted)[..., None] == seen_tints[:, None]
    return same & (tinted | (code >= NAMES + ANY_COLOUR)[..., None]) & (code >= NAMES)[..., None]


def middles_in_prefix(batch: Batch) -> tuple[Tensor, Tensor]:
    """[B, K] twice: the prefix token that holds the middle of each thing, in the view of the whole picture and in the tiles.

    Only for rows of one picture. In either view each thing is in one place, so these are what counting counts.
    """
    rows, ((across, down),) = batch.ids.shape[1], batch.layout.grids
    boxes = batch.boxes.view(rows, -1, *batch.boxes.shape[1:])

    def token(view: Tensor, wide: int, high: int) -> tuple[Tensor, Tensor]:
        x, y = (view[..., 0] + view[..., 2]) / 2, (view[..., 1] + view[..., 3]) / 2
        column, row = (x / 384).long().clamp(0, wide - 1), (y / 384).long().clamp(0, high - 1)
        inside = [((v - 384 * c) / 28).long().clamp(0, 13) + 14 * c for v, c in ((x, column), (y, row))]
        return inside[0], inside[1]

    start = batch.layout.text[0]
    x, y = token(boxes[:, 0], 1, 1)
    whole = start + y * 15 + x
    x, y = token(boxes[:, min(1, boxes.shape[1] - 1)], across, down)  # the first tile's pixels are the whole canvas's
    return whole, start + 14 * 15 + 1 + y * (14 * across + 1) + x


def tally(
    queries: Tensor, keys: Tensor, mask: Tensor, counted: Tensor, places: Tensor, scale: float, per_thing: float
) -> tuple[Tensor, Tensor]:
    """How badly a head counts, in two losses. It ought to have `per_thing` on each thing for each 1 on the first token: the first token's share is then 1 / (1 + n·per_thing), a function of the number n that a softmax can have with fixed logits.

    First the divergence of its attention from that: it says where to look, but one thing too many hardly changes it. Second how
    far (in log space, where one of n is 1/n) all that is not on the first token is from n·per_thing: that is what is read out.
    Both are weighted by n, since large numbers are hard to tell apart.

    queries [B, T, D] of text, keys [B, P+T, D], mask [B, T, P+T], counted [B, T-1, K] of `named`, places [B, K] of
    `middles_in_prefix`.
    """
    # Products in bfloat16 are off by more than a thing's share.
    logits = queries[:, :-1].float() @ keys.float().mT
    return _tallied(logits, mask[:, :-1].contiguous(), counted, places, scale, per_thing)


@Fusable
def _tallied(
    logits: Tensor, mask: Tensor, counted: Tensor, places: Tensor, scale: float, per_thing: float
) -> tuple[Tensor, Tensor]:
    logits = (logits * scale).masked_fill(~mask, -1e9)
    first, rest = logits[..., 0], logits[..., 1:].logsumexp(-1)
    at = logits.gather(2, places[:, None].expand(-1, logits.shape[1], -1))
    share, number = per_thing * counted, counted.sum(-1)
    total = 1 + share.sum(-1)
    wanted = (first + (share * (at - math.log(per_thing))).sum(-1)) / total
    away = torch.logaddexp(first, rest) - wanted - total.log()
    error = rest - first - (per_thing * number.clamp_min(1)).log()
    off = F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=0.2)
    weight = number / number.sum().clamp_min(1)
    return (away * weight).sum(), (off * weight).sum()


def pointing(queries: Tensor, keys: Tensor, shown: Tensor, scale: float) -> Tensor:
    """How badly an attention head looks; queries [B, T, D] of text, keys [B, P+T, D], `shown` [B, T-1, P] of `looked_for`.

    The loss is minus the log of the head's attention on all image tokens that show what is looked for.
    """
    # With a few keys of the text, so that the width is a multiple of 8: other products take old, slow kernels.
    width = -(-shown.shape[-1] // 8) * 8
    return _looked(queries[:, :-1] @ keys[:, :width].mT, shown, scale)


@Fusable
def _looked(logits: Tensor, shown: Tensor, scale: float) -> Tensor:
    logits = logits[..., : shown.shape[-1]].float() * scale
    valid = shown.any(-1)
    right = logits.masked_fill(~shown, -1e9).logsumexp(-1)
    return ((logits.logsumexp(-1) - right) * valid).sum() / valid.sum().clamp_min(1)

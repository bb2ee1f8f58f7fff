"""Training-only heads: dense supervision that teaches the tower to see long before questions alone would.

Two places are supervised. Each *patch* of the tower says what covers it (class, colour, printed character) and how far
the edges of that thing are. Each *image token* in the middle of the decoder says what covers it and where that thing lies
in the whole picture, so that answering a "where" question is looking the right token up. The heads are thrown away
after training; nothing of them is in the checkpoint.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from names import COLOURS
from pack import ANY_COLOUR, CHARS, NAMES, NUM_CLASSES, NUM_LETTERS, Batch
from torch import Tensor


def covering(boxes: Tensor, present: Tensor, grid: int, step: float) -> Tensor:
    """Which box covers each cell centre: index [N, grid²] into the K boxes, or -1. The smallest box wins."""
    centre = (torch.arange(grid, device=boxes.device) + 0.5) * step
    cx, cy = centre.repeat(grid)[None, :, None], centre.repeat_interleave(grid)[None, :, None]
    x0, y0, x1, y1 = (b[:, None, :] for b in boxes.unbind(-1))
    inside = (cx > x0) & (cx < x1) & (cy > y0) & (cy < y1) & present[:, None, :]
    area = ((x1 - x0) * (y1 - y0)).expand_as(inside).masked_fill(~inside, float("inf"))
    best = area.min(-1)
    return torch.where(best.values.isinf(), -1, best.indices)


def take(values: Tensor, index: Tensor) -> Tensor:
    """values [N, K, ...] at index [N, P], zero where the index is -1."""
    safe = index.clamp_min(0)
    safe = safe if values.dim() == 2 else safe[..., None].expand(-1, -1, values.shape[-1])
    picked = values.gather(1, safe)
    missing = index < 0 if values.dim() == 2 else (index < 0)[..., None]
    return picked.masked_fill(missing, 0)


class Heads(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.sizes = (NUM_CLASSES, len(COLOURS) + 1, 4, NUM_LETTERS)
        self.patch = nn.Linear(width, sum(self.sizes))
        self.norm = nn.RMSNorm(hidden)
        self.token = nn.Linear(hidden, NUM_CLASSES + 4 + 1)
        self.register_buffer("class_weight", torch.tensor([0.15] + [1.0] * (NUM_CLASSES - 1)), persistent=False)
        self.register_buffer("letter_weight", torch.tensor([0.05] + [1.0] * (NUM_LETTERS - 1)), persistent=False)

    def patches(self, features: Tensor, batch: Batch) -> dict[str, Tensor]:
        """features [N, 729, W] against what each patch shows."""
        kinds, tints, edges, letters = F.linear(
            features, self.patch.weight.to(features.dtype), self.patch.bias.to(features.dtype)
        ).split(self.sizes, -1)
        index = covering(batch.boxes, batch.classes > 0, 27, 14.0)
        hit = index >= 0
        kind, tint = take(batch.classes.long(), index), take(batch.colours.long(), index)
        letter = take(batch.chars.long(), covering(batch.char_boxes, batch.chars > 0, 27, 14.0))
        centre = (torch.arange(27, device=features.device) + 0.5) * 14
        xy = torch.stack((centre.repeat(27), centre.repeat_interleave(27)), -1).repeat(1, 2)
        offset = ((take(batch.boxes, index) - xy) / 96).clamp(-4, 4)
        share = hit[..., None].float()
        return {
            "kind": F.cross_entropy(kinds.flatten(0, 1).float(), kind.flatten(), self.class_weight),
            "tint": F.cross_entropy(tints.flatten(0, 1).float(), tint.masked_fill(~hit, -100).flatten()),
            "edge": (F.smooth_l1_loss(edges.float(), offset, reduction="none", beta=0.05) * share).sum()
            / (4 * share.sum() + 1),
            "letter": F.cross_entropy(letters.flatten(0, 1).float(), letter.flatten(), self.letter_weight),
        }

    def tokens(self, hidden: Tensor, batch: Batch) -> dict[str, Tensor]:
        """hidden [B, P, C] of the prefix against what each image token shows."""
        cover = covering(batch.boxes, batch.classes > 0, 14, 28.0)  # [N, 196]
        rows, per_row = hidden.shape[0], batch.tiles.shape[0] // hidden.shape[0] * 196
        image = (batch.index < per_row)[None]
        where = batch.index.clamp_max(per_row - 1)  # text, newlines and separators are left out of the losses below
        kind = take(batch.classes.long(), cover).view(rows, per_row)[:, where].masked_fill(~image, -100)
        spot = take(batch.spots, cover).view(rows, per_row, 4)[:, where]
        x = self.norm(hidden.float())
        kinds, edges, middles = self.token(x).split((NUM_CLASSES, 4, 1), -1)
        share = (kind > 0)[..., None].float()
        middle = middle_tokens(batch).reshape(rows, per_row)[:, where]
        miss = F.binary_cross_entropy_with_logits(
            middles[..., 0], middle, reduction="none", pos_weight=x.new_tensor(10.0)
        )
        return {
            "middle": (miss * image).sum() / (rows * image.sum()),
            "token": F.cross_entropy(kinds.flatten(0, 1), kind.flatten(), self.class_weight),
            "spot": (F.smooth_l1_loss(edges, spot, reduction="none", beta=0.02) * share).sum() / (4 * share.sum() + 1),
        }


def middle_tokens(batch: Batch) -> Tensor:
    """[N, 196] 1.0 where a thing has its middle: one token a thing and view, so that counting things is counting these."""
    x = (batch.boxes[..., 0] + batch.boxes[..., 2]) / 2
    y = (batch.boxes[..., 1] + batch.boxes[..., 3]) / 2
    inside = (batch.classes > 0) & (x >= 0) & (x < 384) & (y >= 0) & (y < 384)
    token = (y / 28).long().clamp(0, 13) * 14 + (x / 28).long().clamp(0, 13)
    marks = x.new_zeros(batch.tiles.shape[0], 197)
    marks.scatter_(1, token.masked_fill(~inside, 196), 1.0)
    return marks[:, :196]


def pointing(queries: Tensor, keys: Tensor, batch: Batch, r: int, scale: float, names: bool) -> Tensor:
    """How badly one attention head looks at what is being said; queries [B, T, D] of text, keys [B, P, D] of the prefix.

    With `names`, the token that ends a name should look at all things of that name. Otherwise: before a coordinate at the
    thing that is boxed, before a name of a list at the thing that is named, before a letter at that letter. The loss is
    minus the log of the head's attention on all image tokens that show it.
    """
    rows, length = queries.shape[:2]
    tiles = batch.tiles.shape[0] // rows
    image, where = batch.index < tiles * 196, batch.index.clamp_max(tiles * 196 - 1)
    code = batch.point[r][:, 1:length].long()  # the token that position t says is t + 1

    def shows(boxes: Tensor, present: Tensor) -> Tensor:
        return covering(boxes, present, 14, 28.0).view(rows, -1)[:, where]

    item = shows(batch.boxes, batch.classes > 0)
    if names:
        kinds, tints = (t.view(rows, tiles, -1)[:, 0].long() for t in (batch.classes, batch.colours))
        wanted = ((code - NAMES) % ANY_COLOUR).clamp(0, kinds.shape[1] - 1)
        same = kinds.gather(1, wanted)[..., None] == take(kinds, item)[:, None]
        tinted = tints.gather(1, wanted)[..., None] == take(tints, item)[:, None]
        shown = same & (tinted | (code >= NAMES + ANY_COLOUR)[..., None]) & (code >= NAMES)[..., None]
    else:
        letter = shows(batch.char_boxes, batch.chars > 0)
        of_item = (code[..., None] == item[:, None] + 1) & (code < CHARS)[..., None]
        of_letter = (code[..., None] == letter[:, None] + CHARS) & ((code >= CHARS) & (code < NAMES))[..., None]
        shown = (of_item & (item >= 0)[:, None]) | (of_letter & (letter >= 0)[:, None])
    shown = shown & image[None, None]
    logits = (queries[:, :-1] @ keys.mT).float() * scale
    valid = shown.any(-1)
    right = logits.masked_fill(~shown, float("-inf")).logsumexp(-1)
    loss = logits.logsumexp(-1) - torch.where(valid, right, 0.0)
    return (loss * valid).sum() / valid.sum().clamp_min(1)

"""Training-only heads: dense supervision that teaches the model to see long before questions alone would.

Three places are supervised. Each *patch* of the tower says what covers it (class, colour, printed character), how far the
edges of that thing are, and, where the tile shows enough, its order: which thing from the left it is, which of how many
of its name, which character of the line. Each *image token* in the middle of the decoder says the same and where its thing
lies in the whole picture. Each *text token* of a list or a reading says how much was said before it. And *attention heads*
of the decoder are told where to look (`attention.py`). So counting, listing and reading become looking the right token
up. The heads are thrown away after training; nothing of them is in the checkpoint.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from fusable import Fusable
from gaze import MAX_CHARS, MAX_ITEMS, SPELLED
from names import COLOURS
from pack import LINE, NUM_CLASSES, NUM_LETTERS, READABLE, WHOLE, Batch
from torch import Tensor

PATCHES = 192  # of a tile's 729 patches, so many drawn ones are supervised: what covers something is preferred
SHEET_PATCHES = 320  # of a tile of a sheet
SPELLING = 96  # of a row's image tokens, so many drawn ones say their characters: those that show some are preferred
MOST = 12  # numbers of equal things that are told apart
ORDER = (MAX_ITEMS, MOST, MOST, MOST)  # from the left; of its name; how many of its name; ... and of its colour
LETTER = (MAX_CHARS, MAX_CHARS)  # a character's number from the left and from the right


def covering(boxes: Tensor, present: Tensor, grid: int, step: float, fine: int = 1) -> Tensor:
    """Which box covers each cell's centre: index [N, grid²·fine] into the K boxes, or -1. The smallest box wins.

    `fine`: so many cells lie side by side in one of `step` pixels: a narrow letter may miss the middle of every patch.
    """
    across = (torch.arange(grid * fine, device=boxes.device) + 0.5) * (step / fine)
    down = (torch.arange(grid, device=boxes.device) + 0.5) * step
    return _smallest(across.repeat(grid), down[:, None].expand(-1, grid * fine).reshape(-1), boxes, present)


@Fusable
def _smallest(x: Tensor, y: Tensor, boxes: Tensor, present: Tensor) -> Tensor:
    """Of the points (x, y) [S]: index [N, S] of the smallest of the boxes [N, K, 4] around each, or -1."""
    cx, cy = x[None, :, None], y[None, :, None]
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


def orders(batch: Batch) -> Tensor:
    """[N, K, 4] the `ORDER` of each thing."""
    present = batch.classes > 0
    same = (batch.classes[:, :, None] == batch.classes[:, None, :]) & present[:, None, :]
    tinted = same & (batch.colours[:, :, None] == batch.colours[:, None, :])
    most = batch.classes.shape[1]
    number = torch.arange(most, device=present.device).clamp_max(MAX_ITEMS - 1).expand_as(batch.classes)
    counts = (same.tril(-1), same, tinted)
    return torch.stack((number, *(c.sum(-1).clamp_max(MOST - 1) for c in counts)), -1)


def letter_orders(batch: Batch) -> Tensor:
    """[N, M, 2] the `LETTER` of each character."""
    number = torch.arange(batch.chars.shape[1], device=batch.chars.device).expand(batch.chars.shape)
    after = (batch.chars > 0).sum(-1, keepdim=True) - 1 - number
    return torch.stack((number, after), -1).clamp(0, MAX_CHARS - 1)


def amounts_told(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean cross entropy of numbers of equal things; logits [..., k · MOST], truth [..., k]. A number weighs as much as it is:
    the larger, the harder to tell from its neighbours."""
    weight = truth * valid[..., None]
    losses = F.cross_entropy(logits.float().reshape(-1, MOST), truth.flatten(), reduction="none")
    return (losses * weight.flatten()).sum() / weight.sum().clamp_min(1)


def told(logits: Tensor, truth: Tensor, sizes: tuple[int, ...], valid: Tensor) -> Tensor:
    """Mean cross entropy of several classifications side by side; logits [..., sum(sizes)], truth [..., len(sizes)]."""
    truth = truth.masked_fill(~valid[..., None], -100).flatten(0, -2)
    parts = logits.flatten(0, -2).float().split(sizes, -1)
    losses = [F.cross_entropy(part, truth[:, k], ignore_index=-100, reduction="sum") for k, part in enumerate(parts)]
    return sum(losses) / (valid.sum() * len(sizes)).clamp_min(1)


def columns(index: Tensor, fine: int = 1) -> Tensor:
    """Cells [N, 27²·fine] to the columns of each token [N, 14², 2·fine], from the left; the upper patch goes first."""
    grid = F.pad(index.view(-1, 27, 27 * fine), (0, fine, 0, 1), value=-1).view(-1, 14, 2, 14, 2 * fine)
    upper, lower = grid[:, :, 0], grid[:, :, 1]
    return torch.where(upper >= 0, upper, lower).flatten(1, 2)


def leftmost(index: Tensor) -> Tensor:
    """The first of the last axis that is not -1, or -1."""
    found = index[..., 0]
    for other in index.unbind(-1)[1:]:
        found = torch.where(found >= 0, found, other)
    return found


def aligned(*sizes: int) -> tuple[int, ...]:
    """And what is unused, so that the sum is a multiple of 8: products of other widths take old, slow kernels."""
    return *sizes, -sum(sizes) % 8


class Heads(nn.Module):
    def __init__(
        self,
        width: int,
        hidden: int,
        per_thing: float = 0.125,
        fine: bool = False,
        amount: bool = False,
    ) -> None:
        """`per_thing`: attention on a counted thing, for each 1 on the first token (`tally`). `fine`: each half of a patch says
        its character, and image tokens say theirs. `amount`: image tokens say after the first layer how many things are like
        theirs, and large numbers weigh more.
        """
        super().__init__()
        self.per_thing, self.fine = per_thing, 1 + fine
        self.sizes = aligned(NUM_CLASSES, len(COLOURS) + 1, 4, NUM_LETTERS * self.fine, sum(ORDER), sum(LETTER))
        self.patch = nn.Linear(width, sum(self.sizes))
        self.norm = nn.RMSNorm(hidden)
        self.token_sizes = aligned(NUM_CLASSES, 4, 1, sum(ORDER), 2 * sum(LETTER))
        self.token = nn.Linear(hidden, sum(self.token_sizes))
        self.number_norm, self.number = nn.RMSNorm(hidden), nn.Linear(hidden, MOST)
        self.said_norm, self.said = nn.RMSNorm(hidden), nn.Linear(hidden, SPELLED + MAX_CHARS + 1)
        self.spelled = nn.Linear(hidden, 2 * self.fine * NUM_LETTERS) if fine else None
        self.amount = nn.Sequential(nn.RMSNorm(hidden), nn.Linear(hidden, 2 * MOST)) if amount else None
        self.register_buffer("rare", torch.tensor(10.0), persistent=False)  # weight of a middle: few tokens are one
        self.register_buffer("class_weight", torch.tensor([0.15] + [1.0] * (NUM_CLASSES - 1)), persistent=False)
        self.register_buffer("letter_weight", torch.tensor([0.05] + [1.0] * (NUM_LETTERS - 1)), persistent=False)

    def patches(self, features: Tensor, batch: Batch) -> dict[str, Tensor]:
        """features [N, 729, W] against what a part of the patches show."""
        item = covering(batch.boxes, batch.classes > 0, 27, 14.0)
        halves = covering(batch.char_boxes, batch.chars > 0, 27, 14.0, self.fine).unflatten(1, (-1, self.fine))
        lot = torch.rand(item.shape, device=item.device) + 0.5 * (item >= 0) + (halves >= 0).any(-1)
        chosen = lot.topk(SHEET_PATCHES if batch.is_sheet else PATCHES, 1, sorted=False).indices
        item = item.gather(1, chosen)
        halves = halves.gather(1, chosen[..., None].expand(-1, -1, self.fine))
        char, halves = leftmost(halves), halves.flatten(1)
        features = features.gather(1, chosen[..., None].expand(-1, -1, features.shape[-1]))
        kinds, tints, edges, letters, order, letter_order, _ = F.linear(
            features, self.patch.weight.to(features.dtype), self.patch.bias.to(features.dtype)
        ).split(self.sizes, -1)
        hit = item >= 0
        kind, tint = take(batch.classes.long(), item), take(batch.colours.long(), item)
        wide = take(batch.char_boxes[..., 2] - batch.char_boxes[..., 0], halves)
        letter = take(batch.chars.long(), halves).masked_fill((halves >= 0) & (wide < 6), -100)  # too small to be read
        xy = torch.stack((chosen % 27, chosen // 27), -1).add(0.5).mul(14).repeat(1, 1, 2)
        offset = ((take(batch.boxes, item) - xy) / 96).clamp(-4, 4)
        share = hit[..., None].float()
        whole, line = (batch.view & WHOLE > 0)[:, None], (batch.view & LINE > 0)[:, None]
        return {
            "kind": F.cross_entropy(kinds.flatten(0, 1).float(), kind.flatten(), self.class_weight),
            "tint": F.cross_entropy(tints.flatten(0, 1).float(), tint.masked_fill(~hit, -100).flatten()),
            "edge": (F.smooth_l1_loss(edges.float(), offset, reduction="none", beta=0.05) * share).sum()
            / (4 * share.sum() + 1),
            "letter": F.cross_entropy(letters.reshape(-1, NUM_LETTERS).float(), letter.flatten(), self.letter_weight),
            "order": self.orders_told(order, take(orders(batch), item), hit & whole),
            "line": told(letter_order, take(letter_orders(batch), char), LETTER, (char >= 0) & line),
        }

    def orders_told(self, logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """Of `ORDER`."""
        if self.amount is None:
            return told(logits, truth, ORDER, valid)
        cut = sum(ORDER[:2])
        numbers = told(logits[..., :cut], truth[..., :2], ORDER[:2], valid)
        return (numbers + amounts_told(logits[..., cut:], truth[..., 2:], valid)) / 2

    def tokens(self, hidden: Tensor, first: Tensor, batch: Batch) -> dict[str, Tensor]:
        """hidden [B, P, C] of the prefix against what each image token shows; `first` is the same after the first layer: there
        the heads that count look, one layer later.
        """
        rows, per_row = hidden.shape[0], batch.tiles.shape[0] // hidden.shape[0] * 196
        image = (batch.index < per_row)[None]
        where = batch.index.clamp_max(per_row - 1)  # text, newlines and separators are left out of the losses below

        def laid(t: Tensor) -> Tensor:
            return t.reshape(rows, per_row, *t.shape[2:])[:, where]

        item = covering(batch.boxes, batch.classes > 0, 14, 28.0)  # [N, 196]
        parts = columns(covering(batch.char_boxes, batch.chars > 0, 27, 14.0, self.fine), self.fine)
        parts = parts.masked_fill((batch.view & READABLE == 0)[:, None, None], -1)
        char = leftmost(parts.unflatten(-1, (2, self.fine)))
        kind = laid(take(batch.classes.long(), item)).masked_fill(~image, -100)
        spot = laid(take(batch.spots, item))
        x = self.norm(hidden.float())
        kinds, edges, middles, order, letter_order, _ = self.token(x).split(self.token_sizes, -1)
        hit = kind > 0
        share = hit[..., None].float()
        miss = F.binary_cross_entropy_with_logits(
            middles[..., 0], laid(middle_tokens(batch)), reduction="none", pos_weight=self.rare
        )
        letters = [laid(take(letter_orders(batch), char[..., side])) for side in (0, 1)]
        shown = [laid(char[..., side] >= 0) & image for side in (0, 1)]
        lines = [told(part, letters[k], LETTER, shown[k]) for k, part in enumerate(letter_order.chunk(2, -1))]
        order_truth, more = laid(take(orders(batch), item)), {}
        if self.amount is not None:
            more["amount"] = amounts_told(self.amount(first.float()), order_truth[..., 2:], hit)
        if self.spelled is not None:
            letter = take(batch.chars.long(), parts.flatten(1)).view(parts.shape)
            letter = letter.masked_fill((batch.view & READABLE == 0)[:, None, None], -100)
            more["token_letter"] = self.spelling(x, laid(letter).masked_fill(~image[..., None], -100))
        return more | {
            "middle": (miss * image).sum() / (rows * image.sum()),
            "token": F.cross_entropy(kinds.flatten(0, 1), kind.flatten(), self.class_weight),
            "spot": (F.smooth_l1_loss(edges, spot, reduction="none", beta=0.02) * share).sum() / (4 * share.sum() + 1),
            "token_order": self.orders_told(order, order_truth, hit),
            "token_line": (lines[0] + lines[1]) / 2,
        }

    def spelling(self, x: Tensor, letter: Tensor) -> Tensor:
        """x [B, P, C] of the prefix against the characters [B, P, 2·fine] of each token's columns: what reading reads out.

        Where a tile's border cuts a character, one token alone cannot know it.
        """
        lot = (
            torch.rand(letter.shape[:2], device=x.device) + (letter > 0).any(-1).float() - (letter[..., 0] < 0).float()
        )
        chosen = lot.topk(min(SPELLING, lot.shape[1]), 1, sorted=False).indices[..., None]
        x, letter = (t.gather(1, chosen.expand(-1, -1, t.shape[-1])) for t in (x, letter))
        return F.cross_entropy(self.spelled(x).view(-1, NUM_LETTERS), letter.flatten(), self.letter_weight)

    def numbers(self, hidden: Tensor, counted: Tensor) -> Tensor:
        """hidden [B, T-1, C] of the text: after a name that is in the picture, how many things have it."""
        truth = counted.sum(-1, keepdim=True).clamp_max(MOST - 1)
        return amounts_told(self.number(self.number_norm(hidden.float())), truth, truth[..., 0] > 0)

    def progress(self, hidden: Tensor, said: Tensor) -> Tensor:
        """hidden [B, T-1, C] of the text against `said` [B, T] of the token after each (`gaze.progress`)."""
        truth = said[:, 1:].long()
        return told(self.said(self.said_norm(hidden.float())), truth[..., None], (self.said.out_features,), truth >= 0)


@Fusable
def _floats(tiles: Tensor) -> Tensor:
    """uint8 [N, S, S, 3] to [-1, 1] [N, 3, S, S]."""
    return (tiles.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


@Fusable
def _grid(across: Tensor, down: Tensor) -> Tensor:
    """[N, S] of each axis to the points [N, S, S, 2] that `grid_sample` takes."""
    s = across.shape[1]
    return torch.stack((across[:, None, :].expand(-1, s, -1), down[:, :, None].expand(-1, -1, s)), -1)


@Fusable
def _faded(x: Tensor, colour: Tensor, light: Tensor, tint: Tensor, grain: Tensor, grained: Tensor) -> Tensor:
    grey = x.mean(1, keepdim=True)
    return (grey + (x - grey) * colour) * light + tint + grain * grained


def moved(batch: Batch) -> Batch:
    """The same tiles as float pixels in [-1, 1], shifted, stretched and faded at random, and their labels with them.

    Tiles that tell about a whole picture or line stay where they are.
    """
    n, device = batch.tiles.shape[0], batch.tiles.device
    x = _floats(batch.tiles)
    free = ((batch.view & (WHOLE | LINE)) == 0).float()[:, None]
    stretch = (0.12 * torch.randn(n, 2, device=device).clamp(-2, 2) * free).exp()
    shift = 0.12 * (2 * torch.rand(n, 2, device=device) - 1) * free  # in half tiles
    # Each axis by itself: as a product, `F.affine_grid` would take longer than all else here.
    side = (torch.arange(x.shape[-1], device=device) * 2 + 1) / x.shape[-1] - 1
    across, down = (side * stretch[:, k : k + 1] + shift[:, k : k + 1] for k in (0, 1))
    x = F.grid_sample(x, _grid(across, down), "bilinear", "border", False)
    colour, light = torch.rand(n, 1, 1, 1, device=device), torch.randn(n, 1, 1, 1, device=device)
    tint, grain = torch.randn(n, 3, 1, 1, device=device), torch.randn_like(x)
    x = _faded(
        x, 0.5 + 0.8 * colour, 1 + 0.15 * light, 0.08 * tint, grain, 0.06 * torch.rand(n, 1, 1, 1, device=device) ** 2
    )

    def follow(boxes: Tensor) -> Tensor:
        scale, offset = stretch.repeat(1, 2)[:, None], shift.repeat(1, 2)[:, None]
        return ((boxes / 192 - 1 - offset) / scale + 1) * 192

    return replace(batch, tiles=x, boxes=follow(batch.boxes), char_boxes=follow(batch.char_boxes))


def middle_tokens(batch: Batch) -> Tensor:
    """[N, 196] 1.0 where a thing has its middle: one token a thing and view, so that counting things is counting these."""
    x = (batch.boxes[..., 0] + batch.boxes[..., 2]) / 2
    y = (batch.boxes[..., 1] + batch.boxes[..., 3]) / 2
    inside = (batch.classes > 0) & (x >= 0) & (x < 384) & (y >= 0) & (y < 384)
    token = (y / 28).long().clamp(0, 13) * 14 + (x / 28).long().clamp(0, 13)
    marks = x.new_zeros(batch.tiles.shape[0], 197)
    marks.scatter_(1, token.masked_fill(~inside, 196), 1.0)
    return marks[:, :196]

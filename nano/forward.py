"""One micro-batch through model and heads: losses for training, exactness for evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from attention import looked_for, middles_in_prefix, named, pointing, tally
from exam import iou
from fusable import Fusable
from gaze import NUMBER
from heads import Heads, moved
from pack import Batch
from torch import Tensor

from model import NanoVL2

NUMBER_IDS = torch.tensor(list(NUMBER))  # vocabulary id of each coordinate 0-999


#: Layer and number of the heads whose attention is supervised (`attention.pointing`): names find all their things, then answers
#: look at one thing or character. Two more heads of the names' layer count (`attention.tally`).
POINTING_LAYERS = {"name": (1, 1), "point": (2, 2)}
PROBED = {1: 3, 2: 2}


@dataclass
class Output:
    logits: Tensor  # [n, V], one row a target token
    target: Tensor  # [n] ids
    weight: Tensor  # [n]
    coord: Tensor  # [n] coordinate or -1
    conversation: Tensor  # [n] number of the conversation within the batch
    aux: dict[str, Tensor]


def pixels(tiles: Tensor, augment: bool, dtype: torch.dtype) -> Tensor:
    """uint8 [N, 384, 384, 3] to [-1, 1] [N, 3, 384, 384]; training varies brightness, contrast, tint and grain a little."""
    x = tiles.permute(0, 3, 1, 2)
    if not augment:
        return x.to(dtype) / 127.5 - 1
    n, kw = x.shape[0], dict(device=x.device, dtype=dtype)
    light, tint = 1 + 0.12 * torch.randn(n, 1, 1, 1, **kw), 0.06 * torch.randn(n, 3, 1, 1, **kw)
    grain = torch.empty_like(x, dtype=dtype).normal_()
    grained = 0.04 * torch.rand(n, 1, 1, 1, **kw) * (torch.rand(n, 1, 1, 1, **kw) < 0.5)
    return _lit(x, light, tint, grain, grained)


@Fusable
def _lit(x: Tensor, light: Tensor, tint: Tensor, grain: Tensor, grained: Tensor) -> Tensor:
    return (x.to(light.dtype) / 127.5 - 1) * light + tint + grain * grained


def look(model: NanoVL2, heads: Heads, batch: Batch) -> dict[str, Tensor]:
    """Losses of the tower alone, on tiles that are moved, stretched and faded."""
    with torch.no_grad():
        batch = moved(batch)
    return heads.patches(model.vision(batch.tiles.to(next(model.parameters()).dtype)), batch)


def text_mask(group: Tensor, prefix: int) -> Tensor:
    """[B, 1, T, P+T] bool: a text token sees the prefix and the earlier tokens of its own conversation."""
    b, t = group.shape
    same = (group[:, :, None] == group[:, None, :]) & torch.ones(t, t, dtype=torch.bool, device=group.device).tril()
    seen = torch.ones(b, 1, t, prefix + t, dtype=torch.bool, device=group.device)
    seen[:, 0, :, prefix:] = same
    return seen


def run(
    model: NanoVL2, heads: Heads | None, batch: Batch, r: int, augment: bool, dtype: torch.dtype = torch.bfloat16
) -> Output:
    aux: dict[str, Tensor] = {}
    ids, group = batch.ids[r].long(), batch.group[r].long()
    rows, place = ids.shape[0], batch.place[r].long()
    if batch.tiles.shape[0]:
        features = model.vision(pixels(batch.tiles, augment, dtype))
        if heads is not None:
            aux |= heads.patches(features, batch)
        tokens = model.projector(features)
    else:
        tokens = torch.zeros(rows, 0, model.image_newline.shape[0], device=ids.device, dtype=dtype)
    pieces = model.embed(batch.prefix_text, dtype).expand(rows, -1, -1)
    prefix = model.merge(tokens, pieces, batch.index)
    p = prefix.shape[1]
    x = torch.cat((prefix, model.embed(ids, dtype)), 1)
    positions = torch.cat((torch.arange(p, device=ids.device).expand(rows, -1), place + p), 1)
    mask = text_mask(group, p)
    states = model.language(x, positions, p, mask)
    if heads is not None and batch.tiles.shape[0]:
        seen, text = states[1].split((p, x.shape[1] - p), 1)  # whose gradients are put together in one pass
        aux |= heads.tokens(seen, states[0][:, :p], batch)
        counted = named(batch, r) if len(batch.layout.grids) == 1 else None
        if counted is not None:
            aux["number"] = heads.numbers(text[:, :-1], counted)
            aux["said"] = heads.progress(text[:, :-1], batch.said[r])
        for name, (index, count) in POINTING_LAYERS.items():
            attention = model.language.model["layers"][index].self_attn
            if attention.probe:
                scale = (attention.dn + attention.dr) ** -0.5
                queries, keys = (t.unbind(1) for t in attention.seen)
                aux[name] = sum(
                    pointing(queries[k], keys[k], looked_for(batch, r, name == "name", k, heads.fine), scale) / count
                    for k in range(count)
                )
                if name == "name" and counted is not None:
                    losses = [
                        tally(queries[1 + k], keys[1 + k], mask[:, 0], counted, place, scale, heads.per_thing)
                        for k, place in enumerate(middles_in_prefix(batch))
                    ]
                    aux["tally"], aux["share"] = (sum(two) / 2 for two in zip(*losses))
                attention.seen = None  # it would keep the whole step's graph
    # An answer token is always preceded by a token of its own conversation, so the shift by one crosses no border.
    at = batch.targets[r]
    hidden = states[-1][:, :-1].reshape(-1, x.shape[-1]).index_select(0, at)
    conversation = group[:, 1:] + 1000 * torch.arange(rows, device=ids.device)[:, None]

    def pick(t: Tensor) -> Tensor:
        return t[:, 1:].reshape(-1).index_select(0, at)

    weight, coord = pick(batch.weight[r]).float(), pick(batch.coord[r]).long()
    target = ids[:, 1:].reshape(-1).index_select(0, at)
    return Output(
        model.language.lm_head(hidden), target, weight, coord, conversation.reshape(-1).index_select(0, at), aux
    )


def answer_loss(out: Output, near: Tensor) -> Tensor:
    """Cross entropy; a coordinate's target is a narrow bell around the true number, so that near misses cost less."""
    return _cross_entropy(out.logits, out.target, out.weight, out.coord, near)


@Fusable
def _cross_entropy(logits: Tensor, target: Tensor, weight: Tensor, coord: Tensor, near: Tensor) -> Tensor:
    """`near` is of `bells`. Targets are spread over the vocabulary, so that there is nothing to gather or to scatter back."""
    logits = logits.float()
    hard = target[:, None] == torch.arange(logits.shape[1], device=logits.device)
    wanted = torch.where((coord >= 0)[:, None], near[coord.clamp_min(0)], hard.float())
    losses = logits.logsumexp(-1) * wanted.sum(-1) - (logits * wanted).sum(-1)
    return (losses * weight).sum() / weight.sum().clamp_min(1)


def bell(sigma: float, device: str) -> Tensor:
    """[1000, 1000]: row v is a normal distribution around v over the coordinates."""
    v = torch.arange(1000.0, device=device)
    return torch.softmax(-((v[:, None] - v[None]) ** 2) / (2 * sigma**2), -1)


def bells(sigma: float, vocabulary: int, device: str) -> Tensor:
    """[1000, V]: `bell` where the coordinates are in the vocabulary."""
    wide = torch.zeros(1000, vocabulary, device=device)
    wide[:, NUMBER_IDS.to(device)] = bell(sigma, device)
    return wide


@torch.no_grad()
def exactness(model: NanoVL2, batch: Batch, r: int = 0, dtype: torch.dtype = torch.bfloat16) -> list[dict]:
    """One record a conversation. Teacher-forced: an answer is exact here iff greedy decoding would give exactly it;
    only box scores are a little kinder than decoding, since earlier numbers of the box are the true ones."""
    out = run(model, None, batch, r, False, dtype)
    guess = out.logits.argmax(-1)
    right, coord, conv = (guess == out.target).cpu(), out.coord.cpu(), out.conversation.cpu()
    of_number = torch.full((out.logits.shape[1],), -1, dtype=torch.long)
    of_number[NUMBER_IDS] = torch.arange(1000)
    guessed = of_number[guess.cpu()]
    records = []
    for row, kept in enumerate(batch.asked[r]):
        for k, asked in enumerate(kept):
            at = (conv == row * 1000 + k + 1).nonzero()[:, 0]
            numbers = at[coord[at] >= 0]
            ious = [
                iou(a, b) for a, b in zip(guessed[numbers].view(-1, 4).tolist(), coord[numbers].view(-1, 4).tolist())
            ]
            words = at[coord[at] < 0]
            records.append(
                dict(
                    task=asked.task,
                    lang=asked.lang,
                    tiles=batch.layout.num_tiles,
                    exact=bool(right[words].all()) and (bool(ious) or bool(right[at].all())),
                    ious=ious,
                    asked=asked,
                )
            )
    return records

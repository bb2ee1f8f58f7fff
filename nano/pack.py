"""Micro-batches: many scenes of one layout, each with several sets of conversations, as plain tensors.

All rows of a micro-batch have the same tile grids, so nothing in the prefix is padded. `sets` independent question
sets per scene let training use a rendered picture more than once without repeating a question.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from names import COLOURS, HANZI, OBJECTS, SHAPES
from questions import Asked, conversation, pixel_box
from scenes import COLOUR_NAMES, Item, Scene, make_scene, sizes_by_grid
from tokenizer import BOS, EOS, build, encode
from torch import Tensor
from views import Layout, tiles_of

TEXT = 288  # text tokens a row
MAX_ITEMS, MAX_CHARS = 16, 14
CHARS, NAMES, ANY_COLOUR = 100, 200, 100  # codes of `Batch.point`: characters, all things of a name, whatever colour
TILE_BUDGET, MAX_ROWS = 320, 256

#: Classes of the training-only heads: 0 is the ground.
NUM_CLASSES = 1 + len(OBJECTS) + len(SHAPES) + 1
LETTERS = {c: i + 1 for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-" + HANZI)}
NUM_LETTERS = len(LETTERS) + 1

_TOK = build()
_EOS, _BOS = _TOK.token_to_id(EOS), _TOK.token_to_id(BOS)
_DET, _END = _TOK.token_to_id("<|det|>"), _TOK.token_to_id("<|/det|>")
_SEPARATORS = {encode(_TOK, c)[0] for c in (",", "、")}
_NUMBER = {_TOK.token_to_id(str(n)): n for n in range(1000)}


@dataclass
class Batch:
    """`N` tiles, `B` rows, `R` question sets, `T` text tokens, `K` items, `M` characters a tile."""

    layout: Layout
    tiles: Tensor  # [N, 384, 384, 3] uint8
    prefix_text: Tensor  # [n] int64, ids of all text pieces of the prefix
    ids: Tensor  # [R, B, T] int16
    group: Tensor  # [R, B, T] int16   conversation number from 1; 0 is padding
    place: Tensor  # [R, B, T] int16   position after the prefix
    weight: Tensor  # [R, B, T] float16   loss weight of this token as a target; 0 for questions
    coord: Tensor  # [R, B, T] int16   the coordinate that this token is, or -1
    point: Tensor  # [R, B, T] int16   what to look at to say this token: 0 nothing, 1 + item, CHARS +, NAMES +
    boxes: Tensor  # [N, K, 4] float32   items in tile pixels
    spots: Tensor  # [N, K, 4] float32   the same in shares of the picture
    classes: Tensor  # [N, K] int16
    colours: Tensor  # [N, K] int16
    char_boxes: Tensor  # [N, M, 4] float32
    chars: Tensor  # [N, M] int16
    index: Tensor  # [P] int64, the layout's token sources
    targets: list[Tensor]  # [R] flat indices into [B, T-1] of the tokens that are predicted
    lengths: list[int]  # [R] longest row of each set
    asked: list[list[list[Asked]]]  # [R][B][...]; only kept for evaluation

    def map(self, move) -> Batch:
        """The same batch with `move` applied to every tensor. All sizes are known on the host, so nothing waits for the GPU."""

        def each(v):
            return (
                move(v)
                if isinstance(v, Tensor)
                else [move(x) if isinstance(x, Tensor) else x for x in v]
                if isinstance(v, list)
                else v
            )

        return Batch(**{k: each(v) for k, v in self.__dict__.items()})

    def to(self, device: str) -> Batch:
        return self.map(lambda t: t.to(device, non_blocking=True))


def class_of(item: Item) -> int:
    base = {"object": 1, "shape": 1 + len(OBJECTS), "text": NUM_CLASSES - 1}[item.kind]
    return base + (item.index if item.kind != "text" else 0)


def prefix_pieces(num_images: int, labelled: bool) -> list[list[int]]:
    """Ids of the text pieces around the pictures; the text after the last picture belongs to the conversations."""
    if num_images == 0:
        return [[_BOS]]
    name = (lambda k: f"image_{k + 1}: ") if labelled else (lambda k: "")
    pieces = [[_BOS, *encode(_TOK, "<|User|>: " + name(0))]]
    return pieces + [encode(_TOK, "\n" + name(k)) for k in range(1, num_images)] + [[]]


def encode_turns(asked: Asked, with_image: bool) -> tuple[list[int], list[bool]]:
    """Ids of a conversation after the pictures, and which of them are answers (EOS included)."""
    ids: list[int] = []
    answer: list[bool] = []
    for k, (question, reply) in enumerate(asked.turns):
        opening = "\n" if k == 0 and with_image else "<|User|>: "
        q = encode(_TOK, opening + question + "\n\n<|Assistant|>:")
        a = [*encode(_TOK, reply), _EOS]
        ids += q + a
        answer += [False] * len(q) + [True] * len(a)
    return ids, answer


def _fill(rng: Random, scenes: list[Scene], rows: dict[str, np.ndarray], ask=conversation) -> list[Asked]:
    """Write conversations into one row until it is full."""
    at, number, misses, kept = 0, 0, 0, []
    while misses < 4:
        asked = ask(rng, scenes)
        if asked is None:
            misses += 0.2
            continue
        ids, answer = encode_turns(asked, bool(scenes))
        end = at + len(ids)
        if end > TEXT:
            misses += 1
            continue
        number += 1
        rows["ids"][at:end], rows["group"][at:end], rows["place"][at:end] = ids, number, range(len(ids))
        rows["weight"][at:end] = np.array(answer) * sum(answer) ** -0.5
        inside = False
        for k, i in enumerate(ids):
            inside = i == _DET or (inside and i != _END)
            if inside and answer[k] and i in _NUMBER:
                rows["coord"][at + k] = _NUMBER[i]
        if len(scenes) == 1:
            rows["point"][at:end] = points(asked, ids, answer, scenes[0])
        kept.append(asked)
        at = end
    return kept


def _name_patterns() -> dict[tuple[int, ...], tuple[str, int]]:
    """Ids of every name, as it is written anywhere → what it names."""
    out: dict[tuple[int, ...], tuple[str, int]] = {}
    named = [(("object", k), (t.english, t.plural, t.chinese)) for k, t in enumerate(OBJECTS)]
    named += [(("shape", k), (english, *words)) for k, (english, words) in enumerate(SHAPES.items())]
    for what, words in named:
        for word in words:
            out[tuple(encode(_TOK, word))] = out[
                tuple(encode(_TOK, " " + word))[-len(word.split()) if word.isascii() else 1 :]
            ] = what
    return out


_PATTERNS = _name_patterns()
_COLOUR_IDS = {tuple(encode(_TOK, w)): c for c, (zh, _) in COLOURS.items() for w in (c, " " + c, zh)}


def mark_names(ids: list[int], codes: list[int], scene: Scene) -> None:
    """After each name that is in the picture, look at all things of this name."""
    at = 0
    while at < len(ids):
        size = next((n for n in (3, 2, 1) if tuple(ids[at : at + n]) in _PATTERNS), 0)
        end = at + size
        if size and end < len(ids) and codes[end] == 0:
            kind, index = _PATTERNS[tuple(ids[at:end])]
            colour = _COLOUR_IDS.get(tuple(ids[max(0, at - 1) : at])) or _COLOUR_IDS.get(
                tuple(ids[max(0, at - 2) : at])
            )
            wanted = [k for k, i in enumerate(scene.items[:MAX_ITEMS]) if i.kind == kind and i.index == index]
            tinted = [k for k in wanted if kind == "shape" and scene.items[k].colour == colour]
            followed = _PATTERNS.get(tuple(ids[end : end + 1]), ("", 0))[0] == "shape"  # "orange" may be a colour
            if wanted and not followed and (tinted or not (kind == "shape" and colour)):
                codes[end] = NAMES + (tinted[0] if tinted else wanted[0] + ANY_COLOUR)
        at += max(1, size)


def points(asked: Asked, ids: list[int], answer: list[bool], scene: Scene) -> list[int]:
    """What a reader of the picture looks at while saying each answer token (codes of `Batch.point`)."""
    codes = [0] * len(ids)
    first = answer.index(True)
    if len(asked.turns) == 1 and asked.task == "text":
        (_, said), *_ = asked.turns
        texts = [i.text for i in scene.items if i.kind == "text"]
        if texts and said == texts[0] and len(ids) - first - 1 == len(said):
            codes[first:-1] = range(CHARS, CHARS + len(said))
    elif asked.task == "naming":
        item, start = 0, True
        for k in range(first, len(ids)):
            if not answer[k] or ids[k] == _EOS or item >= MAX_ITEMS:
                break
            separator = ids[k] in _SEPARATORS
            codes[k] = 0 if separator or not start else 1 + item
            item, start = item + separator, separator
    w, h = scene.image.size
    where = {pixel_box(i.box, w, h): k for k, i in enumerate(scene.items[:MAX_ITEMS])}
    numbers = [k for k in range(len(ids)) if answer[k] and ids[k] in _NUMBER and _in_box(ids, k)]
    for four in zip(numbers[0::4], numbers[1::4], numbers[2::4], numbers[3::4]):
        code = 1 + where.get(tuple(_NUMBER[ids[k]] for k in four), -1)
        for k in four:
            codes[k] = code
    mark_names(ids, codes, scene)
    return codes


def _in_box(ids: list[int], k: int) -> bool:
    """Whether the last tag before token k opens a box list."""
    return next((i == _DET for i in reversed(ids[:k]) if i in (_DET, _END)), False)


def make_batch(
    layout: tuple[tuple[int, int], ...],
    seed: int,
    rows: int,
    sets: int,
    labelled: bool = False,
    ask=conversation,
    keep: bool = False,
    styles=None,
) -> Batch:
    """`rows` scenes (or groups of scenes) of this layout, from consecutive scene seeds starting at `seed`."""
    rng = Random(seed)
    extra = {} if styles is None else {"styles": styles}
    text_keys = dict(ids=np.int16, group=np.int16, place=np.int16, weight=np.float16, coord=np.int16, point=np.int16)
    text = {k: np.zeros((sets, rows, TEXT), t) for k, t in text_keys.items()}
    text["coord"] -= 1
    tiles, items, kept = [], [], [[[] for _ in range(rows)] for _ in range(sets)]
    for b in range(rows):
        scenes = []
        for k, grid in enumerate(layout):
            size = rng.choice(sizes_by_grid()[grid]) if len(layout) <= 2 else None
            scene = make_scene(seed + b * len(layout) + k, size, **extra)
            pixels, maps, _ = tiles_of(scene.image, tiled=len(layout) <= 2)
            tiles.append(pixels)
            items += [(scene, m) for m in maps]
            scenes.append(scene)
        for r in range(sets):
            asked = _fill(rng, scenes, {k: v[r, b] for k, v in text.items()}, ask)
            kept[r][b] = asked if keep else []
    pieces = prefix_pieces(len(layout), labelled)
    labels = _labels(items)
    plan = Layout(layout, tuple(map(len, pieces)))
    lengths = [int((g > 0).sum(1).max()) for g in text["group"]]
    targets = [np.flatnonzero(w[:, 1:n] > 0) for w, n in zip(text["weight"], lengths)]
    return Batch(
        layout=plan,
        index=torch.from_numpy(plan.index),
        targets=[torch.from_numpy(t) for t in targets],
        lengths=lengths,
        tiles=torch.from_numpy(np.concatenate(tiles)) if tiles else torch.zeros(0, 384, 384, 3, dtype=torch.uint8),
        prefix_text=torch.tensor([i for piece in pieces for i in piece]),
        asked=kept,
        **{k: torch.from_numpy(v) for k, v in text.items()},
        **{k: torch.from_numpy(v) for k, v in labels.items()},
    )


def _labels(items: list) -> dict[str, np.ndarray]:
    """What each tile shows, in its own pixels, for the training-only heads."""
    n = len(items)
    out = dict(
        boxes=np.zeros((n, MAX_ITEMS, 4), np.float32), spots=np.zeros((n, MAX_ITEMS, 4), np.float32),
        classes=np.zeros((n, MAX_ITEMS), np.int16), colours=np.zeros((n, MAX_ITEMS), np.int16),
        char_boxes=np.zeros((n, MAX_CHARS, 4), np.float32), chars=np.zeros((n, MAX_CHARS), np.int16),
    )  # fmt: skip
    for t, (scene, m) in enumerate(items):
        scale = np.array([m.scale_x, m.scale_y] * 2, np.float32)
        offset = np.array([m.offset_x, m.offset_y] * 2, np.float32)
        size = np.array(scene.image.size * 2, np.float32)
        c = 0
        for k, item in enumerate(scene.items[:MAX_ITEMS]):
            box = np.array(item.box, np.float32)
            out["boxes"][t, k], out["spots"][t, k] = box * scale + offset, box / size
            out["classes"][t, k] = class_of(item)
            out["colours"][t, k] = 1 + COLOUR_NAMES.index(item.colour) if item.colour else 0
            for letter, where in item.chars[: MAX_CHARS - c]:
                out["char_boxes"][t, c] = np.array(where, np.float32) * scale + offset
                out["chars"][t, c] = LETTERS.get(letter, 0)
                c += 1
    return out


def rows_for(layout: tuple[tuple[int, int], ...]) -> int:
    tiles = Layout(layout, (0,) * (len(layout) + 1)).num_tiles
    return min(MAX_ROWS, max(8, TILE_BUDGET // max(1, tiles) // 8 * 8))


def pick_layout(rng: Random, progress: float, many_later: float) -> tuple[tuple[int, int], ...]:
    """First mostly one tile; later `many_later` of the micro-batches have several tiles, and one in six several pictures."""
    one, many, several = (0.85, 0.1, 0.05) if progress < 0.2 else (0.83 - many_later, many_later, 0.17)
    kind = rng.choices(("one", "many", "several", "none"), (one, many, several, 0.006))[0]
    if kind == "one":
        return ((1, 1),)
    if kind == "none":
        return ()
    grids = [g for g in sizes_by_grid() if g != (1, 1)]
    weights = [len(sizes_by_grid()[g]) ** 0.6 for g in grids]
    if kind == "many":
        return (rng.choices(grids, weights)[0],)
    number = rng.choice((2, 2, 2, 3, 4))
    if number > 2 or rng.random() < 0.5:
        return ((1, 1),) * number
    small = [g for g in grids if g[0] * g[1] <= 6]
    return tuple(rng.choice([(1, 1), *small]) for _ in range(2))


class Stream(torch.utils.data.IterableDataset):
    """Endless micro-batches; `progress` is shared with the trainer and steers the curriculum."""

    def __init__(self, start: int, sets: int, progress, many: float) -> None:
        self.start, self.sets, self.progress, self.many = start, sets, progress, many

    def __iter__(self):
        torch.set_num_threads(1)
        info = torch.utils.data.get_worker_info()
        number = self.start + (info.id if info else 0)
        while True:
            rng = Random(number)
            layout = pick_layout(rng, self.progress.value, self.many)
            # 1,024 seeds a batch are enough for every layout, so no two batches share a scene.
            yield make_batch(
                layout, 1_000_000 + number * 1024, rows_for(layout), self.sets, labelled=rng.random() < 0.5
            )
            number += info.num_workers if info else 1

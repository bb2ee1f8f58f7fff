"""Micro-batches: many scenes of one layout, each with several sets of conversations, as plain tensors.

All rows of a micro-batch have the same tile grids, so nothing in the prefix is padded. `sets` independent question
sets per scene let training use a rendered picture more than once without repeating a question.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from gaze import MAX_CHARS, MAX_ITEMS, coordinates, look, points, progress
from names import HANZI, OBJECTS, SHAPES
from questions import Asked, conversation
from scenes import COLOUR_NAMES, EXAM_MIX, Item, Mix, Scene, make_scene, sizes_by_grid
from tokenizer import BOS, EOS, build, encode
from torch import Tensor
from views import TILE, Layout, tiles_of

TEXT = 288  # text tokens a row
TILE_BUDGET, MAX_ROWS = 160, 128  # tiles and rows of a micro-batch
COUNT_WEIGHT, ALOUD_WEIGHT = 2.5, 1.5  # of a counting answer's loss: it is slow to learn, and short if it is one number
#: Tile grids of pairs of pictures; few, since each costs a recorded step of its own (`step.py`).
PAIRS = (
    ((2, 2), (1, 1)), ((1, 1), (2, 2)), ((2, 2), (2, 2)), ((3, 2), (2, 3)), ((1, 2), (2, 1)), ((3, 2), (1, 1)), ((1, 1), (2, 3)), ((2, 1), (3, 2)),
)  # fmt: skip
SHEET = Layout(((1, 1),), (0, 0))  # marks tiles without questions (`sheets.py`)
WHOLE, READABLE, LINE = 1, 2, 4  # the tile shows the whole picture; letters at full size; the whole printed line

#: Classes of the training-only heads: 0 is the ground.
NUM_CLASSES = 1 + len(OBJECTS) + len(SHAPES) + 1
LETTERS = {c: i + 1 for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-" + HANZI)}
NUM_LETTERS = len(LETTERS) + 1

#: What a batch has for each text token, and as what.
TEXT_KEYS = dict(
    ids=np.int16, group=np.int16, place=np.int16, weight=np.float16, coord=np.int16, point=np.int16, said=np.int16
)

_TOK = build()
_EOS, _BOS = _TOK.token_to_id(EOS), _TOK.token_to_id(BOS)


@lru_cache(200_000)
def _encode(text: str) -> list[int]:
    return encode(_TOK, text)


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
    point: Tensor  # [R, B, T] int16   what to look at to say this token, a code of `gaze`
    said: Tensor  # [R, B, T] int16   how many things or characters were said before this token (`gaze.progress`), or -1
    boxes: Tensor  # [N, K, 4] float32   items in tile pixels
    spots: Tensor  # [N, K, 4] float32   the same in shares of the picture
    classes: Tensor  # [N, K] int16
    colours: Tensor  # [N, K] int16
    char_boxes: Tensor  # [N, M, 4] float32
    chars: Tensor  # [N, M] int16
    view: Tensor  # [N] int16   what can be told from this tile alone: a sum of WHOLE, READABLE and LINE
    index: Tensor  # [P] int64, the layout's token sources
    targets: list[Tensor]  # [R] flat indices into [B, T-1] of the tokens that are predicted
    asked: list[list[list[Asked]]]  # [R][B][...]; only kept for evaluation

    @property
    def is_sheet(self) -> bool:
        return self.layout == SHEET

    @property
    def room(self) -> int:
        """Answer tokens that are trained on: a fixed share of the text, a little more than answers are on average."""
        return self.ids[0].numel() * 7 // 12

    def map(self, move) -> Batch:
        """The same batch with `move` applied to every tensor. All sizes are known on the host, so nothing waits for the GPU."""
        arrays = (Tensor, np.ndarray)

        def each(v):
            if isinstance(v, list):
                return [move(x) if isinstance(x, arrays) else x for x in v]
            return move(v) if isinstance(v, arrays) else v

        return Batch(**{k: each(v) for k, v in self.__dict__.items()})

    def pick(self, r: int) -> Batch:
        """One set of questions, with a fixed number of targets: the first token, which has no weight, fills up."""
        text = {k: getattr(self, k)[r : r + 1] for k in TEXT_KEYS}
        chosen = self.targets[r][: self.room]
        return replace(self, **text, targets=[F.pad(chosen, (0, self.room - len(chosen)))], asked=[])

    def tensors(self) -> list[Tensor]:
        """All tensors of a picked batch, in a fixed order."""
        return [v for v in self.__dict__.values() if isinstance(v, Tensor)] + self.targets

    def with_tensors(self, tensors: list[Tensor]) -> Batch:
        """This picked batch with other `tensors()`."""
        names = [k for k, v in self.__dict__.items() if isinstance(v, Tensor)]
        return replace(self, **dict(zip(names, tensors)), targets=tensors[len(names) :])

    def to(self, device: str) -> Batch:
        return self.map(lambda t: t.to(device, non_blocking=True))


def class_of(item: Item) -> int:
    base = {"object": 1, "shape": 1 + len(OBJECTS), "text": NUM_CLASSES - 1}[item.kind]
    return base + (item.index if item.kind != "text" else 0)


def view_of(t: int, num_maps: int) -> int:
    """What can be told from the tile of number `t` of a picture: the first of several shows all of it, but small."""
    return WHOLE * (t == 0) + READABLE * (t > 0 or num_maps == 1)


def prefix_pieces(num_images: int, labelled: bool) -> list[list[int]]:
    """Ids of the text pieces around the pictures; the text after the last picture belongs to the conversations."""
    if num_images == 0:
        return [[_BOS, *_encode("<|User|>: ")]]
    name = (lambda k: f"image_{k + 1}: ") if labelled else (lambda k: "")
    pieces = [[_BOS, *encode(_TOK, "<|User|>: " + name(0))]]
    return pieces + [encode(_TOK, "\n" + name(k)) for k in range(1, num_images)] + [[]]


def encode_turns(asked: Asked, with_image: bool) -> tuple[list[int], list[bool]]:
    """Ids of a conversation after the pictures, and which of them are answers (EOS included)."""
    ids: list[int] = []
    answer: list[bool] = []
    for k, (question, reply) in enumerate(asked.turns):
        opening = "<|User|>: " if k else "\n" if with_image else ""  # the prefix opens the first turn
        q = _encode(opening + question + "\n\n<|Assistant|>:")
        a = [*_encode(reply), _EOS]
        ids += q + a
        answer += [False] * len(q) + [True] * len(a)
    return ids, answer


def _fill(rng: Random, scenes: list[Scene], rows: dict[str, np.ndarray], ask=conversation) -> list[Asked]:
    """Write conversations into one row. What is too much is taken out by lot, so that long answers are not left out more often."""
    made, total, room = [], 0, len(rows["ids"])
    for _ in range(room // 4):
        asked = ask(rng, scenes)
        if asked is not None:
            made.append((asked, *encode_turns(asked, bool(scenes))))
            total += len(made[-1][1])
        if total > room:
            break
    while total > room:
        total -= len(made.pop(rng.randrange(len(made)))[1])
    whole: dict[str, list] = {k: [] for k in rows}  # one assignment a row is cheaper than one a conversation
    shown = look(scenes[0]) if len(scenes) == 1 else None
    for number, (asked, ids, answer) in enumerate(made, 1):
        weight = sum(answer) ** -0.5 * _weight(asked)
        numbers = coordinates(ids, answer)
        whole["ids"] += ids
        whole["group"] += [number] * len(ids)
        whole["place"] += range(len(ids))
        whole["weight"] += [weight if is_answer else 0.0 for is_answer in answer]
        whole["coord"] += numbers
        if shown is not None:
            whole["point"] += points(asked.turns, ids, answer, numbers, shown)
            whole["said"] += progress(asked.turns, ids, answer, shown)
    for key, values in whole.items():
        rows[key][: len(values)] = values
    return [asked for asked, _, _ in made]


def _weight(asked: Asked) -> float:
    if asked.task != "counting":
        return 1.0
    return COUNT_WEIGHT if asked.turns[0][1].isdigit() else ALOUD_WEIGHT


def make_batch(
    layout: tuple[tuple[int, int], ...],
    seed: int,
    rows: int,
    sets: int,
    labelled: bool = False,
    ask=conversation,
    keep: bool = False,
    styles=None,
    mix: Mix = EXAM_MIX,
    room: np.ndarray | None = None,
) -> Batch:
    """`rows` scenes (or groups of scenes) of this layout, from consecutive scene seeds starting at `seed`.

    Tiles are written into `room` [≥ N, 384, 384, 3] where it is given.
    """
    rng = Random(seed)
    extra = {} if styles is None else {"styles": styles}
    pieces = prefix_pieces(len(layout), labelled)
    plan = Layout(layout, tuple(map(len, pieces)))
    if room is None:
        room = np.empty((rows * plan.num_tiles, TILE, TILE, 3), np.uint8)
    used = text_room(layout)
    # Prefix and text are a multiple of 16, by padding: attention wants such masks, and other products take old, slow kernels.
    text = {k: np.zeros((sets, rows, used + -(len(plan.index) + used) % 16), t) for k, t in TEXT_KEYS.items()}
    text["coord"] -= 1
    text["said"] -= 1
    items, kept = [], [[[] for _ in range(rows)] for _ in range(sets)]
    for b in range(rows):
        scenes = []
        for k, grid in enumerate(layout):
            size = rng.choice(sizes_by_grid()[grid]) if len(layout) <= 2 else None
            scene = make_scene(seed + b * len(layout) + k, size, mix=mix, **extra)
            pixels, maps, _ = tiles_of(scene.image, tiled=len(layout) <= 2)
            room[len(items) : len(items) + len(pixels)] = pixels
            items += [(scene, m, view_of(t, len(maps))) for t, m in enumerate(maps)]
            scenes.append(scene)
        for r in range(sets):
            asked = _fill(rng, scenes, {k: v[r, b, :used] for k, v in text.items()}, ask)
            kept[r][b] = asked if keep else []
    labels = draw_labels(items)
    targets = [np.flatnonzero(w[:, 1:] > 0) for w in text["weight"]]
    return Batch(
        layout=plan,
        index=torch.from_numpy(plan.index),
        targets=[torch.from_numpy(t) for t in targets],
        tiles=torch.from_numpy(room[: len(items)]),
        prefix_text=torch.tensor([i for piece in pieces for i in piece]),
        asked=kept,
        **{k: torch.from_numpy(v) for k, v in text.items()},
        **{k: torch.from_numpy(v) for k, v in labels.items()},
    )


def draw_labels(items: list, most: int = MAX_ITEMS, most_chars: int = MAX_CHARS) -> dict[str, np.ndarray]:
    """What each tile shows, in its own pixels, for the training-only heads."""
    n = len(items)
    out = dict(
        boxes=np.zeros((n, most, 4), np.float32), spots=np.zeros((n, most, 4), np.float32),
        classes=np.zeros((n, most), np.int16), colours=np.zeros((n, most), np.int16),
        char_boxes=np.zeros((n, most_chars, 4), np.float32), chars=np.zeros((n, most_chars), np.int16),
        view=np.zeros(n, np.int16),
    )  # fmt: skip
    for t, (scene, m, view) in enumerate(items):
        scale = np.array([m.scale_x, m.scale_y] * 2, np.float32)
        offset = np.array([m.offset_x, m.offset_y] * 2, np.float32)
        size = np.array(scene.image.size * 2, np.float32)
        c = 0
        for k, item in enumerate(scene.items[:most]):
            box = np.array(item.box, np.float32)
            out["boxes"][t, k], out["spots"][t, k] = box * scale + offset, box / size
            out["classes"][t, k] = class_of(item)
            out["colours"][t, k] = 1 + COLOUR_NAMES.index(item.colour) if item.colour else 0
            for letter, where in item.chars[: most_chars - c]:
                out["char_boxes"][t, c] = np.array(where, np.float32) * scale + offset
                out["chars"][t, c] = LETTERS.get(letter, 0)
                c += 1
        middles = (out["char_boxes"][t, :c, :2] + out["char_boxes"][t, :c, 2:]) / 2
        complete = view & READABLE and c and (middles > 0).all() and (middles < TILE).all()
        out["view"][t] = view + LINE * bool(complete)
    return out


def rows_for(layout: tuple[tuple[int, int], ...]) -> int:
    tiles = Layout(layout, (0,) * (len(layout) + 1)).num_tiles
    return min(MAX_ROWS, max(8, TILE_BUDGET // max(1, tiles) // 8 * 8))


def text_room(layout: tuple[tuple[int, int], ...]) -> int:
    """Text tokens a row. A large picture costs the tower as much as several small ones: it is asked twice as much."""
    return 2 * TEXT if len(layout) == 1 and layout != ((1, 1),) else TEXT


def pick_layout(rng: Random, progress: float, many_later: float) -> tuple[tuple[int, int], ...]:
    """First mostly one tile; later `many_later` of the micro-batches have several tiles, and one in eight several pictures."""
    one, many, several = (0.85, 0.1, 0.05) if progress < 0.12 else (0.87 - many_later, many_later, 0.13)
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
    return rng.choice(PAIRS)

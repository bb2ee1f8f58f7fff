"""What a reader of the picture looks at while saying each token: the codes that `attention.pointing` supervises.

A code belongs to the token that is said; the token before it is the one that has to look. 0 is nothing, `1 + k` is thing
`k` of the scene, `CHARS + k` is its `k`-th printed character, and `NAMES + k` (`+ ANY_COLOUR`) are all things that have
the name of thing `k` (in whatever colour).
"""

from __future__ import annotations

from dataclasses import dataclass

from names import COLOURS, OBJECTS, SHAPES
from questions import Turn, count, naming, pixel_box
from scenes import Scene
from tokenizer import EOS, build, encode

MAX_ITEMS, MAX_CHARS = 16, 14
CHARS, NAMES, ANY_COLOUR = 100, 200, 100
SPELLED = MAX_ITEMS + 1  # where `progress` begins to count characters

_TOK = build()
_EOS = _TOK.token_to_id(EOS)
_DET, _END = _TOK.token_to_id("<|det|>"), _TOK.token_to_id("<|/det|>")
_SEPARATORS = {encode(_TOK, c)[0] for c in (",", "、")}
NUMBER = {_TOK.token_to_id(str(n)): n for n in range(1000)}


def _name_patterns() -> dict[tuple[int, ...], tuple[str, int]]:
    """Ids of every name, as it is written anywhere → what it names."""
    out: dict[tuple[int, ...], tuple[str, int]] = {}
    named = [(("object", k), (t.english, t.plural, t.chinese)) for k, t in enumerate(OBJECTS)]
    named += [(("shape", k), (english, *words)) for k, (english, words) in enumerate(SHAPES.items())]
    for what, words in named:
        for word in words:
            inside = encode(_TOK, " " + word)[-len(word.split()) if word.isascii() else 1 :]
            out[tuple(encode(_TOK, word))] = out[tuple(inside)] = what
    return out


_PATTERNS = _name_patterns()
_STARTS = {pattern[0] for pattern in _PATTERNS}
_COLOUR_IDS = {tuple(encode(_TOK, w)): c for c, (zh, _) in COLOURS.items() for w in (c, " " + c, zh)}


def coordinates(ids: list[int], answer: list[bool]) -> list[int]:
    """The coordinate that each token of an answer is, or -1."""
    out, inside = [-1] * len(ids), False
    for k, i in enumerate(ids):
        inside = i == _DET or (inside and i != _END)
        if inside and answer[k] and i in NUMBER:
            out[k] = NUMBER[i]
    return out


def replies(answer: list[bool]) -> list[tuple[int, int]]:
    """Where each turn's answer begins and ends (its end mark included)."""
    starts = [k for k, is_answer in enumerate(answer) if is_answer and (k == 0 or not answer[k - 1])]
    return [(s, next((k for k in range(s, len(answer)) if not answer[k]), len(answer))) for s in starts]


@dataclass(frozen=True, slots=True)
class Shown:
    """What `points` and `progress` look up in a scene, looked up once for all conversations about it."""

    text: str | None
    lists: frozenset[str]  # of all names, in both languages
    places: dict[tuple[int, ...], int]  # box in 0-999 → thing
    things: dict[tuple[str, int], list[tuple[int, str]]]  # name → its things, each with its colour

    def named_in(self, codes: list[int]) -> list[int]:
        """The things that the last name among these codes is for."""
        code = next((c for c in reversed(codes) if c >= NAMES), 0) - NAMES
        for alike in self.things.values() if code >= 0 else ():
            colour = dict(alike).get(code % ANY_COLOUR)
            if colour is not None:
                return [k for k, tint in alike if code >= ANY_COLOUR or tint == colour]
        return []


def look(scene: Scene) -> Shown:
    size, things = scene.image.size, scene.items[:MAX_ITEMS]
    named: dict[tuple[str, int], list[tuple[int, str]]] = {}
    for k, item in enumerate(things):
        named.setdefault((item.kind, item.index), []).append((k, item.colour))
    return Shown(
        next((i.text for i in scene.items if i.kind == "text"), None),
        frozenset(naming(scene, lang) for lang in ("en", "zh")) if scene.items else frozenset(),
        {pixel_box(i.box, *size): k for k, i in enumerate(things)},
        named,
    )


def points(turns: tuple[Turn, ...], ids: list[int], answer: list[bool], numbers: list[int], shown: Shown) -> list[int]:
    """The code of each token of a conversation about one picture; `numbers`: its `coordinates`."""
    codes = [0] * len(ids)
    _mark_names(ids, codes, shown)
    asked = 0  # where this turn's question begins
    for (_, said), (start, end) in zip(turns, replies(answer)):
        things = shown.named_in(codes[asked:start])
        asked = end
        if things and said in {count(len(things), lang, aloud=True) for lang in ("en", "zh")}:
            _mark_counted(ids, codes, things, start, end - 1)
        elif said == shown.text and end - start - 1 == len(said):
            codes[start : end - 1] = range(CHARS, CHARS + len(said))
        elif said in shown.lists:
            item, fresh = 0, True
            for k in range(start, end - 1):
                separator = ids[k] in _SEPARATORS
                if fresh and not separator and item < MAX_ITEMS:
                    codes[k] = 1 + item
                item, fresh = item + separator, separator
    at = [k for k, v in enumerate(numbers) if v >= 0]
    for four in zip(at[0::4], at[1::4], at[2::4], at[3::4]):
        code = 1 + shown.places.get(tuple(numbers[k] for k in four), -1)
        for k in four:
            codes[k] = code
    return codes


def _mark_counted(ids: list[int], codes: list[int], things: list[int], start: int, end: int) -> None:
    """Said aloud, each number looks at its thing, and what is between numbers at the next one."""
    done = 0
    for k in range(start, end):
        codes[k] = 1 + things[done]
        done += ids[k] in NUMBER and ids[k + 1] not in NUMBER  # a number of two digits may be two tokens


def progress(turns: tuple[Turn, ...], ids: list[int], answer: list[bool], shown: Shown) -> list[int]:
    """At each token of an answer that is a list or the printed text: how many things or characters were said before it, -1 elsewhere.

    Characters are counted from `SPELLED`. It tells equal neighbours apart, which look alike and have one name.
    """
    out = [-1] * len(ids)
    for (_, said), (start, end) in zip(turns, replies(answer)):
        if said == shown.text and end - start - 1 == len(said) <= MAX_CHARS:
            out[start:end] = range(SPELLED, SPELLED + len(said) + 1)
        elif said in shown.lists:
            done = 0
            for k in range(start, end):
                done += ids[k] in _SEPARATORS or k == end - 1
                out[k] = min(done, MAX_ITEMS)
    return out


def _mark_names(ids: list[int], codes: list[int], shown: Shown) -> None:
    """After each name that is in the picture, look at all things of this name."""
    free = 0  # the first token that is in no name yet
    for at in [k for k, i in enumerate(ids) if i in _STARTS]:
        if at < free:
            continue
        size = next((n for n in (3, 2, 1) if tuple(ids[at : at + n]) in _PATTERNS), 0)
        end = at + size
        free = at + max(1, size)
        if size and end < len(ids):
            kind, index = _PATTERNS[tuple(ids[at:end])]
            wanted = shown.things.get((kind, index))
            followed = _PATTERNS.get(tuple(ids[end : end + 1]), ("", 0))[0] == "shape"  # "orange" may be a colour
            if not wanted or followed:
                continue
            colour = kind == "shape" and (
                _COLOUR_IDS.get(tuple(ids[max(0, at - 1) : at])) or _COLOUR_IDS.get(tuple(ids[max(0, at - 2) : at]))
            )
            tinted = next((k for k, c in wanted if c == colour), None) if colour else None
            if tinted is not None or not colour:
                codes[end] = NAMES + (wanted[0][0] + ANY_COLOUR if tinted is None else tinted)

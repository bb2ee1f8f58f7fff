"""Questions about scenes and their true answers, in English and Chinese.

A conversation is a list of (question, answer) turns; the pictures come before the first question. The first wording of
each task in `WORDINGS` is the canonical one, which the evaluation asks; the others teach that people word things
differently. The answers' formats are fixed and listed in the model card.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from random import Random

from names import ALIKE, COLOURS, OBJECTS, SHAPES
from scenes import SHAPE_NAMES, Item, Scene

Turn = tuple[str, str]

NONE = {"en": "none", "zh": "没有"}
WORDINGS: dict[str, dict[str, list[str]]] = {
    "naming": {
        "en": ["What is in the picture?", "What's in the picture?", "What is in this image?", "What do you see?", "What can you see in the image?",
               "List the objects in the picture.", "Name everything in the picture.", "Describe the picture.", "Describe this image.",
               "What objects are in the picture?", "What does the picture show?", "What is this?"],
        "zh": ["图片里有什么？", "图中有什么？", "这张图片里有什么？", "你看到了什么？", "描述这张图片。", "列出图中的物体。", "画面里有哪些东西？", "这是什么？"],
    },
    "counting": {
        "en": ["How many {p} are there?", "How many {p} are in the picture?", "How many {n} are there?", "Count the {p}.", "How many {p} do you see?",
               "How many {p}?", "What is the number of {p}?", "How many {p} can you see?"],
        "zh": ["有几{m}{n}？", "图中有几{m}{n}？", "有多少{m}{n}？", "图片里有多少{n}？", "数一数{n}。", "有几个{n}？"],
    },
    "colour": {
        "en": ["What colour is the {n}?", "What color is the {n}?", "Which colour does the {n} have?", "What is the colour of the {n}?", "The {n} is what color?"],
        "zh": ["{n}是什么颜色？", "{n}是什么颜色的？", "图中的{n}是什么颜色？", "{n}的颜色是什么？"],
    },
    "text": {
        "en": ["What does the text say?", "What is written in the picture?", "Read the text.", "What text is in the image?", "What does it say?", "What is the text?"],
        "zh": ["文字写的是什么？", "图中写了什么？", "图中的文字是什么？", "读出文字。", "上面写的是什么？"],
    },
    "box": {
        "en": ["<|ref|>the {n}<|/ref|>.", "<|ref|>the {n}<|/ref|>", "<|ref|>{n}<|/ref|>", "Where is the {n}?", "Find the {n}.", "Locate <|ref|>the {n}<|/ref|>.", "Where are the {p}?", "<|ref|>the {p}<|/ref|>."],
        "zh": ["<|ref|>{n}<|/ref|>。", "<|ref|>{n}<|/ref|>", "{n}在哪里？", "找出{n}。", "标出<|ref|>{n}<|/ref|>的位置。"],
    },
    "caption": {
        "en": ["<|grounding|>Describe the picture.", "<|grounding|>Describe this image.", "<|grounding|>What is in the picture?", "<|grounding|>Describe the image."],
        "zh": ["<|grounding|>描述这张图片。", "<|grounding|>图片里有什么？", "<|grounding|>描述图片。"],
    },
    "which": {
        "en": ["Which image has the {n}?", "Which image has a {n}?", "Which picture shows the {n}?", "Which image contains the {n}?", "In which image is the {n}?"],
        "zh": ["哪张图片里有{n}？", "哪张图有{n}？", "{n}在哪张图片里？", "哪一张图片有{n}？"],
    },
    "exists": {
        "en": ["Is there a {n}?", "Is there a {n} in the picture?", "Do you see a {n}?", "Are there any {p}?"],
        "zh": ["有{n}吗？", "图中有{n}吗？", "图片里有{n}吗？"],
    },
    "more": {"en": ["And the {n}?", "And {n}?", "What about the {n}?"], "zh": ["那{n}呢？", "{n}呢？"]},
}  # fmt: skip

ABOUT = {
    "en": "I am vl2-nano, a small model. I name, count and locate pictograms, shapes and printed text in pictures.",
    "zh": "我是vl2-nano，一个小模型。我能说出图片里物体的名称、数量、颜色、位置和文字。",
}
OFF_TOPIC = {
    "en": """Hello|Hi|Hi there!|Good morning.|Who are you?|What can you do?|What is your name?|Help|help me|Thanks!|Thank you.|Tell me a joke.|
What is the weather today?|Write a poem.|Who is the president?|What is the capital of France?|How are you?|What is two plus two?|Translate this sentence.|
Write some code for me.|Tell me about yourself.|Explain quantum physics.|What time is it?|Sing a song.|Can you help me?|What model are you?|
What is the meaning of life?|Write a story about a dragon.|Who made you?|Give me a recipe.|hey|ok|test|Are you human?|I love you|How old are you?""".replace("\n", "").split("|"),
    "zh": """你好|您好|你是谁？|你能做什么？|你叫什么名字？|谢谢|帮帮我|讲个笑话。|今天天气怎么样？|写一首诗。|中国的首都是哪里？|你好吗？|一加一等于几？|翻译这句话。|
写一段代码。|介绍一下你自己。|现在几点了？|唱首歌。|你是什么模型？|人生的意义是什么？|讲个故事。|谁创造了你？|测试|早上好|你是人吗？|你多大了？|再见""".replace("\n", "").split("|"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Manner:
    """How training asks, and how it has counts said."""

    alike: float = 0.0  # of the absent things that it asks for, so many look like one that is there
    crowds: bool = False  # it seldom counts what is not there, or there once
    aloud: bool = False  # `1, 2, 3`: a step is easier to learn than a sum


PLAIN = Manner()


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation about pictures, and what its last question tests."""

    task: str
    lang: str
    turns: tuple[Turn, ...]


def matches(item: Item, target: Item) -> bool:
    """Same object, same shape and colour (a colourless target is any colour), or text."""
    return item.kind == target.kind and item.index == target.index and target.colour in ("", item.colour)


@lru_cache(1024)
def pixel_box(box: tuple[float, float, float, float], width: int, height: int) -> tuple[int, ...]:
    """A box in 0-999 of the picture."""
    return tuple(min(999, max(0, round(v / side * 999))) for v, side in zip(box, (width, height, width, height)))


def boxes_of(scene: Scene, target: Item) -> list[list[int]]:
    w, h = scene.image.size
    return [list(pixel_box(i.box, w, h)) for i in scene.items if matches(i, target)]


def call(target: Item, lang: str) -> dict[str, str]:
    """The words of a target: name, plural and measure word."""
    zh = lang == "zh"
    if target.kind == "object":
        thing = OBJECTS[target.index]
        return dict(n=thing.chinese if zh else thing.english, p=thing.plural, m=thing.measure)
    if target.kind == "text":
        return dict(n="文字" if zh else "text", p="texts", m="处")
    english = SHAPE_NAMES[target.index]
    plural, chinese = SHAPES[english]
    tint = f"{target.colour} " if target.colour else ""
    name = (COLOURS[target.colour][0] if target.colour else "") + chinese if zh else tint + english
    return dict(n=name, p=tint + plural, m="个")


def det(boxes: list[list[int]]) -> str:
    return "<|det|>[" + ", ".join("[" + ", ".join(map(str, b)) + "]" for b in boxes) + "]<|/det|>"


def refer(scene: Scene, target: Item, lang: str) -> str:
    boxes = boxes_of(scene, target)
    if not boxes:
        return NONE[lang]
    name = call(target, lang)["n"]
    return f"<|ref|>{name if lang == 'zh' else 'the ' + name}<|/ref|>{det(boxes)}"


def count(number: int, lang: str, aloud: bool = False) -> str:
    """`3`, or aloud one thing after the other, from the left: `1, 2, 3`, `1、2、3`."""
    if not aloud or not number:
        return str(number)
    return ("、" if lang == "zh" else ", ").join(map(str, range(1, number + 1)))


def counted(answer: str) -> int:
    """The number that a `count` comes to."""
    return int(answer.replace("、", ",").rpartition(",")[2])


def naming(scene: Scene, lang: str) -> str:
    names = [i.name(lang == "zh") for i in scene.items]
    return ("、" if lang == "zh" else ", ").join(names) or NONE[lang]


def caption(scene: Scene, lang: str) -> str:
    targets: dict[str, Item] = {}
    for item in scene.items:
        targets.setdefault(item.name(), item)
    parts = [refer(scene, t, lang) for t in targets.values()]
    if not parts:
        return NONE[lang]
    return "图中有" + "、".join(parts) + "。" if lang == "zh" else "There is " + ", ".join(parts) + "."


def ordered(scene: Scene) -> bool:
    """Whether "left to right" has one answer: differing neighbours lie 2 % of the width apart."""
    gap = 0.02 * scene.image.width * 2
    mids = [(i.box[0] + i.box[2], i.name()) for i in scene.items]
    return all(b - a > gap or x == y for (a, x), (b, y) in pairwise(mids))


def one_colour(scene: Scene, shape: Item) -> str | None:
    """The colour of this shape, if all of this shape share one."""
    colours = {i.colour for i in scene.items if i.kind == "shape" and i.index == shape.index}
    return colours.pop() if len(colours) == 1 else None


@cache
def _alike(index: int) -> tuple[int, ...]:
    """The objects that look like this one."""
    names = [t.english for t in OBJECTS]
    groups = [row for row in ALIKE if names[index] in row]
    return tuple(sorted({names.index(n) for row in groups for n in row} - {index}))


def look_alike(rng: Random, scene: Scene) -> Item | None:
    """A target that the scene does not hold, though something like it: another object of its kind, another colour."""
    pool = [i for i in scene.items if i.kind != "text"]
    if not pool:
        return None
    item = rng.choice(pool)
    target = (
        Item("object", rng.choice(_alike(item.index)))
        if item.kind == "object"
        else Item("shape", item.index, colour=rng.choice([c for c in COLOURS if c != item.colour]))
    )
    return None if any(matches(i, target) for i in scene.items) else target


def absent(rng: Random, scene: Scene, kind: str = "", alike: float = 0.0) -> Item:
    """A target that the scene does not hold, of a random kind; `alike` of them look like something that it does hold."""
    if alike and kind != "shape" and rng.random() < alike and (target := look_alike(rng, scene)):
        return target
    while True:
        target = (
            Item("object", rng.randrange(len(OBJECTS)))
            if kind != "shape" and (kind == "object" or rng.random() < 0.75)
            else Item("shape", rng.randrange(len(SHAPES)), colour=rng.choice(("", *COLOURS)) if kind != "shape" else "")
        )
        if not any(matches(i, target) for i in scene.items):
            return target


def present(rng: Random, scene: Scene, text: bool = False) -> Item | None:
    pool = [i for i in scene.items if text or i.kind != "text"]
    if not pool:
        return None
    item = rng.choice(pool)
    colour = item.colour if item.kind == "shape" and rng.random() < 0.5 else ""
    return Item(item.kind, item.index, colour=colour)


def most(rng: Random, scene: Scene) -> Item | None:
    """What the scene holds most of; a random thing would nearly always be there once."""
    targets = [Item(i.kind, i.index, colour=i.colour) for i in scene.items if i.kind != "text"]
    return max(targets, key=lambda t: (sum(matches(i, t) for i in scene.items), rng.random()), default=None)


def ask(
    rng: Random,
    scene: Scene,
    task: str,
    lang: str,
    want_absent: bool = False,
    wording: int | None = None,
    many: float = 0.0,
    manner: Manner = PLAIN,
) -> tuple[Turn, Item | None] | None:
    """One turn of a task about one picture, or None where this scene can not be asked that.

    `many`: how often to count what there is most of, and not just anything.
    """
    words = WORDINGS[task][lang]
    form = words[wording if wording is not None else (0 if rng.random() < 0.35 else rng.randrange(len(words)))]
    if task == "naming":
        return ((form, naming(scene, lang)), None) if ordered(scene) else None
    if task == "caption":
        return (form, caption(scene, lang)), None
    if task == "text":
        texts = [i.text for i in scene.items if i.kind == "text"]
        return (form, texts[0] if texts else NONE[lang]), None
    if task == "colour":
        shapes = [i for i in scene.items if i.kind == "shape"]
        target = absent(rng, scene, "shape") if want_absent or not shapes else Item("shape", rng.choice(shapes).index)
        colour = one_colour(scene, target)
        if colour is None and any(matches(i, target) for i in scene.items):
            return None
        answer = NONE[lang] if colour is None else COLOURS[colour][0] if lang == "zh" else colour
        return (form.format(**call(target, lang)), answer), target
    if want_absent:
        target = absent(rng, scene, alike=manner.alike)
    elif task == "counting" and many and rng.random() < many:
        target = most(rng, scene)
    else:
        target = present(rng, scene, text=task == "box")
    if target is None:
        return None
    number = sum(matches(i, target) for i in scene.items)
    if task == "counting":
        answer = count(number, lang, manner.aloud)
    elif task == "exists":
        answer = ("有" if number else "没有") if lang == "zh" else ("yes" if number else "no")
    else:
        answer = refer(scene, target, lang)
    return (form.format(**call(target, lang)), answer), target


def follow_up(rng: Random, scene: Scene, lang: str, canonical: bool = False, manner: Manner = PLAIN) -> Asked | None:
    """Two turns: "And the …?" repeats the first question for another target; or any second question."""
    task = rng.choice(("counting", "box", "colour", "exists"))
    many = 0.0 if canonical else 0.4
    how = dict(many=many, manner=manner)
    first = ask(rng, scene, task, lang, want_absent=rng.random() < 0.15, wording=0 if canonical else None, **how)
    second = ask(rng, scene, task, lang, want_absent=rng.random() < 0.15, wording=0, **how)
    if first is None or second is None or second[1] is None:
        return None
    form = WORDINGS["more"][lang][0 if canonical else rng.randrange(len(WORDINGS["more"][lang]))]
    return Asked("follow-up", lang, (first[0], (form.format(**call(second[1], lang)), second[0][1])))


def which(
    rng: Random,
    scenes: list[Scene],
    lang: str,
    want_absent: bool = False,
    wording: int | None = None,
    manner: Manner = PLAIN,
) -> Asked | None:
    words = WORDINGS["which"][lang]
    form = words[wording if wording is not None else rng.randrange(len(words))]
    number = rng.randrange(len(scenes))
    target = absent(rng, scenes[number], alike=manner.alike) if want_absent else present(rng, scenes[number])
    if target is None:
        return None
    having = [k for k, s in enumerate(scenes) if any(matches(i, target) for i in s.items)]
    if (want_absent and having) or (not want_absent and having != [number]):
        return None
    answer = NONE[lang] if want_absent else f"image_{number + 1}"
    return Asked("which", lang, ((form.format(**call(target, lang)), answer),))


def within(rng: Random, scenes: list[Scene], lang: str, aloud: bool) -> Asked | None:
    """A question about one of several pictures, by its number."""
    k = rng.randrange(len(scenes))
    if rng.random() < 0.5:
        if not ordered(scenes[k]):
            return None
        form = f"image_{k + 1}里有什么？" if lang == "zh" else f"What is in image_{k + 1}?"
        return Asked("naming-in", lang, ((form, naming(scenes[k], lang)),))
    target = present(rng, scenes[k])
    if target is None:
        return None
    w = call(target, lang)
    form = f"image_{k + 1}里有几{w['m']}{w['n']}？" if lang == "zh" else f"How many {w['p']} are in image_{k + 1}?"
    number = sum(matches(i, target) for i in scenes[k].items)
    return Asked("counting-in", lang, ((form, count(number, lang, aloud)),))


#: How often training asks each task about one picture.
SINGLE = {
    "naming": 17,
    "counting": 20,
    "colour": 5,
    "text": 32,
    "box": 26,
    "caption": 5,
    "exists": 4,
    "follow-up": 9,
    "off-topic": 1,
}


def conversation(rng: Random, scenes: list[Scene], manner: Manner = PLAIN) -> Asked | None:
    """A random conversation about these pictures (none: talk without a picture)."""
    lang = "en" if rng.random() < 0.55 else "zh"
    if not scenes or rng.random() < 0.01:
        return Asked("off-topic", lang, ((rng.choice(OFF_TOPIC[lang]), ABOUT[lang]),))
    if len(scenes) > 1:
        made = (
            which(rng, scenes, lang, rng.random() < 0.12, manner=manner)
            if rng.random() < 0.6
            else within(rng, scenes, lang, manner.aloud)
        )
        return made and _casual(rng, made)
    (scene,) = scenes
    weights = dict(SINGLE)
    if not any(i.kind == "text" for i in scene.items):
        weights["text"] = 1.5
    if not any(i.kind == "shape" for i in scene.items):
        weights["colour"] = 1.5
    same = Counter((i.kind, i.index) for i in scene.items)
    crowd = max(same.values(), default=0) >= 3  # worth counting
    if crowd:
        weights["counting"] *= 2
    task = rng.choices(list(weights), list(weights.values()))[0]
    if task == "off-topic":
        return Asked(task, lang, ((rng.choice(OFF_TOPIC[lang]), ABOUT[lang]),))
    if task == "follow-up":
        made = follow_up(rng, scene, lang, manner=manner)
        return made and _casual(rng, made)
    seldom_alone = manner.crowds and task == "counting"
    want_absent = rng.random() < (0.5 if task == "exists" else 0.04 if seldom_alone else 0.14)
    turn = ask(rng, scene, task, lang, want_absent, many=0.85 if crowd else 0.6, manner=manner)
    if turn is None or (task == "counting" and turn[0][1] == "1" and rng.random() < (0.8 if seldom_alone else 0.65)):
        return None  # one is what most things are
    turns = [turn[0]]
    if rng.random() < 0.12:  # an unrelated second question in the same conversation
        other = rng.choice(("naming", "counting", "colour", "text", "box"))
        second = ask(rng, scene, other, lang, many=0.6, manner=manner)
        if second is not None:
            turns.append(second[0])
    return _casual(rng, Asked(task, lang, tuple(turns)))


def _casual(rng: Random, asked: Asked) -> Asked:
    """Sometimes drop capitals and the closing mark, as people type."""
    if rng.random() > 0.12:
        return asked
    turns = tuple((q.rstrip("?.？。") if "<|" not in q else q, a) for q, a in asked.turns)
    turns = tuple((q[:1].lower() + q[1:], a) for q, a in turns)
    return Asked(asked.task, asked.lang, turns)

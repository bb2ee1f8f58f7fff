"""Nano's tokenizer: byte-level BPE whose vocabulary is chosen by hand, with the official special tokens.

    python nano/tokenizer.py OUT_FOLDER

Why not a trained vocabulary: nano reads printed text, and spelling is easiest to learn when a printed letter is one
token; but names that it says often should be one token too. So the vocabulary holds the 256 bytes, the numbers 0-999,
the words of questions and answers, and the Chinese characters in use, and a piece that is a whole entry is that entry
(`ignore_merges`); anything else falls apart into bytes, and nothing is ever unknown.

Coordinates: inside `[[x1, y1, x2, y2]]` a number is one token, 0-999. Elsewhere (counts, printed numbers) each digit
is one, because that is how a number is read off a picture.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from names import COLOURS, HANZI, OBJECTS, SHAPES
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
SPECIALS = ("<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<|User|>", "<|Assistant|>")

#: Pieces, first match wins: box punctuation, a coordinate, a digit, a Chinese character, a word with its space, the rest.
PATTERN = (
    r"\], \[|\[\[|\]\]|, (?=\p{N})|(?<=[\[ ])\p{N}{1,3}(?=[,\]])|\p{N}|[一-鿿]|\n\n| ?[A-Za-z]+"
    r"|[^\sA-Za-z\p{N}一-鿿]|\s"
)
PIECES = ["], [", "[[", "]]", ", ", "\n\n"]
#: Words that open a sentence (no space before them), and words inside one (written with the space).
OPENING = """What How Which Where Who Name List Describe Count Read Find Locate Show Is Are Do Does Can The the There
and And Hello Hi Thanks Tell what how which where describe count read find is are image text none yes no picture I It
In in Please""".split()
INSIDE = """what What is in the picture image photo there are many do you see objects object everything name list of number
count colour color does have has text say says written read word which where locate find and or a an any it can show me
please this that on not no yes vl2 nano small model pictograms shapes printed pictures them how shown contain contains
I only answer about ask with up to second first left right top other else your help who""".split()
CHINESE = (
    "图片里有什么图中这张你看到了描述请列出的物体画面哪些东西几个多少数一是颜色文字写上读出找在哪里第二"
    "我小模型能说名称计数位置形状印刷没有吗呢那和还那么是的好谢谢无法回答问题只关于位内容不把面它们标出给"
    "，。？、！：；“”"
)


def _byte_letters() -> dict[int, str]:
    """The printable stand-in of each byte, in the usual byte-level alphabet."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = (256 + i for i in range(256))
    return {b: chr(b) if b in plain else chr(next(spare)) for b in range(256)}


def entries() -> list[str]:
    """Every vocabulary entry above the bytes, as text, in a fixed order without repeats."""
    words = [str(n) for n in range(10, 1000)] + PIECES + OPENING + [" " + w for w in INSIDE]
    for thing in OBJECTS:
        for k, word in enumerate(thing.english.split()):
            words += [word, " " + word] if k == 0 else [" " + word]
        words += [" " + w for w in thing.plural.split()]
    for english, (plural, _) in SHAPES.items():
        words += [" " + english, " " + plural]
    words += [w for c in COLOURS for w in (c, " " + c)]
    words += list(CHINESE) + list(HANZI)
    words += [c for t in OBJECTS for c in t.chinese + t.measure]
    words += [c for zh, _ in COLOURS.values() for c in zh] + [c for _, zh in SHAPES.values() for c in zh]
    single = set(map(chr, range(128)))
    return [w for w in dict.fromkeys(words) if w not in single]


def build() -> Tokenizer:
    letters = _byte_letters()
    vocab = {t: i for i, t in enumerate((BOS, EOS, PAD))}
    for b in sorted(letters):
        vocab[letters[b]] = len(vocab)
    for word in entries():
        vocab["".join(letters[b] for b in word.encode())] = len(vocab)
    tok = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in (BOS, EOS, PAD, *SPECIALS)])
    return tok


def encode(tok: Tokenizer, text: str) -> list[int]:
    return tok.encode(text, add_special_tokens=False).ids


def save(tok: Tokenizer, out: Path) -> None:
    """The three tokenizer files of the official format."""
    out.mkdir(parents=True, exist_ok=True)
    tok.save(str(out / "tokenizer.json"))

    def full(token: str) -> dict:
        return dict(content=token, lstrip=False, normalized=False, rstrip=False, single_word=False)

    ids = {tok.token_to_id(t): t for t in (BOS, EOS, PAD, *SPECIALS)}
    config = dict(
        add_bos_token=True, add_eos_token=False, added_tokens_decoder={str(i): dict(full(ids[i]), special=True) for i in sorted(ids)},
        additional_special_tokens=["<|User|>", "<|Assistant|>"], bos_token=BOS, clean_up_tokenization_spaces=False,
        eos_token=EOS, legacy=True, model_max_length=4096, pad_token=PAD, processor_class="DeepseekVLV2Processor",
        sp_model_kwargs={}, tokenizer_class="LlamaTokenizerFast", unk_token=None, use_default_system_prompt=False,
    )  # fmt: skip
    special = dict(
        additional_special_tokens=[full("<|User|>"), full("<|Assistant|>")],
        bos_token=full(BOS),
        eos_token=full(EOS),
        pad_token=full(PAD),
    )
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        (out / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n")


if __name__ == "__main__":
    save(build(), Path(sys.argv[1]))

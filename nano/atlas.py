"""Make the sprite atlas and the font subsets that the scenes are drawn with (run once; its outputs are tracked).

    python nano/atlas.py --icons FOLDER_WITH_ICONIFY_JSON_PACKAGES

Pictograms come from the `@iconify-json/{set}` npm packages (SVG data of freely licensed emoji sets, licences in
`data/LICENCES.md`), fonts from Debian packages. Both are cut down to what the scenes need: `data/{set}.webp` holds one
96-pixel sprite an object in the order of `names.OBJECTS`; `data/fonts/*.woff2` hold printable ASCII, or the Chinese
characters of `names.HANZI`. Subsets are renamed, because some font licences reserve the original name for the original.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

from names import HANZI, OBJECTS
from PIL import Image

DATA = Path(__file__).parent / "data"
SPRITE, COLUMNS = 96, 16
#: Four sets to train on; the last one is only ever used to test transfer to an unseen drawing style.
SETS = ("noto", "noto-v1", "fluent-emoji-flat", "emojione", "twemoji")

LATIN = [
    "dejavu/DejaVuSans.ttf",
    "dejavu/DejaVuSerif-Bold.ttf",
    "dejavu/DejaVuSansMono.ttf",
    "liberation/LiberationSans-Bold.ttf",
    "liberation/LiberationSerif-Regular.ttf",
    "liberation/LiberationMono-Bold.ttf",
    "lato/Lato-Regular.ttf",
    "lato/Lato-Black.ttf",
    "open-sans/OpenSans-Semibold.ttf",
    "roboto/unhinted/RobotoTTF/Roboto-Medium.ttf",
    "ebgaramond/EBGaramond12-Bold.otf",
    "crosextra/Carlito-Bold.ttf",
    "comfortaa/Comfortaa-Bold.ttf",
    "quicksand/Quicksand-Medium.ttf",
    "firacode/FiraCode-Regular.ttf",
    "cabin/Cabin-Bold.otf",
    "play/Play-Regular.ttf",
    "courier-prime/Courier Prime Bold.otf",
]
CHINESE = [
    ("opentype/noto/NotoSansCJK-Regular.ttc", "SC"),
    ("opentype/noto/NotoSansCJK-Bold.ttc", "SC"),
    ("opentype/noto/NotoSerifCJK-Bold.ttc", "SC"),
    ("truetype/lxgw-wenkai/LXGWWenKai-Regular.ttf", ""),
]


def render_set(icons: Path, name: str) -> Image.Image:
    """Draw one emoji set into one picture, a cell an object."""
    import resvg_py

    data = json.loads((icons / f"@iconify-json/{name}/icons.json").read_text())
    atlas = Image.new("RGBA", (COLUMNS * SPRITE, -(-len(OBJECTS) // COLUMNS) * SPRITE))
    for i, thing in enumerate(OBJECTS):
        slug = next(s for s in (thing.slug, thing.slug + "-face") if s in data["icons"] or s in data.get("aliases", {}))
        while slug in data.get("aliases", {}):
            slug = data["aliases"][slug]["parent"]
        icon = data["icons"][slug]
        w, h = icon.get("width", data.get("width", 16)), icon.get("height", data.get("height", 16))
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {w} {h}" width="{4 * SPRITE}" height="{4 * SPRITE}">{icon["body"]}</svg>'
        png = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
        png = png.crop(png.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox())
        scale = SPRITE / max(png.size)
        png = png.resize(
            (max(1, round(png.width * scale)), max(1, round(png.height * scale))), Image.Resampling.LANCZOS
        )
        x, y = i % COLUMNS * SPRITE, i // COLUMNS * SPRITE
        atlas.paste(png, (x + (SPRITE - png.width) // 2, y + (SPRITE - png.height) // 2))
    return atlas


def find_font(path: str) -> Path:
    """Look a font up by its file name below the system's font folders."""
    hits = sorted(Path("/usr/share/fonts").rglob(Path(path).name))
    if not hits:
        raise FileNotFoundError(path)
    return hits[0]


def subset_font(path: str, flavour: str, text: str, out: Path, title: str) -> None:
    """Write the glyphs of `text` as a small web font named `title`."""
    from fontTools import subset, ttLib

    source = find_font(path)
    number = 0
    if source.suffix == ".ttc":
        faces = ttLib.TTCollection(str(source)).fonts
        number = next(
            i
            for i, f in enumerate(faces)
            if f["name"].getDebugName(1).split()[-1] == flavour or f" {flavour}" in f["name"].getDebugName(4)
        )
    options = subset.Options(layout_features=[], name_IDs=[0, 13, 14], hinting=False, notdef_outline=True, flavor=None)
    font = ttLib.TTFont(str(source), fontNumber=number)
    cutter = subset.Subsetter(options)
    cutter.populate(text=text)
    cutter.subset(font)
    for name_id in (1, 3, 4, 6):
        font["name"].setName(title, name_id, 3, 1, 0x409)
    font["name"].setName("Regular", 2, 3, 1, 0x409)
    font.save(str(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--icons", type=Path, required=True)
    icons = parser.parse_args().icons
    (DATA / "fonts").mkdir(parents=True, exist_ok=True)
    for name in SETS:
        render_set(icons, name).save(DATA / f"{name}.webp", quality=72, alpha_quality=70, method=6)
    ascii_text = "".join(map(chr, range(32, 127)))
    for i, path in enumerate(LATIN):
        subset_font(
            path, "", ascii_text, DATA / f"fonts/latin-{i:02d}{find_font(path).suffix}", f"vl2-nano-latin-{i:02d}"
        )
    for i, (path, flavour) in enumerate(CHINESE):
        subset_font(path, flavour, ascii_text + HANZI, DATA / f"fonts/han-{i:02d}.otf", f"vl2-nano-han-{i:02d}")


if __name__ == "__main__":
    main()

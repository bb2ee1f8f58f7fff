"""Each example is run as its reader would, and says what it promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from PIL import Image

from tests.boxes import overlap
from tests.e2e.server_process import LIMIT_S, serving

EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURES = EXAMPLES / "pictures"
SHOE = ("shoe, text", "text, shoe")  # what product.webp shows: the text's middle is right below the shoe's


def run(name: str, *arguments: object, folder: Path | None = None, **environment: str) -> str:
    """What it printed."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving("nano", "--device", "cpu") as server:
        yield server.url


def test_every_example_is_listed_and_run_here() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == set(re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert names == set(re.findall(r'run\(\s*"(\w+\.py)"', Path(__file__).read_text(encoding="utf-8")))


def test_describe() -> None:
    assert {"house", "bus", "taxi"} <= set(run("describe.py").strip().split(", "))
    assert is_like(run("describe.py", PICTURES / "product.webp", "What does the text say?"), "ROVER")


def test_stream() -> None:
    assert run("stream.py", PICTURES / "product.webp").strip() in SHOE


def test_several_pictures() -> None:
    assert run("several_pictures.py").strip() == "image_2"


def test_ground_draws_boxes_where_the_things_are(tmp_path: Path) -> None:
    told = run("ground.py", PICTURES / "street.webp", "bus", "taxi", folder=tmp_path)
    assert re.findall(r"^the (\w+): ", told, re.M) == ["bus", "taxi"]
    drawn, plain = Image.open(tmp_path / "street-boxes.png"), Image.open(PICTURES / "street.webp").convert("RGB")
    assert drawn.size == plain.size
    x1, y1, x2, y2 = map(int, re.findall(r"the bus: \((\d+), (\d+), (\d+), (\d+)\)", told)[0])
    assert overlap((x1, y1, x2, y2), (250, 203, 420, 312)) > 0.6
    assert drawn.getpixel((x1, (y1 + y2) // 2)) == (0xC2, 0x41, 0x0C)


def is_like(read: str, printed: str) -> bool:
    """nano reads well, not perfectly: most characters are right, in order."""
    return SequenceMatcher(None, read.strip().replace(" ", ""), printed).ratio() >= 0.6


def schema_in(name: str) -> Any:
    """The constant SCHEMA of an example, read without running it."""
    found: dict[str, Any] = {}
    code = re.search(r"^SCHEMA = \{.*?^\}", (EXAMPLES / name).read_text(encoding="utf-8"), re.M | re.S)
    assert code is not None
    exec(code[0], found)
    return found["SCHEMA"]


def test_json_schema_is_kept() -> None:
    jsonschema.validate(json.loads(run("json_schema.py")), schema_in("json_schema.py"))


def test_product_fits_its_schema() -> None:
    jsonschema.validate(json.loads(run("product.py")), schema_in("product.py"))


def test_folder_answers_all_and_reports_what_is_no_picture(tmp_path: Path) -> None:
    for name in ("product.webp", "street.webp"):
        (tmp_path / name).write_bytes((PICTURES / name).read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("not looked at")
    told = {line["picture"]: line for line in map(json.loads, run("folder.py", tmp_path).splitlines())}
    assert set(told) == {"product.webp", "street.webp", "broken.png"}
    assert told["product.webp"]["answer"] in SHOE
    assert "error" in told["broken.png"]


def test_openai_client(url: str) -> None:
    told = run("openai_client.py", VL2_URL=url)
    assert re.search(r"^the bus: \[\[\d+, \d+, \d+, \d+\]\]$", told, re.M)
    assert re.search(r"^\d+ tokens in, \d+ out$", told, re.M)
    assert "decode_s" in told


def test_pdf(url: str, tmp_path: Path) -> None:
    with Image.open(PICTURES / "product.webp") as page:
        empty = Image.new("RGB", page.size, "white")
        page.save(tmp_path / "letter.pdf", save_all=True, append_images=[empty])
    assert is_like(run("pdf.py", tmp_path / "letter.pdf", "1", VL2_URL=url), "ROVER")
    assert run("pdf.py", tmp_path / "letter.pdf", "2", VL2_URL=url).strip() == "none"


def test_xray_keeps_its_greys_and_warns() -> None:
    assert "NOT A MEDICAL DEVICE" in (EXAMPLES / "xray.py").read_text(encoding="utf-8")
    assert is_like(run("xray.py"), "L42")


def test_driving_tells_what_is_where() -> None:
    told = json.loads(run("driving.py"))
    boxes = {thing["kind"]: thing["box"] for thing in told["things"]}
    assert set(boxes) == {"car", "taxi", "bus", "bicycle"}  # no train, no dog
    drawn = {
        "car": (110, 370, 240, 453),
        "taxi": (520, 270, 650, 363),
        "bus": (250, 200, 420, 317),
        "bicycle": (460, 390, 570, 469),
    }
    assert all(overlap(boxes[kind], box) > 0.7 for kind, box in drawn.items())

"""A watched folder gives its newest picture, says how many it passed over, and goes on after one that is broken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vl2.cli.watch import watch
from vl2.core.errors import InvalidImage, SetupError
from vl2.edge.frames import Frame, FrameFolder


class Camera:
    """Writes pictures a second apart."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now_s = folder, 1000

    def shoot(self, name: str, data: bytes = b"pixels") -> None:
        self.now_s += 1
        (self.folder / name).write_bytes(data)
        os.utime(self.folder / name, (self.now_s, self.now_s))


def test_the_newest_picture_is_taken_and_those_before_it_are_dropped(tmp_path: Path) -> None:
    camera = Camera(tmp_path)
    camera.shoot("old.jpg")
    frames = FrameFolder(tmp_path)
    assert frames.take() is None, "what was there is not new"
    for name in ("a.jpg", "b.PNG", "notes.txt", "c.webp"):
        camera.shoot(name, name.encode())
    assert frames.take() == Frame(tmp_path / "c.webp", b"c.webp", num_dropped=2)
    assert frames.take() is None
    camera.shoot("a.jpg", b"again")
    assert frames.take() == Frame(tmp_path / "a.jpg", b"again", 0), "the same name with new content"


def test_a_file_is_there_when_it_has_bytes_and_comes_again_when_it_has_grown(tmp_path: Path) -> None:
    camera, frames = Camera(tmp_path), FrameFolder(tmp_path, takes_existing=True)
    camera.shoot("a.jpg", b"")
    assert frames.take() is None
    camera.shoot("a.jpg", b"half")
    assert frames.take() == Frame(tmp_path / "a.jpg", b"half", 0)
    camera.shoot("a.jpg", b"half and half")
    assert frames.take() == Frame(tmp_path / "a.jpg", b"half and half", 0)


def test_existing_pictures_begin_with_the_newest(tmp_path: Path) -> None:
    camera = Camera(tmp_path)
    camera.shoot("1.png")
    camera.shoot("2.png")
    assert FrameFolder(tmp_path, takes_existing=True).take() == Frame(tmp_path / "2.png", b"pixels", 1)


def test_a_folder_that_goes_away_ends_it_with_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "camera"
    folder.mkdir()
    frames = FrameFolder(folder)
    folder.rmdir()
    with pytest.raises(SetupError, match="camera cannot be read: No such file"):
        frames.take()


def test_answers_never_lag_and_broken_pictures_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answering takes three times as long as the camera needs for a picture."""
    camera, now_s = Camera(tmp_path), [0.0]
    frames = FrameFolder(tmp_path)
    camera.shoot("0.jpg")

    def slow_answer(frame: Frame) -> str:
        if frame.path.stem == "3":
            camera.shoot("4.jpg")
            raise InvalidImage("the picture is broken")
        first = int(frame.path.stem) + 1
        for number in range(first, first + 3):
            camera.shoot(f"{number}.jpg")
        now_s[0] += 3.0
        return f"answer to {frame.path.stem}"

    watch(frames, slow_answer, 3, clock=lambda: now_s[0], sleep=lambda s: None)
    out, err = capsys.readouterr()
    assert out.split("\n") == ["answer to 0", "answer to 4", "answer to 7", ""]
    assert "3.jpg: the picture is broken" in err
    assert "vl2: 0.3 frames/s, 2 answered, 0 dropped" in err
    assert "3 answered, 2 dropped; 3000 ms an answer, which is 0.3 frames/s at most" in err

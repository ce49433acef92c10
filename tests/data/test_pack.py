from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from patchattack.benchmark import scene_pack
from patchattack.data.pack import COLUMNS, Frame, Pack, read
from patchattack.errors import InputError

CORNERS = (1.5, 1.25, 6.125, 1 / 3, 7.0, 4.75, 1e-17, 5.0)
FRAMES = [
    Frame(0, 0, "a/0.png", CORNERS, "48", "circle", "noon, sun", 750.0, 0.1, 1 / 3, 12.5, 90.0, -3.25, "a/depth.png"),
    Frame(1, 0, "a/1.png", CORNERS),
]


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Two scenes of one frame of 6 × 9: the red of the first is the column, and so are its half metres."""
    columns = np.indices((6, 9))[1]
    red = np.stack([0 * columns, 0 * columns, columns], axis=-1).astype(np.uint8)
    originals = {name: tmp_path / f"original{number}.png" for number, name in enumerate(("a/0.png", "a/1.png"))}
    for number, path in enumerate(originals.values()):
        assert cv2.imwrite(str(path), red + number)
    originals["a/depth.png"] = tmp_path / "depth.png"
    assert cv2.imwrite(str(originals["a/depth.png"]), (columns * 128).astype(np.uint16))
    return scene_pack.write(tmp_path / "pack", FRAMES, originals, "a test", "MIT")


def known(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None
    return value


def refusal(root: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        Pack(str(root), **options)
    return str(caught.value)


def test_what_is_written_is_read_to_the_bit(pack: Path) -> None:
    head, frames = read(pack)
    assert frames[0] == FRAMES[0]
    assert frames[1].corners == CORNERS
    assert math.isnan(frames[1].alpha)
    assert (head["scenes"], head["frames"], head["classes"]) == (2, 1, ["circle"])
    assert (head["source"], head["licence"]) == ("a test", "MIT")


def test_a_line_is_a_scene_with_its_surface_class_and_depth(pack: Path) -> None:
    source = Pack(str(pack))
    scene = source[0]
    assert len(source) == 2
    assert scene.frames[0, 0, 0].tolist() == [list(range(9))] * 6
    assert torch.equal(known(scene.surface)[0, 0], torch.tensor(CORNERS).view(4, 2))
    assert known(scene.label).tolist() == [0]
    assert source.classes == ("circle",)
    assert known(scene.depth)[0, 0, 0, 2:].tolist() == [1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert known(scene.depth)[0, 0, :, 0].isnan().all()
    both = source.__getitems__([1, 0])
    assert known(both.label).tolist() == [-1, 0]
    assert known(both.depth)[0].isnan().all()
    assert source.files(1) == (pack / "a" / "1.png",)


def test_corners_are_resized_with_their_frame(pack: Path) -> None:
    (pack / "scenes.csv").write_text((pack / "scenes.csv").read_text().replace("a/depth.png", ""))
    scene = Pack(str(pack), size=(12, 27))[0]
    assert scene.frames.shape == (1, 1, 3, 12, 27)
    assert known(scene.surface)[0, 0, 0].tolist() == [3 * (1.5 + 0.5) - 0.5, 2 * (1.25 + 0.5) - 0.5]


def test_two_frames_of_a_scene(pack: Path) -> None:
    pair = [replace(FRAMES[0], depth=""), replace(FRAMES[1], scene=0, frame=1)]
    originals = {one.filename: pack / one.filename for one in pair}
    scene = Pack(str(scene_pack.write(pack.parent / "pair", pair, originals, "", "")))[0]
    assert scene.frames.shape == (1, 2, 3, 6, 9)
    assert known(scene.surface).shape == (1, 2, 4, 2)


def edit(**cells: str) -> Callable[[Path], None]:
    """Changes the first line of the table."""

    def change(pack: Path) -> None:
        with (pack / "scenes.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        lines[0] |= cells
        with (pack / "scenes.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(lines)

    return change


def head(**values: Any) -> Callable[[Path], None]:
    def change(pack: Path) -> None:
        told = json.loads((pack / "scenes.json").read_text())
        (pack / "scenes.json").write_text(json.dumps(told | values))

    return change


def cut(pack: Path) -> None:
    lines = (pack / "scenes.csv").read_text().splitlines()
    (pack / "scenes.csv").write_text("\n".join(lines[:-1]))


def rename(pack: Path) -> None:
    (pack / "scenes.csv").write_text((pack / "scenes.csv").read_text().replace("x1", "left"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pack: (pack / "scenes.json").unlink(), "expected patchattack-scenes, version 1"),
        (lambda pack: (pack / "scenes.csv").unlink(), "expected a table of scenes"),
        (lambda pack: (pack / "a" / "1.png").unlink(), "1.png: expected an image, got no file"),
        (lambda pack: (pack / "a" / "depth.png").unlink(), "depth.png: expected an image, got no file"),
        (lambda pack: cv2.imwrite(str(pack / "a" / "1.png"), np.zeros((5, 9), np.uint8)), "expected 6×9 like a/0.png"),
        (lambda pack: cv2.imwrite(str(pack / "a" / "depth.png"), np.ones((5, 9), np.uint16)), "expected depth of 6×9"),
        (head(version=2), "version 2"),
        (head(scenes=3), "expected 3 scene(s) of 1 frame(s) in their order, as scenes.json says, got 2 line(s)"),
        (head(frames=0), "expected an integer >= 1, got 0"),
        (head(classes=["square"]), "line 2: expected a label of the classes in scenes.json, got 'circle'"),
        (cut, "expected 2 scene(s) of 1 frame(s) in their order, as scenes.json says, got 1 line(s)"),
        (rename, "expected the columns scene,frame,filename"),
        (edit(scene="-1"), "expected scene as an integer >= 0, got '-1'"),
        (edit(x1="left"), "line 2: expected x1 as a finite number within 1e+06, got 'left'"),
        (edit(x1="nan"), "got 'nan'"),
        (edit(y3="1e300"), "expected y3 as a finite number within 1e+06, got '1e300'"),
        (edit(x1=""), "expected x1 as a finite number"),
        (edit(alpha="inf"), "expected alpha as a finite number"),
        (edit(x1="6.125", y1="0", x2="1", y2="1"), "clockwise from its top-left"),
        (edit(filename="../original0.png"), "expected filename as a path in the pack's folder"),
        (edit(filename="/etc/hostname"), "expected filename as a path in the pack's folder"),
        (edit(filename=""), "expected filename as a path in the pack's folder"),
    ],
)
def test_bad_packs_are_refused(pack: Path, change: Callable[[Path], object], message: str) -> None:
    change(pack)
    assert message in refusal(pack)


def test_a_pack_is_not_written_over_another_nor_without_its_files(pack: Path) -> None:
    with pytest.raises(InputError, match=r"got one with scenes\.json"):
        scene_pack.write(pack, FRAMES, {}, "", "")
    with pytest.raises(InputError, match="expected a file of the pack"):
        scene_pack.write(pack.parent / "other", FRAMES, {"a/0.png": pack / "none.png"}, "", "")
    with pytest.raises(InputError, match="expected frames for a scene pack, got none"):
        scene_pack.write(pack.parent / "other", [], {}, "", "")
    with pytest.raises(InputError, match="expected files in its folder"):
        scene_pack.write(pack.parent / "other", FRAMES, {"../escaped.png": pack / "a" / "0.png"}, "", "")
    assert not (pack.parent / "escaped.png").exists()
    assert not (pack.parent / "other" / "scenes.json").exists()
    assert "expected size" in refusal(pack, size=(0, 4))
    assert "data.size=[12, 27]" in refusal(pack, size=(12, 27))

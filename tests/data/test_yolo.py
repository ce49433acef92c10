from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from patchattack.data.boxes import letterbox
from patchattack.data.yolo import Yolo
from patchattack.errors import InputError
from patchattack.scene import Scene

REAL = Path(__file__).parents[2] / "../shared/real/detect/coco8"
NAMES = ("red", "green")


def write(path: Path, size: tuple[int, int] = (20, 40), *squares: tuple[int, int, int, int]) -> None:
    """A black image with white rectangles: left, top, right, bottom as edges."""
    image = np.zeros((*size, 3), np.uint8)
    for left, top, right, bottom in squares:
        image[top:bottom, left:right] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def label(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One image of 20×40 with a white box over columns 10 to 19 and rows 5 to 14, and its label."""
    write(tmp_path / "images" / "val" / "a.png", (20, 40), (10, 5, 20, 15))
    label(tmp_path / "labels" / "val" / "a.txt", "1 0.375 0.5 0.25 0.5")
    return tmp_path


def boxes(scene: Scene) -> list[list[float]]:
    assert scene.boxes is not None
    return scene.boxes[0].tolist()


def refusal(root: Path, split: str | None = "val", names: tuple[str, ...] | None = NAMES, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        Yolo(str(root), split, names, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_scene_is_a_frame_with_boxes_in_pixels(folder: Path) -> None:
    source = Yolo(str(folder), "val", NAMES, size=(20, 40))
    scene = source[0]
    assert len(source) == 1
    assert source.classes == NAMES
    assert scene.frames.shape == (1, 1, 3, 20, 40)
    assert scene.frames.dtype == torch.uint8
    assert scene.index.tolist() == [0]
    assert boxes(scene) == [[9.5, 4.5, 19.5, 14.5, 1]]
    assert scene.boxes is not None
    assert scene.boxes.dtype == torch.float32
    assert (scene.frames[0, 0, :, 5:15, 10:20] == 255).all()
    assert scene.frames.sum() == 3 * 100 * 255


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((40, 80), [19.5, 9.5, 39.5, 29.5]),  # twice as large
        ((10, 20), [4.5, 2, 9.5, 7]),  # half as large
        ((40, 40), [9.5, 14.5, 19.5, 24.5]),  # grey above and below
        ((20, 60), [19.5, 4.5, 29.5, 14.5]),  # grey on the left and on the right
        ((65, 80), [19.5, 21.5, 39.5, 41.5]),  # 12 rows above, 13 below
    ],
)
def test_boxes_move_with_the_image(size: tuple[int, int], expected: list[float], folder: Path) -> None:
    scene = Yolo(str(folder), "val", NAMES, size=size)[0]
    assert boxes(scene) == [[*expected, 1]]
    frame = scene.frames[0, 0, 0]
    assert frame.shape == size
    left, top, right, bottom = expected
    inside = frame[int(top + 1) : int(bottom + 0.5), int(left + 1) : int(right + 0.5)]  # pixels that are white only
    assert (inside[1:-1, 1:-1] == 255).all()
    assert (frame == 255).sum() <= (right - left) * (bottom - top)


def test_what_the_image_does_not_fill_is_grey(folder: Path) -> None:
    frame = Yolo(str(folder), "val", NAMES, size=(40, 40))[0].frames[0, 0]
    assert (frame[:, :10] == 114).all()
    assert (frame[:, 30:] == 114).all()
    assert ((frame[:, 10:30] == 0) | (frame[:, 10:30] == 255)).all()


@pytest.mark.parametrize("shape", [(37, 91), (91, 37), (200, 333), (7, 5), (1, 300)])
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (33, 33)])
def test_a_box_around_the_image_stays_around_it(shape: tuple[int, int], size: tuple[int, int]) -> None:
    """Rounding the sides to pixels changes the proportions a little: the boxes follow each side's own scale."""
    whole = torch.tensor([[0, 0, 1, 1, 0]], dtype=torch.float64)
    frame, moved = letterbox(torch.full((3, *shape), 255, dtype=torch.uint8), whole, size)
    rows, columns = (frame[0] == 255).nonzero().unbind(1)
    assert moved[0, :4].tolist() == [
        columns.min() - 0.5,
        rows.min() - 0.5,
        columns.max() + 0.5,
        rows.max() + 0.5,
    ]
    assert frame.shape == (3, *size)


def test_the_largest_object_comes_first_and_rows_fill_up(folder: Path) -> None:
    lines = ("0 0.1 0.1 0.1 0.1", "1 0.5 0.5 1 1", "0 0.5 0.5 0.5 0.5")
    label(folder / "labels" / "val" / "a.txt", *lines)
    write(folder / "images" / "val" / "b.png")
    source = Yolo(str(folder), "val", NAMES, size=(20, 40))
    assert [row[4] for row in boxes(source[0])] == [1, 0, 0]
    assert boxes(source[0])[0] == [-0.5, -0.5, 39.5, 19.5, 1]
    both = source.__getitems__([1, 0])
    assert both.boxes is not None
    assert both.boxes.shape == (2, 3, 5)
    assert both.boxes[0].isnan().all()
    assert not both.boxes[1].isnan().any()


@pytest.mark.parametrize("empty", [True, False])
def test_an_image_without_objects_has_a_row_of_nan(empty: bool, folder: Path) -> None:
    (folder / "labels" / "val" / "a.txt").unlink()
    if empty:
        label(folder / "labels" / "val" / "a.txt")
    found = Yolo(str(folder), "val", NAMES)[0].boxes
    assert found is not None
    assert found.shape == (1, 1, 5)
    assert found.isnan().all()


def test_all_three_layouts_are_found(tmp_path: Path) -> None:
    for images, labels in (("images/val/deep", "labels/val/deep"), ("test/images", "test/labels")):
        write(tmp_path / images / "a.png")
        label(tmp_path / labels / "a.txt", "0 0.5 0.5 0.5 0.5")
    for split in ("val", "test"):
        assert len(boxes(Yolo(str(tmp_path), split, NAMES)[0])) == 1
    write(tmp_path / "images" / "train" / "b.JPG")
    write(tmp_path / "images" / "train" / "._b.png")
    every = Yolo(str(tmp_path), None, NAMES)
    assert [one.path.name for one in every.labelled] == ["b.JPG", "a.png"]
    assert not torch.isnan(torch.tensor(boxes(every[1]))).any()
    assert len(Yolo(str(tmp_path / "test"), None, NAMES)) == 1


@pytest.mark.parametrize("text", ["names: [cat, dog]", "path: x\nnames:\n  1: dog\n  0: cat\n"])
def test_names_come_from_data_yaml(text: str, folder: Path) -> None:
    (folder / "data.yaml").write_text(text)
    assert Yolo(str(folder), "val").classes == ("cat", "dog")
    assert Yolo(str(folder), "val", NAMES).classes == NAMES


@pytest.mark.parametrize("names", ["[30, on]", "{1: on, 0: 30}", '{"0": "30", 1: "on"}'])
def test_names_are_the_words_of_the_file(names: str, folder: Path) -> None:
    """YAML reads speed-limit signs as numbers, and on, off, yes and no as truth values."""
    (folder / "data.yaml").write_text(f"names: {names}\n")
    assert Yolo(str(folder), "val").classes == ("30", "on")
    assert Yolo(str(folder), "val", (30, "on")).classes == ("30", "on")  # type: ignore[arg-type]
    assert "quote them" in refusal(folder, names=(30, True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line", ["1 0.375 0.5 0.25 0.5 0.93", "1 0.25 0.75 0.5 0.3 0.4 0.25", "1 .25 .25 .5 .25 .5 .75 .25 .75"]
)
def test_boxes_with_a_confidence_and_of_polygons(line: str, folder: Path) -> None:
    label(folder / "labels" / "val" / "a.txt", line)
    assert boxes(Yolo(str(folder), "val", NAMES, size=(20, 40))[0]) == [[9.5, 4.5, 19.5, 14.5, 1]]


@pytest.mark.parametrize("text", [None, "nc: 2", "names: {0: cat, 2: dog}", "names: [", "- names", "names: 3"])
def test_missing_names_are_refused(text: str | None, folder: Path) -> None:
    if text:
        (folder / "data.yaml").write_text(text)
    message = refusal(folder, names=None)
    assert "data.yaml: expected 'names: [person, ...]' or 'names: {0: person, ...}'" in message
    assert message.endswith("write the file or name the classes with data.names=[person,...]")


@pytest.mark.parametrize(
    "line",
    ["0 0.5 0.5 0.5", "cat 0.5 0.5 0.5 0.5", "0 0.1 0.1 0.9 0.1 0.9 0.9 0.5", "0 0.1 0.1 nan 0.1 0.9 0.9"],
    ids=["four numbers", "a name", "half a point", "no number"],
)
def test_lines_of_another_format_are_refused(line: str, folder: Path) -> None:
    label(folder / "labels" / "val" / "a.txt", "0 0.5 0.5 0.5 0.5", "", line)
    assert "a.txt, line 3: expected 'class x y width height', a confidence after it or a polygon" in refusal(folder)
    assert f"got '{line}'" in refusal(folder)


@pytest.mark.parametrize(
    "line",
    [
        *("0 0.9 0.5 0.5 0.5", "0 0.5 -0.2 0.5 0.5", "0 20 10 4 4", "0 0.5 0.5 0 0.5", "0 0.5 0.5 0.5 -0.5"),
        *("0 nan 0.5 0.5 0.5", "2 0.5 0.5 0.5 0.5", "-1 0.5 0.5 0.5 0.5", "0.5 0.5 0.5 0.5 0.5"),
        "0 1.004 0.5 0.004 0.5",
    ],
)
def test_boxes_outside_the_image_and_unknown_classes_are_refused(line: str, folder: Path) -> None:
    label(folder / "labels" / "val" / "a.txt", line)
    message = refusal(folder)
    assert "a.txt, line 1: expected a class from 0 to 1 and a box within the image in fractions of its size" in message
    assert f"got '{line}'" in message


def test_rounded_labels_are_clipped(folder: Path) -> None:
    label(folder / "labels" / "val" / "a.txt", "0 0.5 0.5 1.000002 1.01")
    assert boxes(Yolo(str(folder), "val", NAMES, size=(20, 40))[0]) == [[-0.5, -0.5, 39.5, 19.5, 0]]


def test_a_damaged_image_of_many_is_left_out_and_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "images" / "val" / "0.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        source = Yolo(str(folder), "val", NAMES, size=(20, 40))
    assert len(source) == 1
    assert boxes(source[0]) == [[9.5, 4.5, 19.5, 14.5, 1]]
    assert "val: 1 image(s) cannot be used, the first is" in caplog.text
    assert "0.png: expected an image, got a file that cannot be decoded" in caplog.text


def test_a_folder_without_any_image_is_refused(folder: Path) -> None:
    (folder / "images" / "val" / "a.png").write_bytes(b"no image")
    assert "expected images with boxes, got none; 1 image(s) cannot be used, the first is" in refusal(folder)
    (folder / "images" / "val" / "a.png").unlink()
    assert "expected images with boxes, got none; add images" in refusal(folder)


def test_wrong_folders_and_sizes_are_refused(folder: Path) -> None:
    expected = "expected the folders images/test and labels/test or test/images and test/labels, got neither"
    assert expected in refusal(folder, "test")
    assert "expected the folders images and labels, got neither" in refusal(folder / "images", None)
    assert "expected data.size=[h,w] of positive numbers, got [0, 640]" in refusal(folder, size=[0, 640])
    assert "got [640]" in refusal(folder, size=[640])


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real test material in ../shared/real")
def test_coco8() -> None:
    names = [str(number) for number in range(80)]
    source = Yolo(str(REAL), "val", names, size=(320, 320))
    assert len(source) == 4
    batch = source.__getitems__([0, 1, 2, 3])
    assert batch.frames.shape == (4, 1, 3, 320, 320)
    assert batch.boxes is not None
    counts = (~batch.boxes[..., 0].isnan()).sum(1).tolist()
    files = sorted((REAL / "labels" / "val").glob("*.txt"))
    assert counts == [len(file.read_text().splitlines()) for file in files]
    known = batch.boxes[~batch.boxes[..., 0].isnan()]
    assert known[:, :4].min() >= -0.5
    assert known[:, :4].max() <= 319.5
    assert len(Yolo(str(REAL), None, names)) == 8

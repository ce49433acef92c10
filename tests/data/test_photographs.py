from __future__ import annotations

import logging
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from patchattack import pictures
from patchattack.data import photographs
from patchattack.data.photographs import Photographs
from patchattack.errors import InputError

REAL = (Path(__file__).parents[2] / "../shared/real/images_imagenet").resolve()


def write(path: Path, grey: int = 0, size: tuple[int, int] = (8, 8)) -> None:
    """An image of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), grey, np.uint8))


def write_classes(root: Path, counts: dict[str, int]) -> None:
    """Class folders; an image's grey is its class's place times 10."""
    for place, (name, count) in enumerate(counts.items()):
        for number in range(count):
            write(root / name / f"{number}.png", place * 10)


def opened(root: Path, **options: object) -> Photographs:
    return Photographs(str(root), **({"size": (8, 8), "crop": 1.0} | options))  # type: ignore[arg-type]


def greys(source: Photographs) -> list[int]:
    return source.frames[:, 0, 0, 0, 0].tolist()


def refusal(root: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        opened(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_of_images_has_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 10, (8, 12))
    write(tmp_path / "b.JPG", 20, (20, 10))
    write(tmp_path / "deeper" / "c.png", 30)
    source = opened(tmp_path, shuffle=False, labels="none")
    assert greys(source) == [10, 20, 30]
    assert source.classes == ()
    scene = source[1]
    assert scene.frames.shape == (1, 1, 3, 8, 8)
    assert scene.frames.dtype == torch.uint8
    assert scene.index.tolist() == [1]
    assert scene.label is None


def test_class_folders_are_labels(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 2, "dog": 1})
    write(tmp_path / "cat" / "deeper" / "x.png", 7)
    write(tmp_path / ".trash" / "x.png")
    write(tmp_path / "dog" / "._0.png")
    source = opened(tmp_path, shuffle=False)
    assert source.classes == ("cat", "dog")
    batch = source.__getitems__([3, 0])
    assert batch.frames.shape == (2, 1, 3, 8, 8)
    assert batch.index.tolist() == [3, 0]
    assert batch.label is not None
    assert batch.label.tolist() == [1, 0]
    assert batch.label.dtype == torch.int64
    assert source.__getitems__([0, 1, 2, 3]).label.tolist() == [0, 0, 0, 1]
    assert greys(source) == [0, 0, 7, 10]
    assert opened(tmp_path, labels="none")[0].label is None


def test_images_beside_class_folders(tmp_path: Path) -> None:
    """One picture too many must not take all labels away."""
    write_classes(tmp_path, {"cat": 1})
    write(tmp_path / "thumbs.png", 99)
    assert "got 1 in folders and 1 beside them, such as thumbs.png; move one or the other away" in refusal(tmp_path)
    assert opened(tmp_path, labels="none")[0].label is None
    source = opened(tmp_path, labels="folders", shuffle=False)
    assert source.__getitems__([0, 1]).label.tolist() == [0, -1]


def test_folders_named_by_wordnet_go_by_the_lines_of_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """ImageNet's own list is in the order of every network that was trained on it."""
    write_classes(tmp_path, {"n01443537": 1, "n01440764": 1, "traffic light": 1})
    table = tmp_path / "LOC_synset_mapping.txt"
    table.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\nn01484850 great white shark\ntraffic light\n")
    source = opened(tmp_path, classes=str(table), shuffle=False)
    assert source.classes == ()  # the victim's numbers
    assert source.__getitems__([0, 1, 2]).label.tolist() == [0, 1, 3]
    for text, count in (("n01440764\n", 0), ("traffic light\nn01440764\nn01443537 a\nn01443537 b\n", 2)):
        table.write_text(text)
        message = refusal(tmp_path, classes=str(table))
        assert f"expected one line for each class folder, got {count} for n01443537" in message
    assert "expected a text file of folders, got nowhere" in refusal(tmp_path, classes="nowhere")
    shutil.rmtree(tmp_path / "traffic light")
    assert not caplog.records
    assert opened(tmp_path).classes == ("n01440764", "n01443537")
    assert "give data.classes=FILE" in caplog.text


def test_a_csv_file_gives_the_classes(tmp_path: Path) -> None:
    for place, name in enumerate(("a.png", "b.png", "sub/c.png", "d.png")):
        write(tmp_path / name, place)
    table = tmp_path / "labels.csv"
    table.write_text('file,class\nb.png,dog\n\nsub/c.png, cat \na.png,"tench, Tinca tinca"\n', encoding="utf-8-sig")
    source = opened(tmp_path, labels=str(table), shuffle=False)
    assert source.classes == ("cat", "dog", "tench, Tinca tinca")
    assert source.__getitems__([0, 1, 2, 3]).label.tolist() == [2, 1, -1, 0]  # a, b, d, sub/c
    table.write_text("a.png,17\nb.png,3\n")
    source = opened(tmp_path, labels=str(table), shuffle=False)
    assert [source.classes[n] if n >= 0 else None for n in source.labels] == ["17", "3", None, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,cat\nnowhere.png,dog\n", r"expected files of images in .*, got 1 that are not there, such as nowhere"),
        ("a.png,cat\na.png\n", r"labels.csv, line 2: expected file,class, got 'a.png'"),
        ("a.png,tench, Tinca\n", r"line 1: expected file,class, got 'a.png,tench,Tinca'; quote names with commas"),
        ("file,class\n", "expected a line file,class for each labelled image, got none"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        opened(tmp_path, labels=str(tmp_path / "labels.csv"))


def test_labels_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    for labels in ("folder", str(tmp_path), str(tmp_path / "a.png")):
        assert f"expected auto, folders, none or a CSV file of file,class, got {labels}" in refusal(
            tmp_path, labels=labels
        )
    assert "expected a folder for each class" in refusal(tmp_path, labels="folders")


def test_every_part_of_a_run_has_every_class(tmp_path: Path) -> None:
    counts = {"frequent": 40, "rare": 10, "usual": 20}
    write_classes(tmp_path, counts)
    for seed in range(4):
        source = opened(tmp_path, seed=seed)
        labels = source.labels.tolist()
        assert [label * 10 for label in labels] == greys(source)
        for start, end in ((0, 42), (42, 49), (49, 70)):  # a split of 0.6, 0.1 and 0.3
            part = Counter(source.classes[label] for label in labels[start:end])
            for name, count in counts.items():
                assert abs(part[name] - (end - start) / 70 * count) <= 2


def test_equal_classes_do_not_take_turns(tmp_path: Path) -> None:
    """Evaluation takes every n-th scene: of classes in a fixed turn that could be one class alone."""
    write_classes(tmp_path, dict.fromkeys("abcd", 16))
    labels = opened(tmp_path).labels
    assert all(sorted(turn.tolist()) == [0, 1, 2, 3] for turn in labels.view(16, 4))
    assert all(len(labels[first::4].unique()) > 1 for first in range(4))


def test_the_order_is_the_seeds(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path / f"{number:02}.png", number)
    first = greys(opened(tmp_path, seed=1))
    assert first == greys(opened(tmp_path, seed=1)) != greys(opened(tmp_path, seed=2))
    assert sorted(first) == list(range(30)) == greys(opened(tmp_path, shuffle=False))


def test_the_centre_is_kept_as_for_imagenet(tmp_path: Path) -> None:
    """Of 256 rows and columns, each column of one grey, the middle 224 remain, and nothing is resized."""
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    cv2.imwrite(str(tmp_path / "square.png"), ramp)
    frame = Photographs(str(tmp_path))[0].frames[0, 0]
    assert frame.shape == (3, 224, 224)
    assert torch.equal(frame, torch.arange(16, 240, dtype=torch.uint8).expand(3, 224, 224))


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (5, 5), (16, 16), (300, 31)])
@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
@pytest.mark.parametrize("crop", [1.0, 0.875, 0.3])
def test_every_shape_is_covered_in_its_proportions(
    tmp_path: Path, shape: tuple[int, int], size: tuple[int, int], crop: float
) -> None:
    """A ramp keeps its middle, its direction and its slope, and no border comes in."""
    y, x = np.indices(shape)
    image = np.stack([100 + 80 * (x / shape[1] - 0.5), 100 + 80 * (y / shape[0] - 0.5), np.full(shape, 77)], axis=-1)
    cv2.imwrite(str(tmp_path / "ramp.png"), image.round().astype(np.uint8))
    frame = opened(tmp_path, size=size, crop=crop)[0].frames[0, 0].double()
    assert frame.shape == (3, *size)
    assert (frame[0] == 77).all()  # OpenCV writes blue first
    scale = max(size[0] / shape[0], size[1] / shape[1]) / crop
    for channel, dim in ((1, 0), (2, 1)):
        profile = frame[channel].mean(dim=1 - dim)
        step = 80 / shape[dim] / scale  # between neighbouring pixels of the frame
        assert profile.mean().item() == pytest.approx(100 - 40 / shape[dim], abs=step / 2 + 1)  # cut at whole pixels
        assert ((profile[-1] - profile[0]) / (size[dim] - 1)).item() == pytest.approx(step, abs=0.1 * step + 0.2)


def test_shrinking_averages_areas(tmp_path: Path) -> None:
    board = np.indices((32, 32)).sum(0) % 2 * 200
    cv2.imwrite(str(tmp_path / "board.png"), board.astype(np.uint8))
    assert (opened(tmp_path)[0].frames == 100).all()


def test_damaged_images_are_left_out_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_classes(tmp_path, {"cat": 3, "dog": 3})
    (tmp_path / "cat" / "1.png").write_bytes(b"not an image")
    (tmp_path / "dog" / "0.png").write_bytes((tmp_path / "dog" / "0.png").read_bytes()[:60])
    with caplog.at_level(logging.WARNING):
        source = opened(tmp_path, shuffle=False)
    assert len(source) == 4
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert greys(source) == [0, 0, 10, 10]
    assert [scene.index.item() for scene in source] == [0, 1, 2, 3]
    assert len(caplog.records) == 1
    assert "2 image(s) cannot be used" in caplog.text
    assert "1.png: expected an image" in caplog.text


def test_only_damaged_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    message = refusal(tmp_path)
    assert "expected images, got none: 1 image(s) cannot be used" in message
    assert "a.png: expected an image" in message


def test_what_is_no_folder_of_images_is_refused(tmp_path: Path) -> None:
    assert "nowhere: expected a folder of images, got 'No such file or directory'" in refusal(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    assert "expected images (.bmp, .jpeg, " in refusal(tmp_path)
    assert "got 'Not a directory'" in refusal(tmp_path / "notes.txt")


def test_more_than_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path, {"cat": 4})
    monkeypatch.setattr(photographs, "MEMORY", 4 * 3 * 64 - 1)
    assert "got 4 of 8×8" in refusal(tmp_path)
    assert len(opened(tmp_path, size=(8, 7))) == 4


def test_a_picture_too_large_is_left_out_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.png", 1)
    write(tmp_path / "large.png", 2, (9, 9))
    monkeypatch.setattr(pictures, "PIXELS", 80)
    assert greys(opened(tmp_path)) == [1]
    assert "large.png: expected an image of 1 to 0 million pixels, got 9×9; make it smaller" in caplog.text


@pytest.mark.parametrize("options", [{"size": (8,)}, {"size": (0, 8)}, {"crop": 0.0}, {"crop": 1.1}])
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    assert "data=images: expected size [h, w] of positive numbers and crop in (0, 1]" in refusal(tmp_path, **options)


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/real/images_imagenet")
def test_real_photographs_in_class_folders(tmp_path: Path) -> None:
    paths = sorted(REAL.iterdir())[:20]
    for path in paths:
        folder = tmp_path / path.stem.split("_", 2)[2]
        folder.mkdir()
        (folder / path.name).symlink_to(path)
    source = Photographs(str(tmp_path))
    assert len(source) == 20
    assert len(source.classes) == 20
    assert sorted(source.labels.tolist()) == list(range(20))
    frames = source.frames.float()
    assert frames.shape == (20, 1, 3, 224, 224)
    assert frames.std(dim=(1, 2, 3, 4)).min() > 10  # pictures, not flat areas

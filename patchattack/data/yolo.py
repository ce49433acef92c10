"""Images with boxes in the format that YOLO is trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor

from patchattack import pictures
from patchattack.data.boxes import BoxedImages, Labelled, clip
from patchattack.errors import InputError


class Yolo(BoxedImages):
    """A folder of images and, beside it, a folder of labels.

    ``images/val/a/1.jpg`` has its labels in ``labels/val/a/1.txt``, or ``val/images/a/1.jpg`` in
    ``val/labels/a/1.txt``. A line there is an object: the number of its class, then the centre (x, y), the width and
    the height of its box as fractions of the image's, and perhaps a confidence, which is passed over. Or the points
    (x, y) of a polygon, whose box is taken. An image without objects has an empty file of labels, or none.

    Args:
        root: the folder that holds ``images`` and ``labels``, or the split.
        split: the folder below ``images``, or above it; None takes all of ``images``.
        names: of the classes in the order of their numbers; None takes ``names`` from ``data.yaml`` in ``root``.
        size: ``(h, w)`` of the frames, into which images are fitted in their proportions, with grey beside them.

    Raises:
        InputError: the folders or the names are not there, a line of labels is not a box within its image, or no
            image can be used.
    """

    def __init__(
        self,
        root: str,
        split: str | None = None,
        names: Sequence[str] | None = None,
        size: tuple[int, int] = (640, 640),
    ) -> None:
        folder = Path(root).expanduser()
        layouts = [(folder / "images", folder / "labels")]
        if split is not None:
            layouts = [(folder / "images" / split, folder / "labels" / split)]
            layouts += [(folder / split / "images", folder / split / "labels")]
        below, labels = next((one for one in layouts if all(part.is_dir() for part in one)), (None, None))
        if below is None or labels is None:
            expected = " or ".join(f"{a.relative_to(folder)} and {b.relative_to(folder)}" for a, b in layouts)
            raise InputError(
                f"{folder}: expected the folders {expected}, got neither; name their folder with data.root=FOLDER "
                "and the split with data.split=NAME or null"
            )
        classes = _names(folder / "data.yaml") if names is None else list(names)
        found = sorted(path for path in below.rglob("*") if path.suffix.lower() in pictures.ENDINGS)
        labelled = [
            Labelled(path, _boxes(labels / path.relative_to(below).with_suffix(".txt"), classes))
            for path in found
            if not path.name.startswith(".")  # macOS leaves ._name.jpg beside name.jpg on foreign disks
        ]
        super().__init__(labelled, classes, size, below)


def _names(path: Path) -> list[str]:
    """The names of the classes, which the file gives as a list or by their numbers."""
    try:
        # A loader that leaves every scalar the text that it is: others make numbers and truth values of 30 and on.
        names = yaml.load(path.read_text("utf-8"), yaml.BaseLoader)["names"]
        if isinstance(names, dict):
            names = [names[str(number)] for number in range(len(names))]
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError("names that are no text")
        return list(names)
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: expected 'names: [person, ...]' or 'names: {{0: person, ...}}', got {type(error).__name__}; "
            "write the file or name the classes with data.names=[person,...]"
        ) from error


def _boxes(path: Path, classes: Sequence[str]) -> Tensor:
    """``[N, 5]`` as in ``Labelled.boxes``."""
    rows = []
    try:
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a text of labels, got '{error}'; replace it") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            kind, *edges = _edges([float(word) for word in line.split()])
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: expected 'class x y width height', a confidence after it or a polygon "
                f"'class x1 y1 x2 y2 x3 y3 ...', got '{line[:60]}'; export the labels as boxes"
            ) from error
        box = clip(*edges)
        if box is None or kind not in range(len(classes)):
            raise InputError(
                f"{path}, line {number}: expected a class from 0 to {len(classes) - 1} and a box within the image in "
                f"fractions of its size, got '{line[:60]}'; correct the line or name more classes with data.names"
            )
        rows.append([*box, kind])
    return torch.tensor(rows, dtype=torch.float64).view(-1, 5)


def _edges(line: list[float]) -> tuple[float, float, float, float, float]:
    """The class, left, top, right and bottom of a line of labels."""
    if len(line) in (5, 6):
        kind, x, y, width, height = line[:5]
        return kind, x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(line) < 7 or len(line) % 2 == 0 or any(map(math.isnan, line)):
        raise ValueError("neither a box nor a polygon")
    xs, ys = line[1::2], line[2::2]
    return line[0], min(xs), min(ys), max(xs), max(ys)

"""A user's own photographs, with labels from class folders or a CSV file, or without."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import torch
from torch import Tensor
from tqdm import tqdm

from patchattack import pictures, seeding
from patchattack.errors import InputError
from patchattack.scene import Scene, Source

MEMORY = 8 * 2**30  # bytes that the decoded images may take

_WORDNET = re.compile(r"n\d{8}")  # ImageNet's names of its folders

_log = logging.getLogger(__name__)


class Photographs(Source):
    """Scenes of one frame each from the images in a folder and below it, of any sizes.

    An image is shrunk or enlarged until it just covers ``size / crop``, and cut about its centre: with the defaults
    the shorter side becomes 256 and 224×224 remain, as networks for ImageNet are tested. An image whose class is not
    known has the label -1.

    All images are decoded once, here, and stay in memory as uint8: it shows before the work starts which files are
    damaged.

    Args:
        root: the folder.
        size: ``(h, w)`` of the frames.
        crop: fraction of the resized image's shorter side that is kept, where the image has the frames' proportions.
        labels: ``folders`` takes the name of the folder in ``root`` that an image lies in or below, and leaves those
            beside the folders without label; ``none`` leaves all so; ``auto`` takes the folders, if there are any and
            no image lies beside them. Or a CSV file with a line ``file,class`` for each labelled image: its file
            relative to ``root``, and its class's name or the victim's number of it.
        classes: a text file with a line for each of the victim's classes, in its order, that is or begins with the name
            of their folder, as ImageNet's ``LOC_synset_mapping.txt`` does; None where folders are named as the
            victim's classes are.
        shuffle: mix the classes, so that every stretch of the source has its share of each: a run takes its training,
            validation and test scenes in the source's order.
        seed: of the mixing.

    Raises:
        InputError: an option that cannot be, no such folder, no image in it that can be used, more than 8 GiB of
            frames, or a CSV file that cannot be read or does not fit.
    """

    def __init__(
        self,
        root: str,
        size: Sequence[int] = (224, 224),
        crop: float = 0.875,
        labels: str = "auto",
        classes: str | None = None,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        if len(size) != 2 or min(size) < 1 or not 0 < crop <= 1:
            raise InputError(
                f"data=images: expected size [h, w] of positive numbers and crop in (0, 1], "
                f"got size={list(size)} and crop={crop}"
            )
        folder = Path(root).expanduser()
        paths = _images_below(folder)
        height, width = size
        if (total := len(paths) * 3 * height * width) > MEMORY:
            raise InputError(
                f"{folder}: expected frames that fit in {MEMORY / 2**30:g} GiB, got {len(paths):,} of {height}×{width} "
                f"({total / 2**30:.1f} GiB); shrink them with data.size=[h,w] or name fewer with data.root"
            )
        names = _class_names(folder, paths, labels)
        found = sorted({name for name in names if name is not None})
        if classes is None:
            by_name = {name: number for number, name in enumerate(found)}
            self.classes = tuple(found)
            if all(map(_WORDNET.fullmatch, found)) and found:
                _log.warning(
                    "%s: folders are named by WordNet's numbers; for a victim with other names of its classes, give "
                    "data.classes=FILE, such as ImageNet's LOC_synset_mapping.txt",
                    folder,
                )
        else:
            by_name = _places(Path(classes).expanduser(), found)  # the victim's own numbers: no names to compare
        numbers = torch.tensor([-1 if name is None else by_name[name] for name in names])
        order = _mix(numbers, seed) if shuffle else torch.arange(len(paths))
        frames = torch.empty(len(paths), 3, height, width, dtype=torch.uint8)
        kept: list[int] = []
        refused: list[InputError] = []
        for row in tqdm(order.tolist(), "Reading images", unit="image", delay=2, disable=None):
            try:
                image = pictures.read(paths[row])
            except InputError as error:
                refused.append(error)
                continue
            frames[len(kept)] = _resize_and_crop(image, (height, width), crop)
            kept.append(row)
        skipped = f"{len(refused)} image(s) cannot be used, the first is {refused[0]}" if refused else ""
        if not kept:
            raise InputError(f"{folder}: expected images, got none: {skipped}")
        if skipped:
            _log.warning("%s: %s", folder, skipped)
        self.frames = frames[: len(kept)].unsqueeze(1)  # [N, 1, 3, h, w]
        self.labels = numbers[kept] if found else None  # [N]
        self.paths = [paths[row] for row in kept]

    def __len__(self) -> int:
        return len(self.frames)

    def files(self, index: int) -> tuple[Path, ...]:
        """The image."""
        return (self.paths[index],)

    def __getitem__(self, index: int) -> Scene:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Scene:
        """The images at ``indices`` as one batch, frames uint8."""
        rows = torch.tensor(indices)
        return Scene(self.frames[rows], index=rows, label=None if self.labels is None else self.labels[rows])


def _images_below(root: Path) -> list[Path]:
    """The image files in a folder and below it; not those that are hidden or lie in hidden folders."""

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename}: expected a folder of images, got '{error.strerror}'; name one with data.root"
        )

    paths = []
    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        paths += [Path(folder, n) for n in names if n.lower().endswith(pictures.ENDINGS) and not n.startswith(".")]
    if not paths:
        raise InputError(
            f"{root}: expected images ({', '.join(pictures.ENDINGS)}) in this folder or below it, got none; "
            "name another folder with data.root"
        )
    return sorted(paths)


def _class_names(root: Path, paths: list[Path], labels: str) -> list[str | None]:
    """The class of each image, None where it is unknown."""
    places = [path.relative_to(root) for path in paths]
    if labels == "auto":
        beside = [place for place in places if len(place.parts) == 1]
        if 0 < len(beside) < len(places):
            raise InputError(
                f"{root}: expected images in class folders or without folders, got {len(places) - len(beside)} in "
                f"folders and {len(beside)} beside them, such as {beside[0]}; move one or the other away, or set "
                "data.labels=folders (no label for those beside) or data.labels=none"
            )
        labels = "none" if beside else "folders"
    if labels == "none":
        return [None] * len(paths)
    if labels == "folders":
        if all(len(place.parts) == 1 for place in places):
            raise InputError(f"data.labels=folders: expected a folder for each class in {root}, got images alone")
        return [place.parts[0] if len(place.parts) > 1 else None for place in places]
    listed = _read_csv(Path(labels).expanduser())
    if strangers := listed.keys() - {place.as_posix() for place in places}:
        raise InputError(
            f"{labels}: expected files of images in {root}, got {len(strangers)} that are not there, such as "
            f"{_cell_text(min(strangers))}; name them relative to data.root"
        )
    return [listed.get(place.as_posix()) for place in places]


def _places(path: Path, found: list[str]) -> dict[str, int]:
    """The line of each folder of ``found`` in a file of folders, from 0."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"data.classes: expected a text file of folders, got {path} ({error})") from error
    first = [line.split(maxsplit=1)[0] for line in lines]
    known: dict[str, int] = {}
    for name in found:
        listed = lines if name in lines else first
        if listed.count(name) != 1:
            raise InputError(
                f"{path}: expected one line for each class folder, got {listed.count(name)} for {name}; list the "
                "folders in the order of the victim's classes"
            )
        known[name] = listed.index(name)
    return known


def _read_csv(path: Path) -> dict[str, str]:
    """File to class, of the lines of a CSV file; a first line ``file,class`` is its header."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(file), 1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"data.labels: expected auto, folders, none or a CSV file of file,class, got {path} ({error})"
        ) from error
    listed: dict[str, str] = {}
    for number, row in lines:
        if number == 1 and row == ["file", "class"]:
            continue
        if len(row) != 2 or not all(row):
            raise InputError(
                f"{path}, line {number}: expected file,class, got '{_cell_text(','.join(row))}'; quote names "
                "with commas"
            )
        listed[row[0]] = row[1]
    if not listed:
        raise InputError(f"{path}: expected a line file,class for each labelled image, got none")
    return listed


def _cell_text(cell: str) -> str:
    """A cell of a CSV file, which may hold lines, as part of a message."""
    return " ".join(cell.split())[:80]


def _mix(numbers: Tensor, seed: int) -> Tensor:
    """``[N]`` a random order in which every stretch has its share of each class, give or take two images.

    The images of a class, shuffled, take one each of as many equal slots, at a random place in their slot. So classes
    do not come in a fixed turn either, and every n-th image is as good a sample.
    """
    generator = seeding.generator(seed)
    shuffled = torch.randperm(len(numbers), generator=generator)
    places = torch.empty(len(numbers), dtype=torch.float64)
    for number in numbers.unique():
        rows = shuffled[numbers[shuffled] == number]
        within = torch.rand(len(rows), generator=generator, dtype=torch.float64)
        places[rows] = (torch.arange(len(rows)) + within) / len(rows)
    return places.argsort()


def _resize_and_crop(image: Tensor, size: tuple[int, int], crop: float) -> Tensor:
    """``image [3, H, W]``, uint8, resized until it just covers ``size / crop``; its centre ``[3, h, w]``."""
    height, width = image.shape[1:]
    scale = max(size[0] / height, size[1] / width) / crop
    # Areas are averaged where an image shrinks; where it grows, OpenCV's area would repeat pixels.
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    covering = (max(size[1], round(width * scale)), max(size[0], round(height * scale)))
    resized = cv2.resize(image.permute(1, 2, 0).numpy(), covering, interpolation=method)
    top, left = (resized.shape[0] - size[0]) // 2, (resized.shape[1] - size[1]) // 2
    return torch.from_numpy(resized[top : top + size[0], left : left + size[1]]).permute(2, 0, 1)

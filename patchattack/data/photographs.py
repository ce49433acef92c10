"""A user's own photographs, with labels from class folders or a CSV file, or without."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import cv2
import torch
from torch import Tensor
from tqdm import tqdm

from patchattack import pictures, seeding
from patchattack.addresses import Place, is_address, open_place
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
    damaged. Streamed images are read when they are needed: they need not fit, and one that cannot be used ends the
    work.

    Args:
        root: the folder; or one at an address that fsspec knows, as ``s3://bucket/photos``, or in an archive (tar, zip)
            here or there.
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
        stream: read images when they are needed; None does so with addresses and archives.
        cache_gb: of images from an address that are kept on this machine's disk.

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
        stream: bool | None = None,
        cache_gb: float = 10.0,
    ) -> None:
        if len(size) != 2 or min(size) < 1 or not 0 < crop <= 1:
            raise InputError(
                f"data=images: expected size [h, w] of positive numbers and crop in (0, 1], "
                f"got size={list(size)} and crop={crop}"
            )
        folder = open_place(root, cache_gb) if is_address(root) else Path(root).expanduser()
        listed = _images_below(folder)
        files = [*listed.values()]
        self.size, self.crop = (size[0], size[1]), crop
        streams = isinstance(folder, Place) if stream is None else stream
        height, width = size
        if not streams and (total := len(files) * 3 * height * width) > MEMORY:
            raise InputError(
                f"{folder}: expected frames that fit in {MEMORY / 2**30:g} GiB, got {len(files):,} of {height}×{width} "
                f"({total / 2**30:.1f} GiB); shrink them with data.size=[h,w], name fewer with data.root, or read them "
                "as they are needed with data.stream=true"
            )
        names = _class_names(folder, [*listed], labels)
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
        order = _mix(numbers, seed) if shuffle else torch.arange(len(files))
        kept = order.tolist()
        self.frames: Tensor | None = None  # [N, 1, 3, h, w]
        if not streams:
            kept, self.frames = self._read_all(folder, files, kept)
        self.labels = numbers[kept] if found else None  # [N]
        self.images = [files[row] for row in kept]

    def _read_all(
        self, folder: Path | Place, files: Sequence[pictures.Readable], order: Sequence[int]
    ) -> tuple[list[int], Tensor]:
        """Those of ``order`` that can be used, and their frames ``[N, 1, 3, h, w]``."""
        frames = torch.empty(len(files), 3, *self.size, dtype=torch.uint8)
        kept: list[int] = []
        refused: list[InputError] = []
        for row in tqdm(order, "Reading images", unit="image", delay=2, disable=None):
            try:
                image = pictures.read(files[row])
            except InputError as error:
                refused.append(error)
                continue
            frames[len(kept)] = _resize_and_crop(image, self.size, self.crop)
            kept.append(row)
        skipped = f"{len(refused)} image(s) cannot be used, the first is {refused[0]}" if refused else ""
        if not kept:
            raise InputError(f"{folder}: expected images, got none: {skipped}")
        if skipped:
            _log.warning("%s: %s", folder, skipped)
        return kept, frames[: len(kept)].unsqueeze(1)

    def __len__(self) -> int:
        return len(self.images)

    def files(self, index: int) -> tuple[Path, ...]:
        """The image, if it lies on this machine."""
        image = self.images[index]
        return (image,) if isinstance(image, Path) else ()

    def __getitem__(self, index: int) -> Scene:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Scene:
        """The images at ``indices`` as one batch, frames uint8.

        Raises:
            InputError: a streamed image cannot be used.
        """
        rows = torch.tensor(indices)
        if self.frames is None:
            read = (pictures.read(self.images[index]) for index in indices)
            frames = torch.stack([_resize_and_crop(image, self.size, self.crop) for image in read]).unsqueeze(1)
        else:
            frames = self.frames[rows]
        return Scene(frames, index=rows, label=None if self.labels is None else self.labels[rows])


def _images_below(root: Path | Place) -> dict[PurePosixPath, pictures.Readable]:
    """The image files in a folder and below it by their place in it; not those hidden or in hidden folders."""

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename}: expected a folder of images, got '{error.strerror}'; name one with data.root"
        )

    found: dict[PurePosixPath, pictures.Readable] = {}
    if isinstance(root, Place):
        places = (PurePosixPath(folder, name) for folder, names in root.walk() for name in names)
        found = {place: root.file(str(place)) for place in places if not any(p.startswith(".") for p in place.parts)}
    else:
        for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
            below[:] = [name for name in below if not name.startswith(".")]
            paths = (Path(folder, name) for name in names if not name.startswith("."))
            found |= {PurePosixPath(path.relative_to(root).as_posix()): path for path in paths}
    found = {place: found[place] for place in sorted(found) if place.name.lower().endswith(pictures.ENDINGS)}
    if not found:
        raise InputError(
            f"{root}: expected images ({', '.join(pictures.ENDINGS)}) in this folder or below it, got none; "
            "name another folder with data.root"
        )
    return found


def _class_names(root: Path | Place, places: list[PurePosixPath], labels: str) -> list[str | None]:
    """The class of each image, None where it is unknown."""
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
        return [None] * len(places)
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

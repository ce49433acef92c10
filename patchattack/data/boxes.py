"""What sources of images with boxes share: images of any size in frames of one size, and their boxes with them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from torch import Tensor
from tqdm import tqdm

from patchattack import pictures
from patchattack.errors import InputError
from patchattack.names import class_names
from patchattack.scene import Scene, Source

GREY = 114  # beside an image that does not fill its frame: what YOLO is trained with
TOLERANCE = 0.01  # fraction of the image by which a box may stick out, because labels are rounded

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelled:
    """An image and its objects.

    Attributes:
        path: of the image file.
        boxes: ``[N, 5]`` float64: left and right as fractions of the width, top and bottom as fractions of the height
            (left, top, right, bottom), and the class; N is 0 without an object.
        size: height and width for which the boxes were drawn, None where the labels do not say.
    """

    path: Path
    boxes: Tensor
    size: tuple[int, int] | None = None


class BoxedImages(Source):
    """Labelled images, each fitted into a frame of one size.

    All images are decoded once, here: what is damaged shows before the work starts, and is left out.

    Args:
        labelled: the images and their boxes.
        classes: names of what the boxes number, as the user's file has them.
        size: ``(h, w)`` of the frames.
        place: what messages call the whole of the images.

    Raises:
        InputError: no image can be used, a class has no name, or ``size`` is not two positive numbers.
    """

    def __init__(
        self, labelled: Sequence[Labelled], classes: Sequence[object], size: Sequence[int], place: Path
    ) -> None:
        if len(size) != 2 or min(size) < 1:
            raise InputError(f"{place}: expected data.size=[h,w] of positive numbers, got {list(size)}")
        self.classes, self.size = class_names(classes, place), (size[0], size[1])
        self.labelled: list[Labelled] = []
        refused: list[InputError] = []
        for one in tqdm(labelled, "Reading images", unit="image", delay=2, disable=None):
            try:
                found = pictures.read(one.path).shape[-2:]
                if one.size not in (None, found):
                    raise InputError(
                        f"{one.path}: expected {one.size[0]}×{one.size[1]} like its labels, got {found[0]}×{found[1]}"
                    )
            except InputError as error:
                refused.append(error)
            else:
                self.labelled.append(one)
        skipped = f"{len(refused)} image(s) cannot be used, the first is {refused[0]}" if refused else ""
        if not self.labelled:
            raise InputError(f"{place}: expected images with boxes, got none; {skipped or 'add images'}")
        if skipped:
            _log.warning("%s: %s", place, skipped)

    def __len__(self) -> int:
        return len(self.labelled)

    def files(self, index: int) -> tuple[Path, ...]:
        """The image."""
        return (self.labelled[index].path,)

    def __getitem__(self, index: int) -> Scene:
        one = self.labelled[index]
        frame, boxes = letterbox(pictures.read(one.path), one.boxes, self.size)
        if not len(boxes):
            boxes = torch.full((1, 5), torch.nan)
        return Scene(frames=frame[None, None], index=torch.tensor([index]), boxes=boxes[None])


def letterbox(image: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The image as large as fits into ``size``, in its proportions and with grey beside it, and its boxes there.

    Args:
        image: uint8 ``[3, h, w]``.
        boxes: ``[N, 5]`` as in :class:`Labelled`.
        size: ``(H, W)`` of the frame.

    Returns:
        uint8 ``[3, H, W]``, and float32 ``[N, 5]`` in the frame's pixels as in ``Scene.boxes``, the largest first.
    """
    full = image.shape[-2:]
    scale = min(size[0] / full[0], size[1] / full[1])
    height, width = (max(1, round(side * scale)) for side in full)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    # INTER_AREA averages what falls into a pixel, but repeats pixels when it enlarges.
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    inside = cv2.resize(image.permute(1, 2, 0).numpy(), (width, height), interpolation=interpolation)
    frame = torch.full((3, *size), GREY, dtype=torch.uint8)
    frame[:, top : top + height, left : left + width] = torch.from_numpy(inside).permute(2, 0, 1)

    # Edges are half a pixel from centres: the image spans [left - 0.5, left + width - 0.5].
    stretch = boxes.new_tensor([width, height, width, height, 1])
    moved = boxes * stretch + boxes.new_tensor([left - 0.5, top - 0.5, left - 0.5, top - 0.5, 0])
    area = (moved[:, 2] - moved[:, 0]) * (moved[:, 3] - moved[:, 1])
    return frame, moved[area.argsort(descending=True, stable=True)].float()


def clip(left: float, top: float, right: float, bottom: float) -> list[float] | None:
    """The box, in fractions of the image, without what rounding lets stick out; None if it is no box in the image."""
    box = [left, top, right, bottom]
    inside = [min(max(edge, 0.0), 1.0) for edge in box]
    near = all(abs(edge - kept) <= TOLERANCE for edge, kept in zip(box, inside, strict=True))
    return inside if near and inside[0] < inside[2] and inside[1] < inside[3] else None

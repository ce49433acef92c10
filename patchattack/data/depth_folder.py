"""A folder of frames with depth maps beside them."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from patchattack import pictures
from patchattack.errors import InputError
from patchattack.scene import Scene, Source

_log = logging.getLogger(__name__)


class DepthFolder(Source):
    """Single frames, each with the depth that a 16-bit PNG gives in KITTI's way (0 is unknown).

    A pattern is a path below ``root`` with one ``*``; what it stands for is the same for a frame and its depth map,
    as in ``image_02/data/*.png`` and ``groundtruth/image_02/*.png``. Frames without a depth map are left out.

    A frame with an EXIF orientation is turned as viewers show it. A depth map without one is turned with it where it is
    as large as the stored pixels, as of one sensor, and taken as it is where it is as large as the picture shown.

    As in :class:`~patchattack.data.kitti.Kitti`, frames are cropped, never resized, to one size, and the bottom and
    the horizontal centre stay.

    Args:
        root: the folder.
        frames: pattern of the images.
        depths: pattern of their depth maps, uint16 PNG.
        scale: of the depth maps' numbers, for one metre.
        size: ``(h, w)`` of the crop, ``None`` takes the smallest height and width found.

    Raises:
        InputError: a pattern has not one ``*``, there is no frame with a depth map, the two differ in size, one cannot
            be read, or a frame is smaller than ``size``.
    """

    def __init__(
        self,
        root: str,
        frames: str = "*.jpg",
        depths: str = "*_depth.png",
        scale: float = 256.0,
        size: tuple[int, int] | None = None,
    ) -> None:
        if frames.count("*") != 1 or depths.count("*") != 1:
            raise InputError(
                f"data=depth: expected one * in each of frames and depths, got frames={frames} and depths={depths}"
            )
        if scale <= 0 or (size is not None and (len(size) != 2 or min(size) < 1)):
            raise InputError(
                f"data=depth: expected scale above 0 and size [h, w] of positive numbers or null, got scale={scale} "
                f"and size={size if size is None else list(size)}"
            )
        folder = Path(root).expanduser()
        self.pairs = _pairs(folder, frames, depths)
        found: list[tuple[int, int]] = []
        self._turns: list[int | None] = []  # EXIF's number by which a depth map is turned, None is its own
        unsaid: list[Path] = []
        for frame, depth in self.pairs:
            (height, width), turn = _match_sizes(frame, depth)
            found.append((height, width))
            self._turns.append(turn)
            if turn is not None and (turn < 5 or height == width):  # the map has both sizes
                unsaid.append(frame)
        if unsaid:
            _log.warning(
                "%s: %d frame(s) have an EXIF orientation and their depth maps none: both are turned, as of one "
                "sensor; if the maps are as the frames are shown, save the frames without EXIF. The first is %s",
                folder,
                len(unsaid),
                unsaid[0],
            )
        self.size = (size[0], size[1]) if size else (min(h for h, _ in found), min(w for _, w in found))
        for (frame, _), (height, width) in zip(self.pairs, found, strict=True):
            if height < self.size[0] or width < self.size[1]:
                raise InputError(
                    f"{frame}: expected at least {self.size[0]}×{self.size[1]}, got {height}×{width}; frames are "
                    "cropped to data.size=[h,w], so choose a smaller one"
                )
        self.scale = scale

    def __len__(self) -> int:
        return len(self.pairs)

    def files(self, index: int) -> tuple[Path, ...]:
        """The frame."""
        return self.pairs[index][:1]

    def __getitem__(self, index: int) -> Scene:
        frame, depth = self.pairs[index]
        numbers = pictures.read_16_bit(depth, orientation=self._turns[index])
        metres = (numbers / self.scale).where(numbers > 0, torch.nan)
        return Scene(
            frames=self._crop(pictures.read(frame))[None, None],
            index=torch.tensor([index]),
            depth=self._crop(metres)[None],
        )

    def _crop(self, image: Tensor) -> Tensor:
        top, left = image.shape[-2] - self.size[0], (image.shape[-1] - self.size[1]) // 2
        return image[..., top:, left : left + self.size[1]].contiguous()


def _pairs(folder: Path, frames: str, depths: str) -> list[tuple[Path, Path]]:
    """Every frame that has a depth map, with it, by name."""
    before, after = frames.split("*")
    maps = set(folder.glob(depths))
    pairs, lacking = [], []
    for frame in sorted(set(folder.glob(frames)) - maps):
        name = frame.relative_to(folder).as_posix().removeprefix(before).removesuffix(after)
        depth = folder / depths.replace("*", name)
        if depth in maps:
            pairs.append((frame, depth))
        else:
            lacking.append(frame)
    if not pairs:
        raise InputError(
            f"{folder}: expected frames {frames} and depth maps {depths} of the same names, got "
            f"{len(lacking)} frame(s) and {len(maps)} depth map(s); set data.root, data.frames and data.depths"
        )
    if lacking:
        _log.warning(
            "%s: %d frame(s) have no depth map and are left out, the first is %s", folder, len(lacking), lacking[0]
        )
    return pairs


def _match_sizes(frame: Path, depth: Path) -> tuple[tuple[int, int], int | None]:
    """Height and width of both as shown, and the frame's orientation where the depth map is turned by it."""
    picture, numbers = pictures.header(frame), pictures.header(depth)
    if numbers.orientation == 1 != picture.orientation and numbers.stored == picture.stored:
        return picture.size, picture.orientation
    if numbers.size != picture.size:
        raise InputError(
            f"{depth}: expected {picture.size[0]}×{picture.size[1]} like {frame}, got "
            f"{numbers.size[0]}×{numbers.size[1]}; copy both again"
        )
    return picture.size, None

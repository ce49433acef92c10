"""A scene pack: pictures with the place of a patch in each, measured once and handed on as a folder of plain files.

``scenes.csv`` has a line for each frame, ``scenes.json`` says what they are and how many, and all paths lie in the
folder. ``patchattack.benchmark.scene_pack`` writes packs.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import torch
from torch import Tensor

from patchattack import files, pictures
from patchattack.errors import InputError
from patchattack.scene import Scene, Source

FORMAT, VERSION = "patchattack-scenes", 1
TABLE, HEAD = "scenes.csv", "scenes.json"
CORNERS = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")
_UNKNOWN = ("side_mm", "alpha", "beta", "radius_m", "polar_deg", "azimuth_deg")  # numbers that may be
COLUMNS = ("scene", "frame", "filename", "object_id", "label", *CORNERS, "light", *_UNKNOWN, "depth")
FARTHEST = 1e6  # pixels from the frame's corner at which a corner of the plane may lie
DEPTH_SCALE = 256.0  # of 16-bit depth maps, for one metre, as KITTI's; 0 is unknown


@dataclass(frozen=True)
class Frame:
    """A line of the table: one frame of a scene, and the square in it that carries the patch.

    Attributes:
        scene, frame: numbers from 0; lines are in their order, and all scenes have as many frames.
        filename: of the picture, relative to the folder, with ``/``.
        corners: eight pixels x, y: top-left, top-right, bottom-right and bottom-left of the square as printed.
        object_id: of what carries it, in its source.
        label: its class; "" where unknown.
        light: in words.
        side_mm: of the square.
        alpha, beta: black to white of the patch lie at ``beta`` to ``alpha + beta`` in the frame, as in REAP.
        radius_m, polar_deg, azimuth_deg: of the camera as the square sees it: 0° is the vertical, 90° the horizontal
            plane; 0° is before the square and positive to its right.
        depth: 16-bit PNG of the frame's size, relative to the folder, 256 for a metre; "" where there is none.
    """

    scene: int
    frame: int
    filename: str
    corners: tuple[float, ...]
    object_id: str = ""
    label: str = ""
    light: str = ""
    side_mm: float = math.nan
    alpha: float = math.nan
    beta: float = math.nan
    radius_m: float = math.nan
    polar_deg: float = math.nan
    azimuth_deg: float = math.nan
    depth: str = ""


class Pack(Source):
    """The scenes of a pack, with the surface of each, and with its class and depth where the pack knows them.

    The patch lies on the surface with ``placement=surface`` or ``placement.motion=scene``. Light and pose stay in
    ``frames_of``: nothing is relit.

    Args:
        root: the folder.
        size: ``(h, w)`` to which frames are resized, and their corners with them; ``None`` keeps theirs.

    Attributes:
        frames_of: lines of the table, by scene.

    Raises:
        InputError: the folder is no pack of this version, its table has other columns or fewer lines than it says, a
            corner is no number or the four are no convex square, a picture is missing or outside of the folder, or
            frames differ in size while ``size`` is ``None``.
    """

    def __init__(self, root: str, size: tuple[int, int] | None = None) -> None:
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise InputError(f"data=pack: expected size [h, w] of positive numbers or null, got size={list(size)}")
        self.folder = Path(root).expanduser()
        self.head, lines = read(self.folder)
        self.classes = tuple(self.head["classes"])
        self.frames_of = [tuple(lines[at : at + self._count]) for at in range(0, len(lines), self._count)]
        stored: dict[str, tuple[int, int]] = {}
        for line in lines:
            stored.setdefault(line.filename, pictures.header(self.folder / line.filename).size)
            if line.depth:
                self._check_depth(line, stored[line.filename], size)
        first = lines[0].filename
        self.size = size or stored[first]
        for name, found in stored.items():
            if size is None and found != self.size:
                raise InputError(
                    f"{self.folder / name}: expected {self.size[0]}×{self.size[1]} like {first}, got "
                    f"{found[0]}×{found[1]}; resize all frames with data.size=[h,w]"
                )
        self._stored, self._has_depth = stored, any(lines[0].depth for lines in self.frames_of)

    @property
    def _count(self) -> int:
        return int(self.head["frames"])

    def __len__(self) -> int:
        return len(self.frames_of)

    def files(self, index: int) -> tuple[Path, ...]:
        """The pictures of the scene's frames."""
        return tuple(self.folder / line.filename for line in self.frames_of[index])

    def __getitem__(self, index: int) -> Scene:
        lines = self.frames_of[index]
        surface = [self._resized_corners(line) for line in lines]
        label = self.classes.index(lines[0].label) if lines[0].label else -1
        return Scene(
            frames=torch.stack([self._picture(line) for line in lines])[None],
            index=torch.tensor([index]),
            surface=torch.stack(surface)[None],
            label=torch.tensor([label]) if self.classes else None,
            depth=self._depth(lines[0])[None] if self._has_depth else None,
        )

    def _picture(self, line: Frame) -> Tensor:
        pixels = pictures.read(self.folder / line.filename)
        if pixels.shape[1:] == self.size:
            return pixels
        resized = cv2.resize(pixels.permute(1, 2, 0).numpy(), self.size[::-1], interpolation=cv2.INTER_AREA)
        return torch.from_numpy(resized).permute(2, 0, 1).contiguous()

    def _resized_corners(self, line: Frame) -> Tensor:
        """``[4, 2]``; the frame spans half a pixel more than its first pixel's centre."""
        height, width = self._stored[line.filename]
        corners = torch.tensor(line.corners, dtype=torch.float64).view(4, 2)
        if (height, width) != tuple(self.size):
            factor = torch.tensor([self.size[1] / width, self.size[0] / height], dtype=torch.float64)
            corners = (corners + 0.5) * factor - 0.5
        return corners.float()

    def _depth(self, line: Frame) -> Tensor:
        if not line.depth:
            return torch.full((1, *self.size), torch.nan)
        numbers = pictures.read_16_bit(self.folder / line.depth)
        return (numbers / DEPTH_SCALE).where(numbers > 0, torch.nan)

    def _check_depth(self, line: Frame, stored: tuple[int, int], size: tuple[int, int] | None) -> None:
        found = pictures.header(self.folder / line.depth).size
        if found != stored or (size is not None and tuple(size) != stored):
            raise InputError(
                f"{line.depth}: expected depth of {stored[0]}×{stored[1]} like {line.filename} and frames "
                f"of their own size, got {found[0]}×{found[1]} and data.size={size and list(size)}; set data.size=null"
            )


def read(folder: Path) -> tuple[dict[str, Any], list[Frame]]:
    """What a pack says of itself, and its table.

    Raises:
        InputError: as :class:`Pack`, pictures aside.
    """
    path = folder / HEAD
    try:
        head = files.read_object(path)
        if head.get("format") != FORMAT or head.get("version") != VERSION:
            raise ValueError(f"format {head.get('format')!r:.60} of version {head.get('version')!r:.60}")
        for key in ("scenes", "frames"):
            files.integer(head[key], 1)
        if not isinstance(head["classes"], list) or not all(isinstance(name, str) for name in head["classes"]):
            raise ValueError(f"classes {head['classes']!r:.60}")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: expected {FORMAT}, version {VERSION}, with scenes, frames and classes, got {error!r}; name the "
            "folder of a scene pack with data.root"
        ) from error
    lines = _read_table(folder / TABLE, head["classes"])
    expected = [(scene, frame) for scene in range(head["scenes"]) for frame in range(head["frames"])]
    if [(line.scene, line.frame) for line in lines] != expected:
        raise InputError(
            f"{folder / TABLE}: expected {head['scenes']} scene(s) of {head['frames']} frame(s) in their order, as "
            f"{HEAD} says, got {len(lines)} line(s); copy the pack again"
        )
    return head, lines


def _read_table(path: Path, classes: Sequence[str]) -> list[Frame]:
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")), strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: expected a table of scenes, got {error!r}; copy the pack again") from error
    if not rows or tuple(rows[0]) != COLUMNS:
        got = ",".join(rows[0])[:200] if rows else "nothing"
        raise InputError(f"{path}: expected the columns {','.join(COLUMNS)}, got {got}; write the pack again")
    lines = []
    for number, row in enumerate(rows[1:], 2):
        try:
            lines.append(_parse(row, classes))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}; correct it or take the scene away") from error
    return lines


def _parse(row: Sequence[str], classes: Sequence[str]) -> Frame:
    """A line of the table.

    Raises:
        ValueError: it is none.
    """
    if len(row) != len(COLUMNS):
        raise ValueError(f"expected {len(COLUMNS)} values, got {len(row)}")
    told: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
    for key in ("scene", "frame"):
        if not (told[key].isascii() and told[key].isdigit()):
            raise ValueError(f"expected {key} as an integer >= 0, got {told[key]!r:.60}")
        told[key] = int(told[key])
    for key in ("filename", "depth"):
        if not is_inside(told[key]) and (told[key] or key == "filename"):
            raise ValueError(f"expected {key} as a path in the pack's folder, got {told[key]!r:.200}")
    told["corners"] = tuple(_number(key, told.pop(key), FARTHEST) for key in CORNERS)
    if not is_convex(told["corners"]):
        raise ValueError(
            "expected corners of a square as a camera before it sees it, clockwise from its top-left, got "
            f"{list(told['corners'])}"
        )
    for key in _UNKNOWN:
        told[key] = _number(key, told[key]) if told[key] else math.nan
    if told["label"] and told["label"] not in classes:
        raise ValueError(f"expected a label of the classes in {HEAD}, got {told['label']!r:.60}")
    return Frame(**told)


def _number(key: str, text: str, most: float = math.inf) -> float:
    try:
        return files.number(float(text), -most, most)
    except ValueError as error:
        raise ValueError(f"expected {key} as a finite number within {most:g}, got {text!r:.60}") from error


def is_inside(name: str) -> bool:
    """Whether a path of a pack stays in its folder, on any system."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not {"\\", ":"} & {*name}


def is_convex(corners: Sequence[float]) -> bool:
    """Whether four corners, x and y in turn, turn the same way at each: clockwise on the screen."""
    points = torch.tensor(corners, dtype=torch.float64).view(4, 2)
    along = points.roll(-1, 0) - points
    onward = along.roll(-1, 0)
    return bool((along[:, 0] * onward[:, 1] - along[:, 1] * onward[:, 0] > 0).all())

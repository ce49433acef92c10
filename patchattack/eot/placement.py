"""Where the patch lies: its corners in every frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from patchattack import geometry
from patchattack.devices import constant
from patchattack.eot.transform import check_range
from patchattack.errors import InputError
from patchattack.patch import Patch
from patchattack.scene import Scene

MOTIONS = ("static", "scene", "random")
DRAWS = 16  # uniform numbers that one scene's placement takes
SQUARE = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]], dtype=torch.float64)


class Placement(Protocol):
    """Draws where the patch lies."""

    def draw(self, scene: Scene, patch: Patch, numbers: Tensor) -> Tensor:
        """Corners ``[B, T, 4, 2]``, float64 on the host, of the patch as printed.

        Args:
            scene: whose frames the patch goes into.
            patch: gives its proportions and how much of them the mask fills; its texture is not used.
            numbers: ``[B, 16]`` uniform random numbers in [0, 1).

        Raises:
            InputError: the patch is larger than the frame, or the scene cannot carry it.
        """

    def on_surface(self, scene: Scene) -> bool:
        """The patch lies on the scene's surface, so that what stands in front of that hides it."""


class Uniform:
    """A uniform place in the frame with a little scale, rotation and tilt, as in Ranjan et al. 2019, section 4.1.

    Args:
        area: the mask's fraction of the frame's area. Exactly one of ``area``, ``side`` and ``distance`` is given.
        side: the patch's longer side as a fraction of the frame's shorter one.
        distance: metres from the camera at which the patch, facing it, has its size on paper; needs intrinsics.
        scale: range of a factor on the size.
        rotation: range in degrees, counter-clockwise.
        tilt: largest turn out of the image plane about either axis, degrees, as seen by a camera that is as far
            away as the frame is wide.
        yaw: range of the turn about the vertical axis, degrees, instead of ``tilt``; positive brings the right edge
            nearer.
        pitch: likewise about the horizontal axis; positive brings the top edge nearer.
        x: range of the place between the leftmost (0) and the rightmost (1) that keeps the patch inside the frame.
        y: likewise from top (0) to bottom (1).
        motion: ``static`` leaves the corners alone between the frames (the paper's white-box set-up); ``scene`` puts
            the patch on the scene's surface, or, where there is none, moves it by depth and ego-motion as an upright
            board in the scene; ``random`` moves it by a random homography.
        speed: of ``random`` motion, the largest shift as a fraction of the frame's shorter side.

    Raises:
        InputError: a value is out of range.
    """

    def __init__(
        self,
        area: float | None = None,
        side: float | None = None,
        distance: float | None = None,
        scale: Sequence[float] = (0.95, 1.05),
        rotation: Sequence[float] = (-10, 10),
        tilt: float = 0.0,
        yaw: Sequence[float] | None = None,
        pitch: Sequence[float] | None = None,
        x: Sequence[float] = (0, 1),
        y: Sequence[float] = (0, 1),
        motion: str = "static",
        speed: float = 0.05,
    ) -> None:
        if [area, side, distance].count(None) != 2:
            raise InputError(
                "placement: expected one of area, side and distance, the others null, "
                f"got area={area}, side={side} and distance={distance}"
            )
        for key, value in (("area", area), ("side", side)):
            if value is not None and not 0 < value <= 1:
                raise InputError(f"placement.{key}: expected a fraction of the frame in (0, 1], got {value}")
        if distance is not None and not 0 < distance < math.inf:
            raise InputError(f"placement.distance: expected metres above 0, got {distance}")
        if motion not in MOTIONS:
            raise InputError(f"placement.motion: expected one of {', '.join(MOTIONS)}, got {motion}")
        self.area, self.side, self.distance, self.motion = area, side, distance, motion
        self.scale = check_range("placement.scale", scale, 0.01)
        self.rotation = check_range("placement.rotation", rotation, -180, 180)
        either = check_range("placement.tilt", (-tilt, tilt), -80, 80)
        self.yaw = either if yaw is None else check_range("placement.yaw", yaw, -80, 80)
        self.pitch = either if pitch is None else check_range("placement.pitch", pitch, -80, 80)
        self.x, self.y = check_range("placement.x", x, 0, 1), check_range("placement.y", y, 0, 1)
        self.speed = check_range("placement.speed", (-speed, speed), -1, 1)
        ranges = (
            *(self.scale, self.rotation, self.pitch, self.yaw, self.x, self.y),
            *(self.speed, self.speed, (-3.0, 3.0), (0.96, 1.04), (-1.0, 1.0), (-1.0, 1.0)),  # of random motion
        )
        nothing = [(0.0, 0.0)] * (DRAWS - len(ranges))
        self._low, high = torch.tensor([*ranges, *nothing], dtype=torch.float64).unbind(-1)
        self._span = high - self._low

    def draw(self, scene: Scene, patch: Patch, numbers: Tensor) -> Tensor:
        """As :class:`Placement` says."""
        drawn = (numbers * self._span).add_(self._low)
        scale, turn, tilts, place, *motion, _ = drawn.split((1, 1, 2, 2, 2, 1, 1, 2, 4), dim=1)
        if scene.surface is not None and self.on_surface(scene):
            return on_plane(scene.surface, scale, turn, torch.full_like(place, 0.5), patch.size_mm)
        # In pixels about the patch's centre, [B, 4, 2].
        shape = _rotate(SQUARE * self._size(scene, patch), turn, scale)
        if any(self.pitch + self.yaw):
            tilts = F.pad(tilts, (0, 1))  # about the horizontal axis, the vertical one, and none
            solid = F.pad(shape, (0, 1)) @ geometry.rotation(tilts).mT
            shape = solid[..., :2] / (1 + solid[..., 2:] / scene.size[1])
        least, most = shape.aminmax(dim=1)
        height, width = scene.size
        low, high = -0.5 - least, constant((width - 0.5, height - 0.5), torch.float64, most.device) - most
        # A patch that scale and rotation make larger than the frame is centred.
        middle = (low + high) / 2
        centre = torch.lerp(low.minimum(middle), high.maximum(middle), place)
        first = shape + centre.unsqueeze(1)
        corners = [first] * scene.frames.shape[1]
        if len(corners) == 2 and self.motion == "random":
            corners[1] = _move(first, centre, scene.size, *motion)
        elif len(corners) == 2 and self.motion == "scene":
            corners[1] = _carry(first, centre, scene)
        return torch.stack(corners, dim=1)

    def _size(self, scene: Scene, patch: Patch) -> Tensor:
        """``[B, 1, 2]``, or ``[1, 1, 2]`` of all scenes, width and height in pixels before any draw."""
        rows, columns = scene.size
        proportion = patch.size_mm[0] / patch.size_mm[1]
        if self.distance is not None:
            if scene.intrinsics is None:
                raise InputError(
                    "placement.distance: expected data with the camera's intrinsics, got none; "
                    "give placement.area or placement.side instead"
                )
            focal = scene.intrinsics.double().diagonal(dim1=1, dim2=2)[:, :2]
            sizes = focal.unsqueeze(1) * torch.tensor(patch.size_mm, dtype=torch.float64) / 1000 / self.distance
            width, height = sizes.amax(dim=(0, 1)).tolist()
        else:
            if self.area is not None:
                height = math.sqrt(self.area * rows * columns / proportion / patch.fill_ratio)
            else:
                assert self.side is not None
                height = self.side * min(rows, columns) / max(proportion, 1)
            width = height * proportion
            sizes = torch.tensor([[[width, height]]], dtype=torch.float64)
        if width > columns or height > rows:
            raise InputError(
                f"placement: expected a patch that fits into the frame of {columns}×{rows} px, "
                f"got {width:.0f}×{height:.0f} px; "
                "lower placement.area or placement.side, or raise placement.distance"
            )
        return sizes

    def on_surface(self, scene: Scene) -> bool:
        """With ``motion=scene``, where there is a surface."""
        return self.motion == "scene" and scene.surface is not None


class OnSurface:
    """On the scene's own surface: the plane of an object, or a square on its box.

    Args:
        size: the patch's longer side as a fraction of the surface's side.
        scale: range of a factor on the size.
        rotation: range in degrees in the surface's plane, counter-clockwise.
        x: range of the patch's centre along the surface, from 0 (left) to 1 (right).
        y: likewise from 0 (top) to 1 (bottom).

    Raises:
        InputError: a value is out of range.
    """

    def __init__(
        self,
        size: float = 0.5,
        scale: Sequence[float] = (0.95, 1.05),
        rotation: Sequence[float] = (-5, 5),
        x: Sequence[float] = (0.5, 0.5),
        y: Sequence[float] = (0.5, 0.5),
    ) -> None:
        self.size = check_range("placement.size", (size, size), 0.01)[0]
        self.scale = check_range("placement.scale", scale, 0.01)
        self.rotation = check_range("placement.rotation", rotation, -180, 180)
        self.x, self.y = check_range("placement.x", x), check_range("placement.y", y)
        ranges = (self.scale, self.rotation, self.x, self.y)
        self._low, high = torch.tensor(ranges, dtype=torch.float64).unbind(-1)
        self._span = high - self._low

    def draw(self, scene: Scene, patch: Patch, numbers: Tensor) -> Tensor:
        """As :class:`Placement` says."""
        if scene.surface is None:
            raise InputError(
                "placement=surface: expected data whose scenes have a surface that carries the patch, got none; "
                "use data=signs or data=traffic, an attack on objects, or placement=uniform"
            )
        drawn = (numbers[:, : len(self._low)] * self._span).add_(self._low)
        scale, turn, centre = drawn.split((1, 1, 2), dim=1)
        return on_plane(scene.surface, self.size * scale, turn, centre, patch.size_mm)

    def on_surface(self, scene: Scene) -> bool:
        """Always."""
        return True


def on_plane(surface: Tensor, scale: Tensor, turn: Tensor, centre: Tensor, size_mm: tuple[float, float]) -> Tensor:
    """A patch of these proportions on square surfaces.

    Args:
        surface: ``[B, T, 4, 2]`` corners of a square.
        scale: ``[B, 1]`` the patch's longer side as a fraction of the square's.
        turn: ``[B, 1]`` degrees in the square's plane.
        centre: ``[B, 2]`` of the patch, as fractions of the square's sides.
        size_mm: width and height.

    Returns:
        ``[B, T, 4, 2]``.
    """
    board = SQUARE * torch.tensor(size_mm, dtype=torch.float64) / max(size_mm)
    board = _rotate(board, turn, scale) + centre.unsqueeze(1)
    return geometry.project(geometry.homography_from_corners(surface), board.unsqueeze(1))


def _rotate(points: Tensor, turn: Tensor, scale: Tensor) -> Tensor:
    """``points [..., n, 2]`` about the origin, ``turn [B, 1]`` degrees counter-clockwise, ``scale [B, 1]`` times."""
    # In the complex plane; y is down, so that what is counter-clockwise on the screen is clockwise there.
    return torch.view_as_real(torch.view_as_complex(points) * torch.polar(scale, torch.deg2rad(-turn)))


def _move(
    corners: Tensor, centre: Tensor, size: tuple[int, int], shift: Tensor, turn: Tensor, scale: Tensor, bend: Tensor
) -> Tensor:
    """Corners ``[B, 4, 2]`` after a similarity about the centre and a slight perspective change."""
    about = _rotate(corners - centre.unsqueeze(1), turn, scale)
    slope = bend * 0.1 / max(size)
    about = about / (1 + (about * slope.unsqueeze(1)).sum(dim=-1, keepdim=True))
    return about + (centre + shift * min(size)).unsqueeze(1)


def _carry(corners: Tensor, centre: Tensor, scene: Scene) -> Tensor:
    """Corners ``[B, 4, 2]`` in frame 1 of an upright board that stands in the scene where its centre is seen.

    Its distance is the median of the known depths around the centre.
    """
    if scene.depth is None or scene.motion is None or scene.intrinsics is None:
        raise InputError(
            "placement.motion=scene: expected data with a surface, or with depth, ego-motion and intrinsics, "
            "got neither; "
            "use placement.motion=static or random"
        )
    height, width = scene.size
    reach = max(2, round(min(height, width) * 0.05))
    distances = []
    for row, (x, y) in enumerate(centre.round().long().tolist()):
        part = scene.depth[row, 0, max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
        distances.append(part.nanmedian().cpu().double())
    # Where depth is unknown all around, the board is far away: the camera's turn alone moves it.
    distance = torch.stack(distances).nan_to_num(1000.0)
    camera = scene.intrinsics.double()
    rays = torch.cat([corners, torch.ones_like(corners[..., :1])], dim=-1) @ torch.linalg.inv(camera).mT
    points = rays * distance.view(-1, 1, 1)
    motion = scene.motion.double()
    there = points @ motion[:, :3, :3].mT + motion[:, None, :3, 3]
    # A board that the camera is about to pass would be behind it.
    there[..., 2].clamp_(min=0.1)
    pixels = there @ camera.mT
    return pixels[..., :2] / pixels[..., 2:]

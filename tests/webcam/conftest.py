"""A printed sheet on a plane before a pinhole camera, in frames and in videos."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchattack import geometry
from patchattack.patch import Patch, random_texture
from patchattack.printing.fiducials import Layout, bits, layout
from patchattack.victims.victim import Victim

SIZE = (360, 640)
FIELD_OF_VIEW = 60.0
DOTS = 8  # of the printed sheet, per millimetre


@dataclass(frozen=True)
class Shown:
    """Where the sheet is held: metres, and degrees as in :class:`patchattack.webcam.pose.Pose`."""

    distance: float = 0.6
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    x: float = 0.0
    y: float = 0.0
    light: float = 0.8


def printed(sheet: Layout, patch: Patch) -> tuple[np.ndarray, np.ndarray]:
    """``[h, w, 3]`` uint8 RGB of the paper, and ``[3, 3]`` from millimetres to its pixels."""
    left, top, right, bottom = sheet.bounds_mm
    paper = np.full((round((bottom - top) * DOTS), round((right - left) * DOTS), 3), 255, np.uint8)

    def at(corners: np.ndarray) -> tuple[slice, slice]:
        first, last = np.rint((corners[[0, 2]] - (left, top)) * DOTS).astype(int)
        return slice(first[1], last[1]), slice(first[0], last[0])

    for number, corners in sheet.markers.items():
        place = at(corners)
        cells = np.where(bits(number), 0, 255).astype(np.uint8)
        shape = paper[place].shape
        paper[place] = cv2.resize(cells, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)[..., None]
    width, height = sheet.size_mm
    place = at(np.array([(0, 0), (width, 0), (width, height), (0, height)]))
    texture = (patch().detach() * 255).byte().permute(1, 2, 0).numpy()
    shape = paper[place].shape
    paper[place] = cv2.resize(texture, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)
    return paper, np.array([[DOTS, 0, -left * DOTS - 0.5], [0, DOTS, -top * DOTS - 0.5], [0, 0, 1.0]])


def homography(sheet: Layout, shown: Shown, size: tuple[int, int] = SIZE) -> np.ndarray:
    """``[3, 3]`` from millimetres in the patch's frame to pixels."""
    yaw, pitch, roll = np.radians([shown.yaw, shown.pitch, shown.roll])
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    up = about_y @ about_x @ about_z  # right, up, towards the camera
    down = np.diag([1, -1, -1]) @ up @ np.diag([1, -1, -1])
    centre = np.array(sheet.size_mm) / 2
    sight = np.array([shown.x, shown.y, 1.0])
    place = sight / np.linalg.norm(sight) * shown.distance * 1000
    columns = np.stack([down[:, 0], down[:, 1], place - down[:, :2] @ centre], axis=1)
    return geometry.camera_matrix(size, FIELD_OF_VIEW).double().numpy() @ columns


def textured(size: tuple[int, int]) -> np.ndarray:
    """``[H, W, 3]`` uint8 of smooth colours, all with some blue."""
    cells = np.random.default_rng(0).integers(60, 200, (18, 32, 3)).astype(np.uint8)
    return cv2.resize(cells, size[::-1], interpolation=cv2.INTER_LINEAR)


def photograph(sheet: Layout, patch: Patch, shown: Shown, size: tuple[int, int] = SIZE) -> np.ndarray:
    """``[H, W, 3]`` uint8 RGB: the sheet before a textured wall, antialiased."""
    paper, to_paper = printed(sheet, patch)
    height, width = size
    finer = np.array([[3, 0, 1], [0, 3, 1], [0, 0, 1.0]])  # 3 × 3 samples of a pixel
    matrix = finer @ homography(sheet, shown, size) @ np.linalg.inv(to_paper)
    corners = np.array([(-0.5, -0.5), (paper.shape[1] - 0.5, paper.shape[0] - 0.5)]).reshape(-1, 1, 2)
    extent = np.abs(np.diff(cv2.perspectiveTransform(corners, matrix)[:, 0], axis=0)).max()
    shrink = min(1.0, 1.5 * extent / max(paper.shape))
    small = cv2.resize(paper, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    scale = np.diag([paper.shape[1] / small.shape[1], paper.shape[0] / small.shape[0], 1.0])
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    matrix = matrix @ np.linalg.inv(half) @ scale @ half
    wall = textured((3 * height, 3 * width))
    seen = cv2.warpPerspective(small, matrix, (3 * width, 3 * height), dst=wall, borderMode=cv2.BORDER_TRANSPARENT)
    dimmed = cv2.resize(seen, (width, height), interpolation=cv2.INTER_AREA) * shown.light
    return np.rint(dimmed).astype(np.uint8)


def filmed(path: Path, frames: Iterable[np.ndarray], fps: float = 10) -> Path:
    """An MJPG video of RGB frames."""
    frames = list(frames)
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (width, height))
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


class Coloured(Victim):
    """Says "sheet" where more than a hundredth of the frame has a colour without any blue, as the patch has."""

    task, frames, classes = "classification", 1, ("nothing", "sheet")

    def __init__(self, name: str = "coloured") -> None:
        super().__init__(nn.Identity(), name)

    def forward(self, frames: Tensor) -> Tensor:
        red, green, blue = self.check(frames)[:, 0].unbind(1)
        share = ((blue < 0.1) & (torch.maximum(red, green) > 0.25)).float().mean(dim=(1, 2))
        return torch.stack([torch.full_like(share, 0.01), share], dim=1) * 1000


@pytest.fixture(scope="session")
def patch() -> Patch:
    """Red and green cells on 150 mm."""
    texture = random_texture(32, 32, 0)
    texture[2] = 0
    return Patch(texture, torch.ones(1, 32, 32), (150.0, 150.0)).requires_grad_(False)


@pytest.fixture(scope="session")
def sheet() -> Layout:
    """Number 3, of that patch."""
    return layout((150.0, 150.0), 3)


@pytest.fixture(scope="session")
def photo(sheet: Layout, patch: Patch) -> Callable[..., np.ndarray]:
    """A photograph of the sheet; arguments as of :class:`Shown`."""

    @functools.cache
    def taken(**where: float) -> np.ndarray:
        return photograph(sheet, patch, Shown(**where))

    return taken


@pytest.fixture(scope="session")
def stranger(patch: Patch) -> np.ndarray:
    """A photograph of the same patch on sheet 7."""
    return photograph(layout((150.0, 150.0), 7), patch, Shown())


@pytest.fixture(scope="session")
def true_homography(sheet: Layout) -> Callable[..., np.ndarray]:
    """From the sheet's millimetres to pixels; arguments as of :class:`Shown`."""
    return lambda **where: homography(sheet, Shown(**where))


@pytest.fixture(scope="session")
def wall() -> np.ndarray:
    """What is seen without a sheet."""
    return textured(SIZE)


@pytest.fixture(scope="session")
def film() -> Callable[..., Path]:
    """Write frames as a video."""
    return filmed


@pytest.fixture
def coloured() -> type[Coloured]:
    """The toy victim."""
    return Coloured

"""The video: paper in the world, through the camera, into a lossy codec; and what is true of every frame."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from patchattack import files
from patchattack.errors import InputError
from patchattack.pictures import c_path
from patchattack.printing import chart
from patchattack.rehearsal.street import Street, StreetView, Take, patch_to_camera
from patchattack.rehearsal.unknown import Unknown
from patchattack.rehearsal.wrap import Wrap

_SAMPLES = 3  # along each side of a pixel
_MIRROR = np.array([1.0, -1.0, -1.0])  # from right, down and away to right, up and towards the camera


@dataclass(frozen=True)
class Paper:
    """A print: ``image [h, w, 3]`` float32 in [0, 1], and ``matrix [3, 3]`` from millimetres to its pixels."""

    image: np.ndarray
    matrix: np.ndarray


@dataclass(frozen=True)
class Truth:
    """Where the patch is in a frame.

    Attributes:
        frame: its number.
        corners: ``[4, 2]`` pixels.
        size_px, distance_m, yaw, pitch, roll, tilt: as in :class:`patchattack.webcam.records.Record`.
        whole: all markers are in the frame.
    """

    frame: int
    corners: np.ndarray
    size_px: float
    distance_m: float
    yaw: float
    pitch: float
    roll: float
    tilt: float
    whole: bool


def film(
    path: Path,
    street: Street,
    takes: list[Take],
    papers: Sequence[Paper],
    unknown: Unknown,
    fps: float,
    wrap: Wrap | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Truth | None]:
    """Write the video of all takes.

    Between two takes there is a black frame, as of a lens that is covered: nothing is measured across it.

    Args:
        path: of the video, ``.mp4``.
        street: of the takes.
        takes: at least one.
        papers: what is printed, in the frame of the patch: all takes are filmed with each.
        unknown: printer and camera.
        fps: frames a second.
        wrap: what the sheet is wrapped around; None for a flat one.
        progress: goes around the frames.

    Returns:
        What is true of each frame, None of a black one.

    Raises:
        InputError: the video cannot be written.
    """
    height, width = street.frame
    writer = cv2.VideoWriter(c_path(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    if not writer.isOpened():
        raise InputError(f"{path}: expected a video that OpenCV can write, got none; check the folder and its room")
    shots: list[tuple[Paper, Take, StreetView] | None] = []
    for paper, take in itertools.product(papers, takes):
        shots += [None] * bool(shots) + [(paper, take, view) for view in take.views]
    truths: list[Truth | None] = []
    try:
        for number, shot in enumerate(progress(shots)):
            if shot is None:
                writer.write(np.zeros((height, width, 3), np.uint8))
                truths.append(None)
                continue
            paper, take, view = shot
            image = photograph(street, take, view, paper, unknown, number, wrap)
            writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            truths.append(truth(street, take, view, number, wrap))
    finally:
        writer.release()
    return truths


def photograph(
    street: Street,
    take: Take,
    view: StreetView,
    paper: Paper,
    unknown: Unknown,
    number: int,
    wrap: Wrap | None = None,
) -> np.ndarray:
    """``[H, W, 3]`` uint8 RGB: the world with the sheet in it."""
    height, width = street.frame
    world = street.background(take, view).astype(np.float32) / 255
    world = cv2.resize(world, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    if wrap is None:
        lay(world, paper.image, street.homography(take, view) @ np.linalg.inv(paper.matrix))
    else:
        _lay_around(world, paper, street, take, view, wrap)
    return unknown.photograph(world, view.light, number)


def lay(image: np.ndarray, paper: np.ndarray, matrix: np.ndarray) -> None:
    """Draw ``paper [h, w, 3]`` into ``image [H, W, 3]``, both float32, antialiased.

    Args:
        image: is changed.
        paper: all of it is seen; what lies in front of the image's edge is cut off.
        matrix: ``[3, 3]`` from the paper's pixels to the image's.
    """
    rows, columns = paper.shape[:2]
    ends = np.array([(-0.5, -0.5), (columns - 0.5, -0.5), (columns - 0.5, rows - 0.5), (-0.5, rows - 0.5)])
    outline = _project(matrix, ends)
    window = _window(image, outline)
    if window is None:
        return
    first, size = window
    sides = np.linalg.norm(outline - np.roll(outline, -1, axis=0), axis=1) / [columns, rows, columns, rows]
    small = _shrunk(paper, sides.max())
    to_paper = _scaling(columns / small.shape[1], rows / small.shape[0])
    away = np.array([(1, 0, -first[0]), (0, 1, -first[1]), (0, 0, 1.0)])
    to_part = _scaling(_SAMPLES, _SAMPLES) @ away @ matrix @ to_paper
    fine = int(size[0]) * _SAMPLES, int(size[1]) * _SAMPLES
    colour = cv2.warpPerspective(small, to_part, fine, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    cover = cv2.warpPerspective(np.ones(small.shape[:2], np.float32), to_part, fine, flags=cv2.INTER_LINEAR)
    _blend(image, first, size, colour, cover)


def _lay_around(image: np.ndarray, paper: Paper, street: Street, take: Take, view: StreetView, wrap: Wrap) -> None:
    """The same of a sheet around a cylinder: each sample of a pixel is followed back to it."""
    rows, columns = paper.image.shape[:2]
    to_sheet = np.linalg.inv(paper.matrix)
    left, right = to_sheet[0] @ [-0.5, 0, 1], to_sheet[0] @ [columns - 0.5, 0, 1]
    top, bottom = to_sheet[1] @ [0, -0.5, 1], to_sheet[1] @ [0, rows - 0.5, 1]
    arc = np.linspace(left, right, 65)
    edges = np.concatenate([np.stack([arc, np.full(65, y)], axis=1) for y in (top, bottom)])
    outline = _on_wrap(street, take, view, wrap, edges)
    window = _window(image, outline)
    if window is None:
        return
    first, size = window
    sides = np.linalg.norm(np.diff(outline.reshape(2, 65, 2), axis=1), axis=2) * 64 / columns
    height = np.linalg.norm(outline[:65] - outline[65:], axis=1) / rows
    small = _shrunk(paper.image, max(sides.max(), height.max()))
    eye, axes = _before(street, take, view)
    fine = [((np.arange(count * _SAMPLES) + 0.5) / _SAMPLES - 0.5 + at) for count, at in zip(size, first, strict=True)]
    pixels = np.stack([*np.meshgrid(*fine), np.ones((len(fine[1]), len(fine[0])))], axis=-1)
    seen = wrap.seen(pixels @ np.linalg.inv(street.matrix).T @ axes, eye)
    to_small = np.linalg.inv(_scaling(columns / small.shape[1], rows / small.shape[0])) @ paper.matrix
    known = np.isfinite(seen).all(axis=-1)
    texels = np.where(known[..., None], seen, 0) @ to_small[:2, :2].T + to_small[:2, 2]
    x, y = (np.ascontiguousarray(texels[..., side], dtype=np.float32) for side in range(2))
    colour = cv2.remap(small, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    cover = cv2.remap(np.ones(small.shape[:2], np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    _blend(image, first, size, colour, cover * known.astype(np.float32))


def _before(street: Street, take: Take, view: StreetView) -> tuple[np.ndarray, np.ndarray]:
    """The camera in the sheet's millimetres: its place ``[3]``, and ``[3, 3]`` by which its rays are multiplied."""
    before = patch_to_camera(take, view) / street.metres  # millimetres
    axes = np.column_stack([before[:, :2], np.cross(before[:, 0], before[:, 1])])
    return -before[:, 2] @ axes, axes


def _on_wrap(street: Street, take: Take, view: StreetView, wrap: Wrap, points: np.ndarray) -> np.ndarray:
    """``[n, 2]`` pixels of the sheet's points ``[n, 2]``, those that the cylinder hides too."""
    eye, axes = _before(street, take, view)
    before = (wrap.places(points) - eye) @ axes.T
    pixels = before @ street.matrix.T
    return np.asarray(pixels[:, :2] / pixels[:, 2:])


def _window(image: np.ndarray, outline: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Left upper pixel, and width and height, of the part of an image that an outline may touch; None where none."""
    limit = np.array(image.shape[1::-1])
    first = np.clip(np.floor(outline.min(axis=0)).astype(int) - 1, 0, limit)
    size = np.clip(np.ceil(outline.max(axis=0)).astype(int) + 2, 0, limit) - first
    return (first, size) if size.min() > 0 else None


def _shrunk(paper: np.ndarray, pixels: float) -> np.ndarray:
    """Two texels a pixel where the paper is nearest: then bilinear samples, three a pixel, leave nothing out.

    Args:
        paper: ``[h, w, 3]``.
        pixels: of the image, that a texel spans there.
    """
    shrink = min(1.0, 2 * pixels)
    shape = max(1, round(paper.shape[1] * shrink)), max(1, round(paper.shape[0] * shrink))
    return cv2.resize(paper, shape, interpolation=cv2.INTER_AREA) if shrink < 1 else paper


def _blend(image: np.ndarray, first: np.ndarray, size: np.ndarray, colour: np.ndarray, cover: np.ndarray) -> None:
    """Put the samples of a window into the image."""
    both = np.dstack([colour * cover[..., None], cover])
    both = cv2.resize(both, (int(size[0]), int(size[1])), interpolation=cv2.INTER_AREA)
    part = image[first[1] : first[1] + size[1], first[0] : first[0] + size[0]]
    part *= 1 - both[..., 3:]
    part += both[..., :3]


def truth(street: Street, take: Take, view: StreetView, number: int, wrap: Wrap | None = None) -> Truth:
    """Where the patch is in a frame, by the camera that draws it; around a cylinder, its angles are its middle's."""
    sheet = street.sheet
    width, height = sheet.size_mm

    def project(points: np.ndarray) -> np.ndarray:
        if wrap is not None:
            return _on_wrap(street, take, view, wrap, points)
        return _project(street.homography(take, view), points)

    corners = project(np.array([(0.0, 0.0), (width, 0), (width, height), (0, height)]))
    marks = project(np.concatenate(list(sheet.markers.values())))
    before = patch_to_camera(take, view) / street.metres  # millimetres before the camera
    turned = np.column_stack([before[:, :2], np.cross(before[:, 0], before[:, 1])])
    place = before @ [width / 2, height / 2, 1]
    distance = float(np.linalg.norm(place))
    up = _MIRROR[:, None] * turned * _MIRROR
    inside = (marks >= -0.5) & (marks <= np.array(street.frame[::-1]) - 0.5)
    return Truth(
        frame=number,
        corners=corners,
        size_px=float(np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1).mean()),
        distance_m=distance / 1000,
        yaw=math.degrees(math.atan2(up[0, 2], up[2, 2])),
        pitch=math.degrees(math.asin(np.clip(-up[1, 2], -1, 1))),
        roll=math.degrees(math.atan2(up[1, 0], up[1, 1])),
        tilt=math.degrees(math.acos(np.clip(turned[:, 2] @ place / distance, -1, 1))),
        whole=bool(inside.all()),
    )


def photograph_chart(path: Path, unknown: Unknown, size: tuple[int, int] = (1080, 810)) -> None:
    """Write the photograph of the calibration chart that the unknown printer and camera make.

    Raises:
        InputError: the file cannot be written.
    """
    scale, margin = 4, 8  # pixels of the print per unit of the chart, and units of paper around it
    page = np.pad(chart.image(scale), [(margin * scale,) * 2] * 2 + [(0, 0)], constant_values=255)
    table = np.full((*size, 3), 0.35, np.float32)
    height, width = size
    # Held by hand: nearly square to the page.
    there = np.array([(0.06, 0.04), (0.95, 0.05), (0.96, 0.96), (0.05, 0.95)]) * (width, height)
    rows, columns = page.shape[:2]
    here = np.array([(0, 0), (columns, 0), (columns, rows), (0, rows)])
    lay(
        table, unknown.print_image(page), cv2.getPerspectiveTransform(here.astype(np.float32), there.astype(np.float32))
    )
    photo = cv2.cvtColor(unknown.photograph(table, 0.95, 0), cv2.COLOR_RGB2BGR)
    files.write(path, cv2.imencode(path.suffix, photo)[1].tobytes())


def write_truth(path: Path, truths: Iterable[Truth | None]) -> None:
    """Write a CSV with a line for every frame that shows the world.

    Raises:
        InputError: the file cannot be written.
    """
    names = ("size_px", "distance_m", "yaw", "pitch", "roll", "tilt")
    lines = [",".join(["frame", *(f"{axis}{corner}" for corner in range(4) for axis in "xy"), *names])]
    for one in truths:
        if one is not None:
            values = [*one.corners.ravel(), *(getattr(one, name) for name in names)]
            lines.append(",".join([str(one.frame), *(f"{value:.6g}" for value in values)]))
    files.write(path, "\n".join(lines) + "\n")


def _scaling(x: float, y: float) -> np.ndarray:
    """``[3, 3]``: scale pixels about the corner of the image, which is at (-0.5, -0.5)."""
    return np.array([(x, 0, (x - 1) / 2), (0, y, (y - 1) / 2), (0, 0, 1.0)])


def _project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """``[n, 2]`` points through a homography."""
    return cv2.perspectiveTransform(points[None].astype(np.float64), matrix)[0]

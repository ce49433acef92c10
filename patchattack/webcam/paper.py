"""Light and sharpness, read off the sheet's white paper and black markers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from patchattack.printing.fiducials import Layout, Sighting
from patchattack.webcam.pose import project

LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of red, green and blue, ITU-R BT.709


@dataclass(frozen=True)
class White:
    """How bright white paper is where the sheet is: a plane over the frame for each of red, green and blue.

    Attributes:
        slopes: ``[3, 3]``: for each colour the change along x and along y, a pixel, and the value at (0, 0); in [0, 1].
    """

    slopes: np.ndarray

    def at(self, point: np.ndarray) -> np.ndarray:
        """``[3]`` at ``point [2]``, pixels."""
        return np.clip(self.slopes @ [*point, 1.0], 0, 1)

    def image(self, first: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """``[h, w, 3]`` uint8 of the part with ``size`` (h, w) that begins at the pixel ``first`` (x, y)."""
        x, y = (np.arange(length, dtype=np.float32) + start for length, start in zip(size[::-1], first, strict=True))
        planes = []
        for across, down, base in (self.slopes * 255).astype(np.float32):
            plane = np.add.outer(down * y + base, across * x)
            planes.append(plane.clip(0, 255).round().astype(np.uint8))
        return cv2.merge(planes)

    def scale(self, x: float, y: float) -> White:
        """The same in a frame that is resized by these factors."""
        across, down, base = self.slopes.T
        shift = across * (0.5 / x - 0.5) + down * (0.5 / y - 0.5)
        return White(np.stack([across / x, down / y, base + shift], axis=1))


def white(image: np.ndarray, sighting: Sighting, sheet: Layout) -> White | None:
    """The brightness of the white paper, from the gaps between neighbouring markers, which hold nothing but paper.

    Args:
        image: ``[H, W, 3]`` uint8 RGB.
        sighting: of the sheet.
        sheet: as printed.

    Returns:
        A plane through the medians of the four gaps; a constant where one of them is not in the frame, None where
        none of them is.
    """
    gaps = _gaps(sheet)  # [g, n, 2]
    points = project(sighting.homography, gaps.reshape(-1, 2)).astype(np.float32)
    height, width = image.shape[:2]
    inside = np.all((points >= 0) & (points <= (width - 1, height - 1)), axis=1).reshape(gaps.shape[:2]).all(axis=1)
    if not inside.any():
        return None
    values = cv2.remap(image, points[:, None, 0], points[:, None, 1], cv2.INTER_LINEAR).reshape(*gaps.shape[:2], 3)
    medians = np.median(values, axis=1)[inside] / 255  # [g, 3]
    places = points.reshape(gaps.shape).mean(axis=1)[inside]
    if not inside.all():
        return White(np.pad(np.median(medians, axis=0)[:, None], ((0, 0), (2, 0))))
    plane, *_ = np.linalg.lstsq(np.pad(places, ((0, 0), (0, 1)), constant_values=1.0), medians, rcond=None)
    return White(plane.T)


def sharpness(image: np.ndarray, sighting: Sighting, sheet: Layout) -> float:
    """Gradient energy of the markers over their contrast, ``Σ|∇I|² / (s C²)`` with their side ``s`` in pixels.

    A blurred edge's energy falls as the inverse of its width, and a marker has as many pixels of edge as its side is
    long. So this grows as the inverse of the blur's width in pixels, at any distance and in any light. It is the
    median over the markers; NaN where none is in the frame.

    Args:
        image: ``[H, W, 3]`` uint8 RGB.
        sighting: of the sheet.
        sheet: as printed.
    """
    found = []
    height, width = image.shape[:2]
    for marker in sheet.markers.values():
        quad = project(sighting.homography, marker)
        (left, top), (right, bottom) = np.floor(quad.min(axis=0)).astype(int), np.ceil(quad.max(axis=0)).astype(int)
        margin = 2  # pixels of paper, for the black border's outer edge
        if left < margin or top < margin or right >= width - margin or bottom >= height - margin:
            continue
        part = image[top - margin : bottom + margin + 1, left - margin : right + margin + 1]
        grey = cv2.cvtColor(part, cv2.COLOR_RGB2GRAY)
        across, down = (cv2.Sobel(grey, cv2.CV_32F, *axis, scale=1 / 8) for axis in ((1, 0), (0, 1)))
        side = np.sqrt(cv2.contourArea(quad.astype(np.float32)))
        energy = cv2.norm(across, cv2.NORM_L2SQR) + cv2.norm(down, cv2.NORM_L2SQR)
        black, paper = np.percentile(grey, (5, 95))
        found.append(energy / side / max(paper - black, 1.0) ** 2)
    return float(np.median(found)) if found else float("nan")


def _gaps(sheet: Layout) -> np.ndarray:
    """``[g, n, 2]`` millimetres in the middle of each gap between markers of a row."""
    gaps = []
    for one, other in pairwise(sheet.markers.values()):
        if one[0, 1] == other[0, 1]:
            x = one[1, 0] + (other[0, 0] - one[1, 0]) * np.linspace(0.35, 0.65, 3)
            y = one[1, 1] + (one[2, 1] - one[1, 1]) * np.linspace(0.2, 0.8, 5)
            gaps.append(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
    return np.stack(gaps)

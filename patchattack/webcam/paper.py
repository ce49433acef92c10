"""Light and sharpness, read off the sheet's white paper and black markers."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from patchattack.printing.fiducials import Layout, Sighting
from patchattack.webcam.pose import projected

LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of red, green and blue, ITU-R BT.709


def white(image: np.ndarray, sighting: Sighting, sheet: Layout) -> np.ndarray:
    """``[3]`` how bright the white paper is in red, green and blue, in [0, 1]; NaN where none of it is in the frame.

    It is the median over the gaps between neighbouring markers, which hold nothing but paper.

    Args:
        image: ``[H, W, 3]`` uint8 RGB.
        sighting: of the sheet.
        sheet: as printed.
    """
    points = projected(sighting.homography, _gaps(sheet)).astype(np.float32)
    height, width = image.shape[:2]
    points = points[((points >= 0) & (points <= (width - 1, height - 1))).all(axis=1)]
    if not len(points):
        return np.full(3, np.nan)
    values = cv2.remap(image, points[:, None, 0], points[:, None, 1], cv2.INTER_LINEAR)
    return np.median(values.reshape(-1, 3), axis=0) / 255


def sharpness(image: np.ndarray, sighting: Sighting, sheet: Layout) -> float:
    """Gradient energy of the markers over their contrast, ``s · mean(|∇I|²) / C²`` with their side ``s`` in pixels.

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
        quad = projected(sighting.homography, marker)
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
        found.append(side * energy / grey.size / max(paper - black, 1.0) ** 2)
    return float(np.median(found)) if found else float("nan")


def _gaps(sheet: Layout) -> np.ndarray:
    """``[n, 2]`` millimetres in the middle of the gaps between markers of a row."""
    points = []
    for one, other in pairwise(sheet.markers.values()):
        if one[0, 1] == other[0, 1]:
            x = one[1, 0] + (other[0, 0] - one[1, 0]) * np.linspace(0.35, 0.65, 3)
            y = one[1, 1] + (one[2, 1] - one[1, 1]) * np.linspace(0.2, 0.8, 5)
            points.append(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
    return np.concatenate(points)

"""Where the chart is in a photograph, and the colours of its cells in even light."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchattack.errors import InputError
from patchattack.printing import chart
from patchattack.printing.colour import encode, linear

INNER = 0.5  # fraction of a cell's side that is averaged: the rest is for blur and for paper that is not quite flat


def find(pixels: np.ndarray, path: Path) -> np.ndarray:
    """The homography ``[3, 3]`` from the chart to the photograph ``pixels [H, W, 3]``."""
    import cv2

    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if np.percentile(grey, 98) < 50:
        raise InputError(
            f"{path}: retake: too dark: expected paper at 30 % of full scale or more, "
            f"got {np.percentile(grey, 98) / 255:.0%} as the lightest; use more light"
        )
    found = _detect_fiducials(grey, chart.dictionary())
    known = {number: corners for number, corners in found.items() if number in chart.fiducials()}
    if len(known) < 2:
        if len(found) - len(known) >= 2:
            version = next(iter(found.keys() - known.keys())) // chart.MARKERS
            raise InputError(
                f"{path}: wrong chart: expected the colour chart of version {chart.VERSION}, got version {version}; "
                "print the one that patchattack calibrate chart writes"
            )
        sheet = len(_detect_fiducials(grey, cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_1000))) >= 3
        got = "the fiducials of a print sheet" if sheet else f"{len(known) or 'none'} of its {chart.MARKERS} fiducials"
        raise InputError(
            f"{path}: wrong chart or out of focus: expected a photograph of the colour chart, got {got}; "
            "print the one that patchattack calibrate chart writes, and photograph the whole page"
        )
    on_chart = np.concatenate([chart.fiducials()[number] for number in known])
    in_photo = np.concatenate(list(known.values()))
    to_photo, _ = cv2.findHomography(on_chart, in_photo, cv2.RANSAC, 3.0)
    if to_photo is None:
        raise InputError(f"{path}: retake: expected the chart on a flat page, got fiducials in disorder; lay it flat")
    height, width = grey.shape
    outline = project(to_photo, np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * chart.SIZE)
    beyond = np.concatenate([outline.min(axis=0), outline.max(axis=0)]) - [0, 0, width - 1, height - 1]
    sides = [
        side for side, over in zip(("left", "top", "right", "bottom"), beyond * [-1, -1, 1, 1], strict=True) if over > 1
    ]
    if sides:
        raise InputError(
            f"{path}: retake: cropped: expected the whole chart, got one that goes on beyond the photograph's "
            f"{' and '.join(sides)}; step back"
        )
    if len(known) < 8:
        raise InputError(
            f"{path}: retake: expected all {chart.MARKERS} fiducials, got {len(known)}; "
            "go nearer, focus, and let nothing cover or light them up"
        )
    bent = np.linalg.norm(project(np.linalg.inv(to_photo), in_photo) - on_chart, axis=1).max()
    if bent > 2:
        raise InputError(
            f"{path}: retake: expected a flat page, got fiducials off by {bent / 10:.1f} of a cell; "
            "lay it flat, and use no wide-angle lens"
        )
    return to_photo


def average_cells(pixels: np.ndarray, to_photo: np.ndarray, path: Path) -> tuple[np.ndarray, float]:
    """The trimmed mean of each cell's inner part, ``[280, 3]`` in [0, 1], and the noise of a pixel."""
    import cv2

    means, deviations = [], []
    for corners in project(to_photo, chart.inner(INNER)):
        left, top = np.floor(corners.min(axis=0)).astype(int)
        right, bottom = np.ceil(corners.max(axis=0)).astype(int) + 1
        mask = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillConvexPoly(mask, np.round(corners - [left, top]).astype(np.int32), 1)
        values = pixels[top:bottom, left:right][mask > 0] / 255.0
        if len(values) < 36:
            raise InputError(
                f"{path}: retake: too far: expected cells of at least 12 pixels, got {len(values) ** 0.5 / INNER:.0f}; "
                "fill the frame with the page"
            )
        cut = len(values) // 5
        means.append(np.sort(values, axis=0)[cut:-cut].mean(axis=0))
        plane = np.stack([*np.nonzero(mask), np.ones(len(values))], axis=1)
        deviations.append((values - plane @ np.linalg.lstsq(plane, values, rcond=None)[0]).std(ddof=3))
    return np.array(means), float(np.median(deviations))


def even_light(cells: np.ndarray, to_photo: np.ndarray, size: tuple[int, ...]) -> tuple[Tensor, np.ndarray]:
    """The cells ``[280, 3]`` in the light that falls on the middle of the photograph, and the light on each of them.

    Vignetting and lamps make a smooth factor of linear light, per channel the exponential of a cubic in the place on
    the page. It is measured by the repeated greys, whose own levels are unknown; greys in a reflection count little.
    """
    greys, colours = chart.is_repeated(), np.round(chart.colours() * 255)
    levels = (colours[greys, :1] == chart.REPEATED).astype(np.float64)  # [56, 3]
    light = np.empty_like(cells)
    height, width = size[:2]
    middle = project(np.linalg.inv(to_photo), np.array([[(width - 1) / 2, (height - 1) / 2]]))
    middle = middle.clip(0, chart.SIZE)
    places, middle = _cubic(chart.centres()), _cubic(middle)
    design = np.concatenate([levels, places[greys]], axis=1)
    for channel in range(3):
        value = np.log(linear(torch.from_numpy(cells[greys, channel])).numpy().clip(min=1e-4))
        weight = np.ones(len(value))
        for _ in range(10):  # Cauchy's weights
            found = np.linalg.lstsq(design * weight[:, None], value * weight, rcond=None)[0]
            weight = 1 / np.sqrt(1 + ((value - design @ found) / 0.05) ** 2)
        light[:, channel] = np.exp((places - middle) @ found[levels.shape[1] :])
    seen = encode(linear(torch.from_numpy(cells)) / torch.from_numpy(light))
    return seen.float().clamp(0, 1), light


def edge_blur(pixels: np.ndarray, to_photo: np.ndarray) -> float:
    """Standard deviation in pixels of the smear at the fiducials' outer edges, the median of all sides.

    Pixels near a side, by their distance to it, make a curve many times finer than the pixels (as with the slanted
    edge of ISO 12233); half of the way from 16 to 84 % of its height is the standard deviation of a Gaussian smear,
    less that of a pixel, which has a width itself.
    """
    grey = pixels.mean(axis=2)
    found = []
    for corners in chart.fiducials().values():
        for start, stop in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            side = stop - start
            inward = np.array([-side[1], side[0]]) / 7  # one module
            # The middle of the side, and how far the fiducial's black border reaches.
            ends = np.stack([start + 0.15 * side, stop - 0.15 * side, start + side / 2 + inward])
            first, last, inside = project(to_photo, ends)
            length = float(np.linalg.norm(last - first))
            along = (last - first) / length
            normal = np.array([-along[1], along[0]])
            reach = 0.9 * float(normal @ (inside - first))
            left, top = np.floor(np.minimum(first, last) - reach).astype(int).clip(min=0)
            right, bottom = np.ceil(np.maximum(first, last) + reach).astype(int) + 1
            part = grey[top:bottom, left:right]
            y, x = np.indices(part.shape)
            offset = np.stack([x + left, y + top], axis=-1) - first
            distance, place = offset @ normal, offset @ along
            near = (abs(distance) < reach) & (place > 0) & (place < length)
            steps, number = np.unique(np.round(distance[near] * 4), return_inverse=True)  # quarters of a pixel
            curve = np.bincount(number, part[near]) / np.bincount(number)
            flat = len(curve) // 5 + 1
            white, black = curve[:flat].mean(), curve[-flat:].mean()
            height = np.maximum.accumulate((white - curve) / max(white - black, 1e-6))
            low, high = np.interp((0.16, 0.84), height, steps / 4)
            found.append((high - low) / 2)
    return float(np.sqrt(max(np.median(found) ** 2 - 1 / 12, 0.0)))


def _detect_fiducials(grey: np.ndarray, dictionary: Any) -> dict[int, np.ndarray]:
    """The corners ``[4, 2]`` of each fiducial, by id; what is seen more than once is left out."""
    import cv2

    settings = cv2.aruco.DetectorParameters()
    settings.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
    corners, ids, _ = cv2.aruco.ArucoDetector(dictionary, settings).detectMarkers(grey)
    numbers = np.array([] if ids is None else ids, int).ravel().tolist()
    return {n: c[0].astype(np.float64) for n, c in zip(numbers, corners, strict=True) if numbers.count(n) == 1}


def _cubic(places: np.ndarray) -> np.ndarray:
    """``[n, 9]`` monomials up to the third degree, without the constant, of ``places [n, 2]`` on the chart."""
    x, y = (places / chart.SIZE * 2 - 1).T
    return np.stack([x**i * y**j for i, j in itertools.product(range(4), repeat=2) if 0 < i + j <= 3], axis=1)


def project(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """``points [..., 2]`` through ``homography [3, 3]``."""
    mapped = np.concatenate([points, np.ones_like(points[..., :1])], axis=-1) @ homography.T
    return mapped[..., :2] / mapped[..., 2:]

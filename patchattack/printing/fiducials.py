"""Markers around a patch on paper that tell a camera where it lies, and which sheet it is.

Six ArUco markers (Garrido-Jurado et al. 2014) stand in two rows of three, above and below the patch, flush with its
left and right edges. So the patch's corners lie between seen points, and a hand, or an edge of the frame, that hides
some of the markers leaves others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from patchattack import files
from patchattack.errors import InputError

PER_SHEET = 6  # markers
SHEETS = 250 // PER_SHEET  # sheets that the dictionary tells apart: numbers 0..40

_DICTIONARY = cv2.aruco.DICT_4X4_250  # the fewest modules, so that a marker of few pixels is readable
_MODULES = 6  # along a marker's side: 4 of the code and the black border
_SHARE = 0.22  # of the patch's shorter side
_QUIET = 1.25  # modules of white on all sides of a marker
_LEGIBLE = 4.0  # pixels along a module: smaller ones are enlarged before they are read
_SMALLEST, _LARGEST = 6, 14  # pixels, even: sides of the neighbourhoods that a pixel is called black or white in
_ALIKE = 0.6  # correlation of a marker with what is seen where it should be


@dataclass(frozen=True)
class Layout:
    """ArUco markers around a patch on paper.

    Lengths are millimetres in the patch's frame: (0, 0) is the patch's top-left corner, x points right, y down.

    Attributes:
        number: of the sheet, 0 to ``SHEETS - 1``; its markers' ids are ``number * PER_SHEET`` and those that follow.
        size_mm: the patch's width and height.
        marker_mm: side of a marker: the black square, without the white around it.
        markers: id to ``[4, 2]`` corners: top-left, top-right, bottom-right, bottom-left as printed.
    """

    number: int
    size_mm: tuple[float, float]
    marker_mm: float
    markers: dict[int, np.ndarray]

    @property
    def quiet_mm(self) -> float:
        """Width of the white on all sides of a marker."""
        return self.marker_mm / _MODULES * _QUIET

    @property
    def bounds_mm(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of patch and markers with the white around them."""
        points = np.concatenate([*self.markers.values(), [(0, 0), self.size_mm]])
        left, top = points.min(axis=0) - self.quiet_mm
        right, bottom = points.max(axis=0) + self.quiet_mm
        return float(left), float(top), float(right), float(bottom)


@dataclass(frozen=True)
class Sighting:
    """A sheet found in an image.

    Attributes:
        number: of the sheet.
        corners: ``[4, 2]`` float64 pixels of the patch (not of the markers): top-left, top-right, bottom-right,
            bottom-left as printed; an integer is a pixel centre.
        homography: ``[3, 3]`` float64 from millimetres in the patch's frame to pixels.
        markers: how many were seen.
        error: RMS distance of the markers' corners, as seen, to where the homography puts them, pixels.
    """

    number: int
    corners: np.ndarray
    homography: np.ndarray
    markers: int
    error: float


def layout(size_mm: tuple[float, float], number: int, marker_mm: float | None = None) -> Layout:
    """The markers around a patch.

    Args:
        size_mm: the patch's width and height.
        number: of the sheet, 0 to ``SHEETS - 1``.
        marker_mm: side of a marker; ``None`` takes 0.22 of the patch's shorter side, which is readable when the patch
            spans 60 pixels.

    Raises:
        InputError: no such sheet number, or markers that three in a row do not fit along the patch.
    """
    width, height = size_mm
    side = _SHARE * min(width, height) if marker_mm is None else marker_mm
    quiet = side / _MODULES * _QUIET
    largest = width / (3 + 2 * _QUIET / _MODULES)
    if not (isinstance(number, int) and 0 <= number < SHEETS):
        raise InputError(f"print.number: expected the number of a sheet, 0 to {SHEETS - 1}, got {number}")
    if not 0 < side <= largest:
        raise InputError(
            f"print.marker_mm: expected markers that fit three in a row along the patch's {width:g} mm, at most "
            f"{largest:.1f} mm, got {side:g}"
        )
    square = side * np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=np.float64)
    origins = [(x, y) for y in (-quiet - side, height + quiet) for x in (0, (width - side) / 2, width - side)]
    first = number * PER_SHEET
    markers = {first + place: square + origin for place, origin in enumerate(origins)}
    return Layout(number, (float(width), float(height)), float(side), markers)


def bits(marker: int) -> np.ndarray:
    """``[6, 6]`` bool, True where marker ``marker`` is black."""
    dictionary = cv2.aruco.getPredefinedDictionary(_DICTIONARY)
    return cv2.aruco.generateImageMarker(dictionary, marker, _MODULES) == 0


def find(image: np.ndarray, layouts: Sequence[Layout], around: Sighting | None = None) -> list[Sighting]:
    """The sheets that an image shows, each with at least two of its markers; other markers are ignored.

    Args:
        image: ``[H, W]`` or ``[H, W, 3]`` RGB, uint8.
        layouts: of the sheets that are looked for; the fewer, the more damage a marker may have.
        around: an earlier sighting: its surroundings are searched first, and the whole image only if nothing is there.

    Returns:
        Sightings in the order of ``layouts``.
    """
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    found: list[Sighting] = []
    if around is not None:
        near = [one for one in layouts if one.number == around.number]
        for window in _window(grey, near[0], around.homography, margin=0.5) if near else []:
            found = _sightings(grey, layouts, window)
    return found or _sightings(grey, layouts, _Window(grey, np.zeros(2), 1))


@dataclass(frozen=True)
class _Window:
    """A part of an image, enlarged: ``pixels`` starts at the image's ``origin`` and shows it ``scale`` times as large."""

    pixels: np.ndarray
    origin: np.ndarray
    scale: int

    def inward(self, points: np.ndarray) -> np.ndarray:
        """Points of the image in the window."""
        return (points - self.origin + 0.5) * self.scale - 0.5

    def outward(self, points: np.ndarray) -> np.ndarray:
        """Points of the window in the image."""
        return (points + 0.5) / self.scale - 0.5 + self.origin


def _window(grey: np.ndarray, sheet: Layout, homography: np.ndarray, margin: float) -> list[_Window]:
    """The part around a sheet, ``margin`` of its extent wider on each side; none where it is out of the image."""
    points = _project(homography, _corners(sheet))
    spread = margin * np.ptp(points, axis=0) + 8
    first = np.maximum(np.floor(points.min(axis=0) - spread), 0).astype(int)
    last = np.minimum(np.ceil(points.max(axis=0) + spread) + 1, grey.shape[::-1]).astype(int)
    if (last - first < 16).any():
        return []
    scale = int(np.clip(np.ceil(_LEGIBLE / _module(points)), 1, 3))
    part = np.ascontiguousarray(grey[first[1] : last[1], first[0] : last[0]])
    return [_Window(cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), first, scale)]


def _sightings(grey: np.ndarray, layouts: Sequence[Layout], window: _Window) -> list[Sighting]:
    """The sheets whose markers are read in the window."""
    seen = _read(window, [marker for one in layouts for marker in one.markers])
    sightings = []
    for sheet in layouts:
        here = [marker for marker in sheet.markers if marker in seen]
        if here:
            paper = np.concatenate([sheet.markers[marker] for marker in here])
            guess, _ = cv2.findHomography(paper, np.concatenate([seen[marker] for marker in here]), cv2.LMEDS)
            sightings += [] if guess is None else _refined(grey, sheet, guess)
    return sightings


def _read(window: _Window, markers: list[int]) -> dict[int, np.ndarray]:
    """``[4, 2]`` corners in the image, to about a pixel, of those of ``markers`` that are read in the window."""
    # A dictionary of these markers alone: they differ by five bits and more where all 250 differ by three, so more
    # of the bits of a small or blurred marker may be wrong.
    every = cv2.aruco.getPredefinedDictionary(_DICTIONARY)
    dictionary = cv2.aruco.Dictionary(every.bytesList[markers], every.markerSize, 2)
    parameters = cv2.aruco.DetectorParameters()
    parameters.adaptiveThreshWinSizeMin = _SMALLEST * window.scale + 1
    parameters.adaptiveThreshWinSizeMax = _LARGEST * window.scale + 1
    parameters.adaptiveThreshWinSizeStep = (_LARGEST - _SMALLEST) * window.scale or 1
    parameters.minMarkerPerimeterRate = min(0.03, 28 * window.scale / max(window.pixels.shape))
    parameters.errorCorrectionRate = 1.0
    parameters.maxErroneousBitsInBorderRate = 0.5
    corners, places, _ = cv2.aruco.ArucoDetector(dictionary, parameters).detectMarkers(window.pixels)
    if places is None:
        return {}
    return {
        markers[place]: window.outward(four[0].astype(np.float64))
        for four, place in zip(corners, places[:, 0], strict=True)
    }


def _refined(grey: np.ndarray, sheet: Layout, homography: np.ndarray, rounds: int = 4) -> list[Sighting]:
    """The sighting that a rough homography leads to; none if fewer than two markers are where it puts them.

    Every round looks for all markers where the homography expects them, also for those that were not read, and fits
    the homography to the corners of those that are there.
    """
    paper = _corners(sheet)
    for _ in range(rounds):
        points = _project(homography, paper)
        windows = _window(grey, sheet, homography, margin=0)
        if not windows:
            return []
        (window,) = windows
        there = _recognised(window, sheet, homography)
        if not there.any():
            return []
        module = _module(points) * window.scale
        reach = int(np.clip(round(0.8 * module), 2, 8))
        inside = window.inward(points)
        limit = np.array(window.pixels.shape[::-1]) - 1
        there = np.repeat(there, 4) & ((inside >= 0) & (inside <= limit)).all(axis=1)
        if there.sum() < 4:
            return []
        start = inside[there].astype(np.float32).reshape(-1, 1, 2)
        end = cv2.cornerSubPix(window.pixels, start, (reach, reach), (-1, -1), (3, 20, 0.02))[:, 0]
        known = window.outward(end.astype(np.float64))
        if there.sum() < 8:
            homography, used = cv2.findHomography(paper[there], known)
        else:
            homography, used = cv2.findHomography(paper[there], known, cv2.RANSAC, max(1.0, module / window.scale / 3))
        if homography is None:
            return []
    markers = int(_recognised(window, sheet, homography).sum())
    if markers < 2:
        return []
    error = _project(homography, paper[there]) - known
    width, height = sheet.size_mm
    corners = _project(homography, np.array([(0, 0), (width, 0), (width, height), (0, height)]))
    used = used[:, 0].astype(bool)
    rms = float(np.sqrt((error[used] ** 2).sum(axis=1).mean()))
    return [Sighting(sheet.number, corners, homography, markers, rms)]


def _recognised(window: _Window, sheet: Layout, homography: np.ndarray) -> np.ndarray:
    """``[6]`` bool: the markers whose modules, white border included, look as they should."""
    cells = (np.arange(_MODULES + 2) - 0.5) / _MODULES
    grid = np.stack(np.meshgrid(cells, cells), axis=-1).reshape(-1, 2) * sheet.marker_mm
    spots = np.concatenate([grid + four[0] for four in sheet.markers.values()])
    at = window.inward(_project(homography, spots)).astype(np.float32).reshape(len(sheet.markers), -1, 2)
    values = cv2.remap(window.pixels, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT).astype(np.float64)
    expected = np.stack([np.pad(~bits(marker), 1, constant_values=True).ravel() for marker in sheet.markers])
    values, wanted = (v - v.mean(axis=1, keepdims=True) for v in (values, expected.astype(np.float64)))
    likeness = (values * wanted).sum(axis=1) / (np.linalg.norm(values, axis=1) * np.linalg.norm(wanted, axis=1) + 1e-9)
    return likeness > _ALIKE


def _corners(sheet: Layout) -> np.ndarray:
    """``[24, 2]``: all markers' corners, mm."""
    return np.concatenate(list(sheet.markers.values()))


def _project(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """``[n, 2]`` points through a homography."""
    return cv2.perspectiveTransform(points[None].astype(np.float64), homography)[0]


def _module(corners: np.ndarray) -> float:
    """Pixels along the shortest module of markers with ``corners [24, 2]``."""
    fours = corners.reshape(-1, 4, 2)
    return float(np.linalg.norm(fours - np.roll(fours, 1, axis=1), axis=2).min()) / _MODULES


def save_layouts(path: Path, layouts: Sequence[Layout]) -> None:
    """Write ``layouts`` as JSON.

    Raises:
        InputError: the file cannot be written.
    """
    sheets = [{"number": one.number, "size_mm": list(one.size_mm), "marker_mm": one.marker_mm} for one in layouts]
    files.write(path, json.dumps({"sheets": sheets}, indent=1) + "\n")


def load_layouts(path: Path) -> list[Layout]:
    """Read what :func:`save_layouts` wrote.

    Raises:
        InputError: the file is missing or does not hold layouts.
    """
    try:
        sheets = json.loads(path.read_text())["sheets"]
        facts = [(tuple(map(float, one["size_mm"])), one["number"], float(one["marker_mm"])) for one in sheets]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{path}: expected the layouts of printed sheets, got {error!r}; print the sheet first: "
            "python scripts/print_patch.py run=RUN"
        ) from error
    return [layout((size[0], size[1]), number, marker) for size, number, marker in facts]

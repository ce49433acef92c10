"""Markers around a patch on paper that tell a camera where it lies, and which sheet it is.

Six ArUco markers (Garrido-Jurado et al. 2014) stand in two rows of three, above and below the patch, flush with its
left and right edges. So the patch's corners lie between seen points, and a hand, or an edge of the frame, that hides
some of the markers leaves others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from patchattack import files
from patchattack.errors import InputError
from patchattack.patch import SIDES_MM

PER_SHEET = 6  # markers
SHEETS = 250 // PER_SHEET  # sheets that the dictionary tells apart: numbers 0..40

_DICTIONARY = cv2.aruco.DICT_4X4_250  # the fewest modules, so that a marker of few pixels is readable
_MODULES = 6  # along a marker's side: 4 of the code and the black border
_SHARE = 0.21  # of the patch's shorter side
_QUIET = 1.25  # modules of white on all sides of a marker
_LEGIBLE = 3.0  # pixels along a module when it is read in a part of the image
_SAMPLES = 3  # along a module, of a marker's drawing
_STEPS = 12  # at most, of the alignment
_SETTLED = 2e-4  # sides of a marker: a step after which the next one changes nothing that counts
_ALIKE = 0.5  # correlation of a marker with what is seen where it should be


# Places [s·s, 2] of the samples on and around a marker, in its sides.
_CELLS = (np.arange((_MODULES + 2) * _SAMPLES) + 0.5) / _SAMPLES / _MODULES - 1 / _MODULES
_GRID = np.stack(np.meshgrid(_CELLS, _CELLS), axis=-1).reshape(-1, 2)


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
        error: RMS distance of the markers, each as it is seen by itself, to where the homography puts them, pixels;
            large where the paper is bent.
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
        marker_mm: side of a marker; ``None`` takes 0.21 of the patch's shorter side, which is readable when the patch
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
    """The sheets that an image shows.

    A sheet counts as seen when at least two of its markers are, of both rows and of different columns: the patch's
    corners would be guesses otherwise. Markers of other sheets are ignored.

    Args:
        image: ``[H, W]`` or ``[H, W, 3]`` RGB, uint8.
        layouts: of the sheets that are looked for; the fewer, the more damage a marker may have.
        around: an earlier sighting. Its surroundings are searched first, which is faster and reads smaller markers;
            the whole image is searched if no sheet is there.

    Returns:
        Sightings in the order of ``layouts``.
    """
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    near = [_surroundings(one, around.homography) for one in layouts if around and one.number == around.number]
    whole = np.array([(0, 0), grey.shape[::-1]])
    # In the smaller copy, large markers that are out of focus are sharp.
    for box, scale in (*near, (whole, 1.0), (whole, 0.5)):
        seen = _read(grey, box, scale, layouts)
        found = [one for one in (_sighting(grey, sheet, seen) for sheet in layouts) if one is not None]
        if found or (seen and box is whole):
            return found
    return []


@dataclass(frozen=True)
class _Window:
    """A resized part of an image.

    Attributes:
        pixels: ``[h, w]``.
        matrix: ``[3, 3]`` from pixels of the image to pixels of the window.
    """

    pixels: np.ndarray
    matrix: np.ndarray

    @classmethod
    def of(cls, grey: np.ndarray, box: np.ndarray, scale: float) -> _Window | None:
        """The part of ``grey`` in ``box [2, 2]`` (first and last point), ``scale`` times as large; None if outside."""
        if not np.isfinite(box).all():
            return None
        first = np.clip(np.floor(box[0]), 0, grey.shape[::-1]).astype(int)
        size = np.clip(np.ceil(box[1]) + 1, 0, grey.shape[::-1]).astype(int) - first
        if size.min() < 8:
            return None
        part = grey[first[1] : first[1] + size[1], first[0] : first[0] + size[0]]
        if scale == 1:
            return cls(np.ascontiguousarray(part), _shift_and_scale(-first, np.ones(2)))
        scale = min(scale, (grey.size / size.prod()) ** 0.5)  # never more pixels than the image has
        shape = np.maximum(np.rint(size * scale), 8).astype(int)
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        return cls(
            cv2.resize(part, tuple(shape.tolist()), interpolation=method), _shift_and_scale(-first, shape / size)
        )


def _shift_and_scale(shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``[3, 3]``: shift pixels, then scale them about the corner of the image, which is at (-0.5, -0.5)."""
    matrix = np.diag([*scale, 1.0])
    matrix[:2, 2] = (shift + 0.5) * scale - 0.5
    return matrix


def _read(grey: np.ndarray, box: np.ndarray, scale: float, layouts: Sequence[Layout]) -> dict[int, np.ndarray]:
    """``[4, 2]`` corners, to about a pixel, of the sheets' markers that are read in a part of the image."""
    window = _Window.of(grey, box, scale)
    if window is None:
        return {}
    # A dictionary of these markers alone, and lenient: two of a small or blurred marker's bits may be wrong. What is
    # mistaken for a marker does not survive the alignment.
    markers = [marker for sheet in layouts for marker in sheet.markers]
    every = cv2.aruco.getPredefinedDictionary(_DICTIONARY)
    dictionary = cv2.aruco.Dictionary(every.bytesList[markers], every.markerSize, 2)
    parameters = cv2.aruco.DetectorParameters()
    parameters.adaptiveThreshWinSizeMin = parameters.adaptiveThreshWinSizeMax = 7  # pixels; each size costs as much
    parameters.minMarkerPerimeterRate = 24 / max(window.pixels.shape)
    parameters.errorCorrectionRate = 1.0
    parameters.maxErroneousBitsInBorderRate = 0.5
    corners, places, _ = cv2.aruco.ArucoDetector(dictionary, parameters).detectMarkers(window.pixels)
    if places is None:
        return {}
    back = np.linalg.inv(window.matrix)
    return {markers[place]: _project(back, four[0]) for four, place in zip(corners, places[:, 0], strict=True)}


def _sighting(grey: np.ndarray, sheet: Layout, seen: dict[int, np.ndarray]) -> Sighting | None:
    """The sheet where its markers among those ``seen`` put it; None if it proves not to be there."""
    guess = _guess(sheet, seen)
    if guess is None:
        return None
    sighting = _align(grey, sheet, guess)
    box, scale = _surroundings(sheet, guess)
    if sighting is None and scale > 1:  # few and small markers mislead: a closer look finds more of them
        guess = _guess(sheet, _read(grey, box, scale, [sheet]))
        sighting = None if guess is None else _align(grey, sheet, guess)
    return sighting


def _guess(sheet: Layout, seen: dict[int, np.ndarray]) -> np.ndarray | None:
    """``[3, 3]`` from mm to pixels, to about a pixel near the markers ``seen``."""
    here = np.array([marker in seen for marker in sheet.markers])
    if not here.any():
        return None
    paper = np.concatenate([four for marker, four in sheet.markers.items() if marker in seen])
    pixels = np.concatenate([seen[marker] for marker in sheet.markers if marker in seen])
    tolerance = float(np.linalg.norm(pixels[0::4] - pixels[2::4], axis=1).max()) / _MODULES
    if _span(here):
        return cv2.findHomography(paper, pixels, cv2.RANSAC, tolerance)[0]
    affine, _ = cv2.estimateAffine2D(paper, pixels, method=cv2.RANSAC, ransacReprojThreshold=tolerance)
    return None if affine is None else np.vstack([affine, (0, 0, 1)])


def _span(there: np.ndarray) -> bool:
    """Whether the markers ``there [6]`` are of both rows and of different columns."""
    rows = there.reshape(2, -1)
    return bool(rows.any(axis=1).all() and rows.any(axis=0).sum() > 1)


def _surroundings(sheet: Layout, homography: np.ndarray) -> tuple[np.ndarray, float]:
    """The part of an image ``[2, 2]`` (first and last point) to read again, and the scale at which it is legible."""
    box, side = _extent(sheet, homography)
    spread = np.ptp(box, axis=0) / 2  # the sheet may have moved
    return np.stack([box[0] - spread, box[1] + spread]), min(_LEGIBLE * _MODULES / side, 4.0)


def _extent(sheet: Layout, homography: np.ndarray) -> tuple[np.ndarray, float]:
    """The box of all markers in the image ``[2, 2]`` (first and last point), and a marker's side in pixels."""
    points = _project(homography, np.concatenate([*sheet.markers.values()]))
    sides = np.linalg.norm(points[0::4] - points[2::4], axis=1) / 2**0.5
    return np.stack([points.min(axis=0), points.max(axis=0)]), max(float(np.median(sides)), 1.0)


def _align(grey: np.ndarray, sheet: Layout, guess: np.ndarray) -> Sighting | None:
    """The sighting that a rough homography leads to; None if too few markers prove to be there.

    The drawing of all markers is aligned with the image by efficient second-order minimisation (Benhimane & Malis
    2004). So every edge of every module counts, which keeps the error to a few hundredths of a pixel where the corners
    of small or blurred markers are uncertain, and markers that were not read are used too if they are there.
    """
    box, side = _extent(sheet, guess)
    border = side / 2  # the white around a marker, also of a nearer one, and how far the guess may be off
    # Samples at most a pixel apart: sharp edges between two of them would go unnoticed.
    scale = min(_SAMPLES * _MODULES / side, 1.0)
    window = _Window.of(grey, np.stack([box[0] - border, box[1] + border]), scale)
    if window is None:
        return None
    width, height = sheet.size_mm
    to_unit = np.array([(1, 0, -width / 2), (0, 1, -height / 2), (0, 0, sheet.marker_mm)]) / sheet.marker_mm
    matrix = window.matrix @ guess @ np.linalg.inv(to_unit)
    spots = np.stack([_project(to_unit, _GRID * sheet.marker_mm + four[0]) for four in sheet.markers.values()])
    drawing = np.stack([_drawing(marker) for marker in sheet.markers])
    limit = np.array(window.pixels.shape[::-1]) - 1
    for _ in range(_STEPS):
        at = _project(matrix, spots.reshape(-1, 2)).reshape(spots.shape)  # [6, s·s, 2]
        x, y = np.moveaxis(at, -1, 0).astype(np.float32, order="C")
        values = _normalise(cv2.remap(window.pixels, x, y, cv2.INTER_LINEAR).reshape(drawing.shape))
        there = (values * drawing).mean(axis=(1, 2)) > _ALIKE
        there &= ((at >= 0) & (at <= limit)).all(axis=(1, 2))
        if not there.any():
            return None
        slopes = _slopes(values[there], drawing[there])
        change = _change(slopes, (drawing - values)[there], spots[there])
        matrix = matrix @ change
        if np.abs(change - np.eye(3)).max() < _SETTLED:
            break
    if not _span(there):
        return None
    homography = np.linalg.inv(window.matrix) @ matrix @ to_unit
    homography /= homography[2, 2]
    corners = _project(homography, np.array([(0, 0), (width, 0), (width, height), (0, height)]))
    if not (np.isfinite(corners).all() and cv2.contourArea(corners.astype(np.float32), oriented=True) > 0):
        return None
    shifts = _shifts(slopes, (drawing - values)[there]) * _extent(sheet, homography)[1]
    return Sighting(sheet.number, corners, homography, int(there.sum()), float((shifts**2).sum(axis=1).mean() ** 0.5))


def _slopes(values: np.ndarray, drawing: np.ndarray) -> np.ndarray:
    """``[2, n, s, s]``: change of brightness per side of a marker, right and down, mean of what is seen and drawn."""
    down, right = np.gradient((values + drawing) / 2, 1 / (_MODULES * _SAMPLES), axis=(1, 2))
    return np.stack([right, down])


def _shifts(slopes: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """``[n, 2]``: how far each marker by itself lies from its place, in its sides, to first order."""
    rates = slopes.transpose(1, 0, 2, 3).reshape(slopes.shape[1], 2, -1)
    return np.linalg.solve(rates @ rates.transpose(0, 2, 1), rates @ difference.reshape(len(difference), -1, 1))[..., 0]


def _change(slopes: np.ndarray, difference: np.ndarray, spots: np.ndarray) -> np.ndarray:
    """``[3, 3]``: the homography of the paper that makes up for ``difference [n, s, s]`` best, to first order.

    ``spots [n, s·s, 2]`` are the samples' places on paper, in sides of a marker.
    """
    right, down = slopes.reshape(2, -1)
    x, y = spots.reshape(-1, 2).T
    toward = right * x + down * y
    rates = np.stack([right, right * x, right * y, down, down * x, down * y, toward * x, toward * y])
    normal = rates @ rates.T
    normal += 1e-4 * np.diag(np.diag(normal))  # a marker by itself says little of the perspective
    a = np.linalg.solve(normal, rates @ difference.ravel())
    return np.array([(1 + a[1], a[2], a[0]), (a[4], 1 + a[5], a[3]), (-a[6], -a[7], 1)])


@cache
def _drawing(marker: int) -> np.ndarray:
    """``[s, s]``: how a camera sees the marker and the white around it at ``_GRID``, normalised."""
    white = np.kron(np.pad(~bits(marker), 1, constant_values=True), np.ones((2 * _SAMPLES, 2 * _SAMPLES)))
    blurred = cv2.GaussianBlur(white, (0, 0), 0.7 * _SAMPLES, borderType=cv2.BORDER_REPLICATE)
    return _normalise(cv2.resize(blurred, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)[None])[0]


def _normalise(values: np.ndarray) -> np.ndarray:
    """``[n, s, s]`` with mean 0 and standard deviation 1 each."""
    values = values - values.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    return values / (values.std(axis=(1, 2), keepdims=True) + 1e-9)


def _project(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """``[n, 2]`` points through a homography."""
    return cv2.perspectiveTransform(points[None].astype(np.float64), homography)[0]


def save_layouts(path: Path, layouts: Sequence[Layout]) -> None:
    """Write ``layouts`` as JSON.

    Raises:
        InputError: the file cannot be written.
    """
    sheets = [{"number": one.number, "size_mm": list(one.size_mm), "marker_mm": one.marker_mm} for one in layouts]
    files.write_json(path, {"sheets": sheets})


def load_layouts(path: Path) -> list[Layout]:
    """Read what :func:`save_layouts` wrote.

    Raises:
        InputError: the file is missing or does not hold layouts.
    """
    try:
        sheets = files.read_json(path)["sheets"]
        layouts = []
        for one in sheets:
            width, height = files.numbers(one["size_mm"], 2, *SIDES_MM)
            marker = files.number(one["marker_mm"], SIDES_MM[0] / 10)
            layouts.append(layout((width, height), files.integer(one["number"]), marker))
        if not layouts:
            raise ValueError("no sheet")
    except (OSError, ValueError, KeyError, TypeError, InputError) as error:
        raise InputError(
            f"{path}: expected the layouts of printed sheets, got {error!r}; print the sheet first: "
            "patchattack print run=RUN"
        ) from error
    return layouts

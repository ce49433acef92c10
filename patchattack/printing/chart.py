"""The calibration chart: a few hundred colours, and the fiducials by which a photograph of them is read.

Lengths are units of the chart, from the outer corner of its top-left fiducial, x right and y down: millimetres where
the chart is printed at its natural size, and the same chart larger or smaller on another page.
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from patchattack import files
from patchattack.printing.profile import embed
from patchattack.printing.sheet import Sheet

VERSION = 1  # of layout and colours, told by the fiducials' ids: a chart on paper stays readable or is refused
MARKERS = 12  # ids VERSION · MARKERS and on, clockwise from the top left
COLUMNS, ROWS = 14, 20
SIZE = (187, 253)  # width and height
REPEATED = (255, 204, 153)  # greys all over the page, which measure the light

_PITCH, _CELL = 11, 10
_MARKER, _GAP = 14, 3  # a fiducial's side, and the paper around it
_PIXELS = 10  # per unit: all lengths above are whole units, so every edge is sharp
_HEADING = 14.0  # mm above the chart for the text
_MM = 72 / 25.4  # PDF points
_ADVICE = (
    "Print it with the settings and on the paper that your patches get. Photograph the whole page, flat, sharp and "
    "filling the frame, in even light without flash or reflections, with the camera that the patch will face. Then: "
    "patchattack calibrate fit photo=PHOTO"
)


def dictionary() -> Any:
    """OpenCV's dictionary of the fiducials; those of print sheets are 4 × 4."""
    import cv2

    return cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_5X5_250)


def colours() -> np.ndarray:
    """The cells' sRGB, ``[280, 3]`` in [0, 1], row by row.

    6³ colours of a regular grid and 8 greys between its own, in scrambled order, and three light greys in turn on
    every fifth cell, a knight's move apart.
    """
    grid = list(itertools.product(range(0, 256, 51), repeat=3)) + [(grey,) * 3 for grey in range(16, 256, 32)]
    scrambled = iter(grid[89 * i % len(grid)] for i in range(len(grid)))  # 89 has no divisor in common with 224
    greys = itertools.cycle(REPEATED)
    cells = [
        (next(greys),) * 3 if (column + 2 * row) % 5 == 0 else next(scrambled)
        for row in range(ROWS)
        for column in range(COLUMNS)
    ]
    return np.array(cells) / 255


def is_repeated() -> np.ndarray:
    """Which of its cells are the repeated greys, ``[280]`` bool."""
    row, column = np.divmod(np.arange(ROWS * COLUMNS), COLUMNS)
    return (column + 2 * row) % 5 == 0


def centres() -> np.ndarray:
    """The middle of each cell, ``[280, 2]``."""
    row, column = np.divmod(np.arange(ROWS * COLUMNS), COLUMNS)
    return np.stack([column, row], axis=-1) * _PITCH + (_MARKER + _GAP + _CELL / 2)


def inner(share: float) -> np.ndarray:
    """The corners of each cell's inner part, ``[280, 4, 2]``, whose side is ``share`` of the cell's."""
    return centres()[:, None] + _square(share * _CELL) - share * _CELL / 2


def fiducials() -> dict[int, np.ndarray]:
    """The corners of each fiducial, ``[4, 2]``, by id."""
    right, bottom = SIZE[0] - _MARKER, SIZE[1] - _MARKER
    half, quarters = round(right / 2), [round(bottom * i / 4) for i in (1, 2, 3)]
    places = [
        *((0, 0), (half, 0), (right, 0)),
        *((right, y) for y in quarters),
        *((right, bottom), (half, bottom), (0, bottom)),
        *((0, y) for y in reversed(quarters)),
    ]
    return {VERSION * MARKERS + i: np.array(place) + _square(_MARKER) for i, place in enumerate(places)}


def image(pixels: int = _PIXELS) -> np.ndarray:
    """The chart at ``pixels`` per unit, RGB uint8 ``[253 · pixels, 187 · pixels, 3]``."""
    import cv2

    picture = np.full((SIZE[1] * pixels, SIZE[0] * pixels, 3), 255, np.uint8)
    patterns = dictionary()
    for number, corners in fiducials().items():
        x, y = np.round(corners[0] * pixels).astype(int)
        side = _MARKER * pixels
        picture[y : y + side, x : x + side] = cv2.aruco.generateImageMarker(patterns, number, side)[..., None]
    for colour, corners in zip(colours(), inner(1), strict=True):
        (left, top), (right, bottom) = np.round(corners[[0, 2]] * pixels).astype(int)
        picture[top:bottom, left:right] = np.round(colour * 255)
    return picture


def write(path: Path, sheet: Sheet) -> None:
    """Write the chart as a PDF, as large as the page allows; the same arguments give the same bytes.

    It goes the way of a patch: one image whose colours are of the sheet's profile. Printers may treat drawn areas, and
    colours of no profile, differently.

    Args:
        path: the PDF.
        sheet: the page, its margin and its profile.

    Raises:
        InputError: the file cannot be written.
    """
    from PIL import Image
    from reportlab.lib.utils import ImageReader, simpleSplit
    from reportlab.pdfgen.canvas import Canvas

    page_width, page_height = sorted(sheet.paper)
    room = page_width - 2 * sheet.margin_mm
    scale = min(room / SIZE[0], (page_height - 2 * sheet.margin_mm - _HEADING) / SIZE[1])

    buffer = io.BytesIO()
    pdf = Canvas(buffer, pagesize=(page_width * _MM, page_height * _MM), invariant=True, pageCompression=True)
    pdf.setTitle(f"Colour chart, version {VERSION}")
    pdf.setCreator("patchattack")
    pdf.setViewerPreference("PrintScaling", "None")  # the print dialogue opens with "actual size"
    pdf._colorsUsed[embed(pdf, sheet.profile)] = "DefaultRGB"  # as of a patch's sheet
    pdf.scale(_MM, _MM)  # from here on, lengths are millimetres
    top = page_height - sheet.margin_mm
    pdf.setFont("Helvetica-Bold", 4)
    pdf.drawString(sheet.margin_mm, top - 4, f"patchattack colour chart, version {VERSION}")
    pdf.setFont("Helvetica", 2.4)
    for row, line in enumerate(simpleSplit(_ADVICE, "Helvetica", 2.4, room)[:3]):
        pdf.drawString(sheet.margin_mm, top - 7.2 - 2.9 * row, line)
    width, height = (side * scale for side in SIZE)
    pdf.drawImage(ImageReader(Image.fromarray(image())), (page_width - width) / 2, sheet.margin_mm, width, height)
    pdf.save()
    files.write(path, buffer.getvalue())


def _square(side: float) -> np.ndarray:
    """``[4, 2]``: top-left, top-right, bottom-right, bottom-left."""
    return np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * side

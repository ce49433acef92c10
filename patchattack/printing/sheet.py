"""Print sheets: the patch on paper in its true size, with the markers by which a camera finds it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch.nn.functional as F
from torch import Tensor

from patchattack import files
from patchattack.errors import InputError
from patchattack.patch import MILLIMETRES_PER_INCH
from patchattack.printing import fiducials as markers
from patchattack.printing import pages
from patchattack.printing.fiducials import SHEETS, Layout
from patchattack.printing.pages import PagePlan
from patchattack.printing.profile import embed, load_profile

_MOST_PAGES = 24
_MOST_PIXELS = 200_000_000
_NARROWEST = 104.0  # mm for the ruler
_POINTS = 72 / MILLIMETRES_PER_INCH  # per mm

_OUTLINE = 166  # grey of the outlines, of 255: a knife follows it, a camera hardly sees it
_LINE = 0.15  # mm

_STEPS = [(v, v, v) for v in (0, 51, 102, 153, 204, 255)]
_STEPS += [(255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255)]
_DISTANCES = (1, 2, 3, 5, 7, 10, 15, 20)  # metres
_PURPOSE = (
    "Adversarial test pattern: made to mislead computer vision. For robustness tests of systems that you own or are "
    "permitted to test; keep it out of public traffic."
)


class Sheet:
    """Paper, and what stands on it besides the patch.

    Patch and markers are one object that is cut out along the marks. Title, note, ruler, colour bar and a table of
    the patch's size in a camera's image stand above and below it.

    Args:
        page: ``a4``, ``a3``, ``letter``, or width and height in mm; it is turned on its side where that saves pages.
        margin_mm: border that the printer leaves white.
        fiducials: print ArUco markers around the patch.
        number: of the sheet, coded by its markers; the control's is the next.
        dpi: pixels per inch of a PNG, and of the PDF's picture unless the texture is finer.
        profile: file of the RGB ICC profile that the colours are said to be of; ``None`` for sRGB. The numbers
            themselves are not converted.
        field_of_view: horizontal degrees of the camera in the table.
        image_width: pixels of the camera in the table.

    Raises:
        InputError: no such page, a page too small for the ruler, an unknown profile, or a number out of range.
    """

    def __init__(
        self,
        page: str | Sequence[float] = "a4",
        margin_mm: float = 10,
        fiducials: bool = True,
        number: int = 0,
        dpi: float = 150,
        profile: str | None = None,
        field_of_view: float = 70,
        image_width: int = 1280,
    ) -> None:
        if isinstance(page, str) and page not in pages.PAGES:
            raise InputError(
                f"print.page: expected one of {', '.join(pages.PAGES)} or [width, height] in mm, got {page!r}"
            )
        if not isinstance(page, str) and not (len(page) == 2 and all(0 < side <= 10_000 for side in page)):
            raise InputError(f"print.page: expected [width, height] in mm, up to 10000 each, got {list(page)}")
        self.paper = pages.PAGES[page] if isinstance(page, str) else (float(page[0]), float(page[1]))
        self.page = page if isinstance(page, str) else f"{page[0]:g}x{page[1]:g}mm"
        room = min(self.paper) - 2 * margin_mm
        if not (margin_mm >= 0 and room >= _NARROWEST):
            raise InputError(
                f"print.page: expected a page with {_NARROWEST:g} mm between its margins for the ruler, got {room:g} "
                f"on {self.page} with print.margin_mm={margin_mm:g}; use a larger page or a smaller margin"
            )
        if not 0 <= number < SHEETS - 1:
            raise InputError(f"print.number: expected 0 to {SHEETS - 2} (the control's is the next), got {number}")
        if not 36 <= dpi <= 4800:
            raise InputError(f"print.dpi: expected 36 to 4800 pixels per inch, got {dpi:g}")
        if not (0 < field_of_view < 180 and image_width > 0):
            raise InputError(
                "print: expected field_of_view between 0 and 180 degrees and image_width above 0 pixels, "
                f"got {field_of_view:g} and {image_width}"
            )
        self.margin_mm, self.fiducials, self.number, self.dpi = margin_mm, fiducials, number, dpi
        self.field_of_view, self.image_width = field_of_view, image_width
        self.profile = load_profile(profile)

    def layout(self, size_mm: tuple[float, float], number: int | None = None) -> Layout:
        """The markers around a patch of ``size_mm``: of sheet ``number``, or of the sheet's own."""
        return self._plan(size_mm, self.number if number is None else number).layout

    def check(self, size_mm: tuple[float, float]) -> tuple[float, float]:
        """Width and height in mm of the pages that a patch of ``size_mm`` (width, height) goes on.

        Raises:
            InputError: the patch takes too many pages, or too many pixels.
        """
        return self._plan(size_mm, self.number).paper

    def write(
        self,
        path: Path,
        texture: Tensor | None,
        mask: Tensor,
        size_mm: tuple[float, float],
        title: str,
        note: str,
        number: int | None = None,
    ) -> None:
        """Write the sheet as a PDF; the same arguments give the same bytes.

        A patch that is larger than the page goes on several pages, which overlap by 10 mm.

        Args:
            path: the PDF.
            texture: ``[3, h, w]`` in [0, 1]; ``None`` leaves the patch's place blank, with its outline.
            mask: ``[1, h, w]`` in [0, 1]; the paper stays white where it is 0.
            size_mm: width and height on paper.
            title: one line.
            note: small print below the title, the sheet's number is added; what does not fit in a line is left out.
            number: of the sheet, coded by the markers; ``None`` for the sheet's own.

        Raises:
            InputError: the patch takes too many pages or pixels, or the file cannot be written.
        """
        from PIL import Image
        from reportlab.lib.utils import ImageReader
        from reportlab.pdfgen.canvas import Canvas

        plan = self._plan(size_mm, self.number if number is None else number)
        note = f"{note}, sheet {plan.layout.number}" if self.fiducials else note
        buffer = io.BytesIO()
        points = tuple(side * _POINTS for side in plan.paper)
        pdf = Canvas(buffer, pagesize=points, invariant=True, pageCompression=True)
        pdf.setTitle(title)
        pdf.setSubject(note)
        pdf.setCreator("patchattack")
        pdf.setViewerPreference("PrintScaling", "None")  # the print dialogue opens with "actual size"
        colours = embed(pdf, self.profile)
        pixels, outlines = self._draw_patch(texture, mask, size_mm)
        picture = None if pixels is None else ImageReader(Image.fromarray(pixels))
        for page in range(plan.pages):
            # By this name, all device colours of the page are of the profile (ISO 32000-1, 8.6.5.6).
            pdf._colorsUsed[colours] = "DefaultRGB"
            pdf.scale(_POINTS, _POINTS)  # from here on, lengths are millimetres
            self._draw_cut_out(pdf, plan, page, picture, outlines)
            self._draw_head(pdf, plan, page, title, note)
            self._draw_foot(pdf, plan, page)
            pdf.showPage()
        pdf.save()
        files.write(path, buffer.getvalue())

    def write_png(
        self,
        path: Path,
        texture: Tensor | None,
        mask: Tensor,
        size_mm: tuple[float, float],
        number: int | None = None,
    ) -> None:
        """Write what is cut out, the patch with its markers, as a PNG of ``dpi``; arguments as of :meth:`write`.

        Raises:
            InputError: it takes too many pixels, or the file cannot be written.
        """
        from PIL import Image

        plan = self._plan(size_mm, self.number if number is None else number)
        left, top, right, bottom = plan.bounds
        scale = self.dpi / MILLIMETRES_PER_INCH
        canvas = np.full((math.ceil((bottom - top) * scale), math.ceil((right - left) * scale), 3), 255, np.uint8)
        width, height = (round(side * scale) for side in size_mm)
        x, y = round(-left * scale), round(-top * scale)
        picture, outlines = self._draw_patch(texture, mask, size_mm)
        if picture is not None:
            smaller = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
            canvas[y : y + height, x : x + width] = smaller
        for outline in outlines:
            line = np.rint((outline - (left, top)) * scale - 0.5).astype(np.int32)
            cv2.polylines(canvas, [line], isClosed=True, color=(_OUTLINE,) * 3, thickness=max(1, round(0.2 * scale)))
        for place in _black(plan.layout) if self.fiducials else []:
            _blacken(canvas, *((side - edge) * scale for side, edge in zip(place, (left, top) * 2, strict=True)))
        stream = io.BytesIO()
        Image.fromarray(canvas).save(stream, "PNG", dpi=(self.dpi, self.dpi), icc_profile=self.profile)
        files.write(path, stream.getvalue())

    def _plan(self, size_mm: tuple[float, float], number: int) -> PagePlan:
        """How the patch goes on paper: on one page if it can, else on the fewest."""
        width, height = size_mm
        if not (0 < width < math.inf and 0 < height < math.inf):
            raise InputError(f"print: expected a patch larger than 0 mm, got {width:g} × {height:g} mm")
        best = pages.plan(self.paper, self.margin_mm, self.fiducials, size_mm, number)
        if best.pages > _MOST_PAGES:
            raise InputError(
                f"print={self.page}: expected a patch that fits on {_MOST_PAGES} pages, got {width:g} × {height:g} mm, "
                f"which takes {best.pages:,}; use a smaller patch.size_mm or a larger page (print=a3)"
            )
        left, top, right, bottom = best.bounds
        pixels = (right - left) * (bottom - top) * (self.dpi / MILLIMETRES_PER_INCH) ** 2
        if pixels > _MOST_PIXELS:
            raise InputError(
                f"print.dpi={self.dpi:g}: expected at most {_MOST_PIXELS / 1e6:.0f} million pixels, got "
                f"{pixels / 1e6:,.0f} million for {right - left:.0f} × {bottom - top:.0f} mm; "
                f"use print.dpi={math.floor(self.dpi * (_MOST_PIXELS / pixels) ** 0.5)} or less"
            )
        return best

    def _draw_patch(
        self, texture: Tensor | None, mask: Tensor, size_mm: tuple[float, float]
    ) -> tuple[np.ndarray | None, list[np.ndarray]]:
        """The patch on white, ``[H, W, 3]`` uint8, and its outlines, ``[n, 2]`` mm each: of a mask with a shape, and of
        a blank place.

        The renderer that the patch was optimised with takes the texture as bilinear between texel centres. Printers
        and viewers smooth a coarse image each in their own way, or not at all, so the interpolation is done here.
        """
        width, height = size_mm
        fine = [round(side / MILLIMETRES_PER_INCH * self.dpi) for side in (height, width)]
        shape = [max(texels, pixels) for texels, pixels in zip(mask.shape[1:], fine, strict=True)]
        shown = _enlarge(mask, shape)[0] > 0.5
        outlines = []
        if not shown.all():
            curves, _ = cv2.findContours(shown.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            per_pixel = np.array(size_mm) / shape[::-1]
            outlines = [(cv2.approxPolyDP(curve, 0.7, True)[:, 0] + 0.5) * per_pixel for curve in curves]
        elif texture is None:
            outlines = [np.array([(0, 0), (width, 0), (width, height), (0, height)])]
        if texture is None:
            return None, outlines
        paper = _enlarge(texture * mask + (1 - mask), shape)
        return np.ascontiguousarray((paper * 255).round().astype(np.uint8).transpose(1, 2, 0)), outlines

    def _draw_cut_out(self, pdf: Any, plan: PagePlan, page: int, picture: Any, outlines: Sequence[np.ndarray]) -> None:
        """A page's part of the patch with its markers, and the marks to cut it out by."""
        left, top, width, height = plan.tile(page)
        bottom = self.margin_mm + plan.foot + pages.GAP
        free = plan.paper[1] - self.margin_mm - pages.HEAD - pages.GAP - bottom
        x, y = (plan.paper[0] - width) / 2, bottom + (free - height) / 2
        pdf.saveState()
        if plan.pages > 1:
            window = pdf.beginPath()
            window.rect(x, y, width, height)
            pdf.clipPath(window, stroke=0, fill=0)
        pdf.translate(x - left, y + height + top)  # the patch's top-left corner
        if picture is not None:
            pdf.drawImage(picture, 0, -plan.layout.size_mm[1], *plan.layout.size_mm)
        pdf.setLineWidth(_LINE)
        pdf.setStrokeColorRGB(*[_OUTLINE / 255] * 3)
        _draw_path(pdf, outlines, stroke=1)
        if self.fiducials:
            _draw_path(pdf, [np.array([(a, b), (c, b), (c, d), (a, d)]) for a, b, c, d in _black(plan.layout)], fill=1)
        pdf.restoreState()

        pdf.setStrokeColorRGB(0, 0, 0)
        pdf.setLineWidth(_LINE)
        (column, row), (columns, rows) = plan.place(page), plan.counts
        for edge, end in pages.edge_marks(x, width, column > 0, column < columns - 1):
            pdf.line(edge, y - 0.7, edge, y - end)
            pdf.line(edge, y + height + 0.7, edge, y + height + end)
        for edge, end in pages.edge_marks(y, height, row < rows - 1, row > 0):
            pdf.line(x - 0.7, edge, x - end, edge)
            pdf.line(x + width + 0.7, edge, x + width + end, edge)

    def _draw_head(self, pdf: Any, plan: PagePlan, page: int, title: str, note: str) -> None:
        """Title, note and, where there are several pages, which one this is."""
        from reportlab.lib.utils import simpleSplit
        from reportlab.pdfbase.pdfmetrics import stringWidth

        left, top, room = self.margin_mm, plan.paper[1] - self.margin_mm, plan.paper[0] - 2 * self.margin_mm
        if plan.pages > 1:
            columns, rows = plan.counts
            cell = min(8 / rows, 20 / columns)
            x = left + room - columns * cell
            room -= columns * cell + 4
            pdf.setLineWidth(_LINE)
            for other in range(plan.pages):
                column, row = plan.place(other)
                pdf.setFillColorRGB(*[0.2 if other == page else 1.0] * 3)
                pdf.rect(x + column * cell, top - (row + 1) * cell, cell, cell, fill=1)
            pdf.setFillColorRGB(0, 0, 0)
        size = min(4.5, 4.5 * room / stringWidth(title, "Helvetica-Bold", 4.5)) if title else 4.5
        pdf.setFont("Helvetica-Bold", size)
        pdf.drawString(left, top - 4, title)
        pdf.setFont("Helvetica", 2.8)
        for line in simpleSplit(note, "Helvetica", 2.8, room)[:1]:
            pdf.drawString(left, top - 8.5, line)

    def _draw_foot(self, pdf: Any, plan: PagePlan, page: int) -> None:
        """Ruler, colour bar, table and purpose."""
        from reportlab.lib.utils import simpleSplit

        left, top, room = self.margin_mm, self.margin_mm + plan.foot, plan.paper[0] - 2 * self.margin_mm
        _draw_ruler(pdf, left, top)
        if plan.pages > 1:
            column, row = plan.place(page)
            pdf.drawString(
                *(left, top - 13.7),
                f"Page {page + 1} of {plan.pages} (row {row + 1}, column {column + 1}): cut along the marks, "
                f"glue edge to short mark.",
            )
        if plan.foot == pages.FOOT_WIDE:
            self._draw_scales(pdf, plan, left + 108, top, room - 108)
        else:
            self._draw_scales(pdf, plan, left, top - 16, room)
        pdf.setFont("Helvetica", 2.2)
        lines = simpleSplit(_PURPOSE, "Helvetica", 2.2, room)
        for row, line in enumerate(reversed(lines)):
            pdf.drawString(left, self.margin_mm + 0.6 + 2.7 * row, line)

    def _draw_scales(self, pdf: Any, plan: PagePlan, left: float, top: float, room: float) -> None:
        """The colour bar, and how many pixels the patch's width spans at several distances."""
        cell = room / len(_STEPS)
        pdf.setFont("Helvetica", 1.5)
        for place, colour in enumerate(_STEPS):
            pdf.setFillColorRGB(*(value / 255 for value in colour))
            pdf.rect(left + place * cell, top - 4, cell, 4, stroke=0, fill=1)
            pdf.setFillColorRGB(0, 0, 0)
            grey = colour[0] == colour[1] == colour[2]
            label = f"{colour[0]}" if grey else " ".join(str(value) for value in colour)
            pdf.drawCentredString(left + (place + 0.5) * cell, top - 5.7, label)
        pdf.setLineWidth(_LINE)
        pdf.rect(left, top - 4, room, 4)  # where the white step ends

        focal = self.image_width / 2 / math.tan(math.radians(self.field_of_view) / 2)
        spans = [f"{focal * plan.layout.size_mm[0] / 1000 / metres:.0f}" for metres in _DISTANCES]
        head, cell = room * 0.3, room * 0.7 / len(_DISTANCES)
        pdf.setFont("Helvetica", 2.2)
        for row, (name, values) in enumerate((("distance, m", _DISTANCES), ("patch spans, px", spans))):
            y = top - 9 - 2.9 * row
            pdf.drawString(left, y, name)
            for place, value in enumerate(values):
                pdf.drawRightString(left + head + (place + 1) * cell, y, f"{value}")
        pdf.line(left, top - 9.7, left + room, top - 9.7)
        pdf.setFont("Helvetica", 1.8)
        pdf.drawRightString(left + room, top - 14, f"seen {self.field_of_view:g}° wide in {self.image_width} px")


def _draw_ruler(pdf: Any, left: float, top: float) -> None:
    """100 mm, and what they are for."""
    pdf.setFillColorRGB(0, 0, 0)
    pdf.setStrokeColorRGB(0, 0, 0)
    pdf.setLineWidth(0.2)
    line = top - 6.5
    pdf.line(left, line, left + 100, line)
    for mm in range(0, 101, 1):
        pdf.line(left + mm, line, left + mm, line + (3 if mm % 10 == 0 else 2 if mm % 5 == 0 else 1.2))
    pdf.setFont("Helvetica", 2.4)
    for mm in range(0, 101, 10):
        (pdf.drawString if mm == 0 else pdf.drawCentredString)(left + mm, line + 3.8, f"{mm}")
    pdf.setFont("Helvetica", 2.8)
    pdf.drawString(left, line - 3.6, "Print at 100 %. This ruler must measure 100 mm.")


def _draw_path(pdf: Any, polygons: Sequence[np.ndarray], stroke: int = 0, fill: int = 0) -> None:
    """Closed polygons ``[n, 2]`` in mm, y down, as one path: no seams between those that touch."""
    path = pdf.beginPath()
    for polygon in polygons:
        path.moveTo(polygon[0, 0], -polygon[0, 1])
        for x, y in polygon[1:]:
            path.lineTo(x, -y)
        path.close()
    pdf.setFillColorRGB(0, 0, 0)
    pdf.drawPath(path, stroke=stroke, fill=fill)


def _black(layout: Layout) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom in mm of the black stretches of the markers' rows."""
    stretches = []
    for marker, corners in layout.markers.items():
        black = markers.bits(marker)
        module = layout.marker_mm / len(black)
        x, y = corners[0]
        for row, modules in enumerate(black):
            edges = np.flatnonzero(np.diff(np.pad(modules, 1).astype(np.int8)))
            for start, end in edges.reshape(-1, 2):
                stretches.append((x + start * module, y + row * module, x + end * module, y + (row + 1) * module))
    return stretches


def _blacken(canvas: np.ndarray, left: float, top: float, right: float, bottom: float) -> None:
    """Draw a black rectangle, its sides in pixels from the canvas's corner, on white, antialiased."""
    x, y = (np.arange(math.floor(start), math.ceil(end)) for start, end in ((left, right), (top, bottom)))
    across, down = (
        np.minimum(places + 1, end) - np.maximum(places, start)
        for places, start, end in ((x, left, right), (y, top, bottom))
    )
    part = canvas[y[0] : y[-1] + 1, x[0] : x[-1] + 1]
    cover = np.rint(255 * np.outer(down, across)).astype(np.uint8)
    cv2.subtract(part, np.repeat(cover[..., None], 3, axis=2), dst=part)


def _enlarge(image: Tensor, shape: list[int]) -> np.ndarray:
    """``image [C, h, w]`` in [0, 1] as ``[C, *shape]``, bilinear between its pixels' centres."""
    larger = F.interpolate(image.detach()[None].cpu(), shape, mode="bilinear", align_corners=False)
    return larger[0].clamp(0, 1).numpy()

"""How a patch with its markers is divided among pages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from patchattack.printing import fiducials as markers
from patchattack.printing.fiducials import Layout

PAGES = {"a4": (210.0, 297.0), "a3": (297.0, 420.0), "letter": (215.9, 279.4)}  # width, height in mm, upright
SHARES = (0.21, 0.19, 0.175, 0.16)  # of the patch's shorter side that a marker takes: smaller ones to save a page
OVERLAP = 10.0  # mm that neighbouring pages share
HEAD = 10.0  # mm of title and note
GAP = 3.0  # mm for the cut marks, above and below what is cut out
WIDE = 180.0  # mm from which the ruler and the colour bar stand side by side
FOOT_WIDE, FOOT_NARROW = 18.0, 36.0  # mm of ruler, colour bar, table and purpose


@dataclass(frozen=True)
class PagePlan:
    """How a patch goes on paper.

    Attributes:
        paper: width and height of the pages, mm.
        layout: of the markers.
        bounds: left, top, right and bottom of what is cut out, in the patch's frame, mm.
        counts: pages side by side, and below one another.
        foot: height of what stands at the bottom of a page, mm.
    """

    paper: tuple[float, float]
    layout: Layout
    bounds: tuple[float, float, float, float]
    counts: tuple[int, int]
    foot: float

    @property
    def pages(self) -> int:
        """How many there are."""
        return self.counts[0] * self.counts[1]

    def place(self, page: int) -> tuple[int, int]:
        """Column and row of a page."""
        return page % self.counts[0], page // self.counts[0]

    def tile(self, page: int) -> tuple[float, float, float, float]:
        """Left, top, width and height of a page's part, in the patch's frame, mm: all parts are of one size."""
        starts, sizes = [], []
        for axis, number in enumerate(self.place(page)):
            extent, count = self.bounds[2 + axis] - self.bounds[axis], self.counts[axis]
            size = (extent + (count - 1) * OVERLAP) / count
            starts.append(self.bounds[axis] + number * (size - OVERLAP))
            sizes.append(size)
        return starts[0], starts[1], sizes[0], sizes[1]


def plan(
    paper: tuple[float, float], margin_mm: float, fiducials: bool, size_mm: tuple[float, float], number: int
) -> PagePlan:
    """On one page if it can be, upright or on its side, with smaller markers if that helps; else on the fewest.

    Args:
        paper: width and height of a page, mm.
        margin_mm: border that the printer leaves white.
        fiducials: there are markers around the patch.
        size_mm: width and height of the patch.
        number: of the sheet, coded by its markers.
    """
    papers = [paper, paper[::-1]]
    if (size_mm[0] > size_mm[1]) != (paper[0] > paper[1]):
        papers.reverse()
    plans = [
        _plan_on(one, margin_mm, fiducials, markers.layout(size_mm, number, share * min(size_mm)))
        for share in (SHARES if fiducials else SHARES[:1])
        for one in papers
    ]
    return next((one for one in plans if one.pages == 1), min(plans[:2], key=lambda one: one.pages))


def _plan_on(paper: tuple[float, float], margin_mm: float, fiducials: bool, layout: Layout) -> PagePlan:
    bounds = layout.bounds_mm if fiducials else (0.0, 0.0, *layout.size_mm)
    foot = FOOT_WIDE if paper[0] - 2 * margin_mm >= WIDE else FOOT_NARROW
    room = (paper[0] - 2 * margin_mm, paper[1] - 2 * margin_mm - HEAD - foot - 2 * GAP)
    counts = []
    for free, extent in zip(room, (bounds[2] - bounds[0], bounds[3] - bounds[1]), strict=True):
        fits = extent <= free + 1e-6
        counts.append(1 if fits else math.ceil((extent - OVERLAP) / max(free - OVERLAP, 1e-3)))
    return PagePlan(paper, layout, bounds, (counts[0], counts[1]), foot)


def edge_marks(start: float, size: float, before: bool, after: bool) -> list[tuple[float, float]]:
    """Places along a side, and how far its marks reach: long ones to cut by, short ones for neighbours' edges."""
    inner = [start + OVERLAP] * before + [start + size - OVERLAP] * after
    return [(edge, 2.7) for edge in (start, start + size)] + [(edge, 1.7) for edge in inner]

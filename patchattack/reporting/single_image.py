"""A page for attacks on one image at a time: rates with their intervals, tables, and images before and after."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from patchattack.reporting.page import DAY, axes_of, figure_style, number, svg, write_page


@dataclass(frozen=True)
class Dot:
    """A rate with its interval; ``role`` is one of the page's colours."""

    name: str
    mean: float
    low: float
    high: float
    role: str = "muted"


@dataclass(frozen=True)
class Cell:
    """What a cell of a table says, and below it in small type."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table: ``columns`` name the first column too, ``rows`` are a name and the other cells."""

    title: str
    note: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


@dataclass(frozen=True)
class Picture:
    """``image [3, h, w]`` in [0, 1] and what it shows."""

    image: Tensor
    caption: str


@dataclass(frozen=True)
class Page:
    """All that the page shows.

    Attributes:
        title: names the measurement.
        verdict: one sentence.
        facts: the numbers behind it, in words.
        dots: rates to draw.
        label: what the rates are.
        note: to read next to the figure.
        tables: the numbers.
        setup: names and values, in their order.
        command: repeats it.
        versions: package to version.
        pictures: groups of pictures with their headings; empty groups are left out.
    """

    title: str
    verdict: str
    facts: str
    dots: list[Dot]
    label: str
    note: str
    tables: list[Table]
    setup: list[tuple[str, str]]
    command: str
    versions: dict[str, str]
    pictures: list[tuple[str, list[Picture]]] = field(default_factory=list)


def write_per_image(path: Path, page: Page) -> None:
    """Write ``page`` as one HTML file that asks nothing of any server and runs no script.

    Raises:
        InputError: the file cannot be written.
    """
    with figure_style():
        write_page(path, "single_image.html.j2", title=page.title, page=page, figure=_figure(page))


def _figure(page: Page) -> str:
    """Every rate as a dot with its interval."""
    figure, axes = axes_of(height=0.8 + 0.36 * len(page.dots))
    for place, dot in enumerate(page.dots):
        colour = DAY[dot.role]
        axes.plot([dot.low, dot.high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot(dot.mean, place, "o", color=colour, markersize=6)
        axes.annotate(
            number(dot.mean),
            (dot.mean, place),
            (0, 6),
            textcoords="offset points",
            ha="center",
            color=colour,
            size=8,
        )
    axes.set_yticks(range(len(page.dots)), [dot.name for dot in page.dots], color=DAY["ink"])
    axes.set_ylim(len(page.dots) - 0.5, -0.8)
    axes.set_xlim(-0.05, 1.05)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=DAY["rule"], linewidth=0.6)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(page.label)
    return svg(figure)

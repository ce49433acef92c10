"""What every page has in common: colours by day and by night, numbers, tables, pictures and figures."""

from __future__ import annotations

import base64
import functools
import io
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from torch import Tensor

from patchattack.controls import CONDITIONS
from patchattack.files import write
from patchattack.statistics import Outcome

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Each role's colour by day and by night. Figures are drawn in the colours of the day, which then become CSS variables.
COLOURS = {
    "paper": ("#fdfdfc", "#15171a"),
    "panel": ("#f4f4f1", "#1e2125"),
    "rule": ("#dfe0dd", "#33373d"),
    "muted": ("#666b73", "#9aa1ab"),
    "ink": ("#1a1c1f", "#e9eaec"),
    "patch": ("#c2410c", "#fb8a4c"),
    "random": ("#2f6690", "#7db7e0"),
    "calm": ("#3f6f4e", "#8cc6a0"),
}
DAY = {role: day for role, (day, _) in COLOURS.items()}
REGIONS = {"all": "whole frame", "outside": "outside the patch", "patch": "on the patch"}
STATES = {Outcome.WORKS: "worked", Outcome.FAILS: "failed", Outcome.INCONCLUSIVE: "undecided"}  # classes of the header
ARROWS = {"lower": "↓", "higher": "↑"}  # the way of a stronger attack
_NARROWEST = 0.05  # span of an axis of intervals, as a fraction of its greatest value: ticks of closer values collide
_WIDEST = 640  # pixels; larger frames are shown reduced
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "svg.hashsalt": "patchattack",  # the same page has the same bytes
    "text.parse_math": False,
    "axes.formatter.useoffset": False,  # a tick is its value, without a sum to do
}


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render one of this folder's templates as an HTML file that asks nothing of any server.

    It runs no script, but for the board's own.

    Raises:
        InputError: the file cannot be written.
    """
    write(path, _templates().get_template(template).render(colours=COLOURS, states=STATES, **values))


@functools.cache
def _templates() -> Environment:
    """Compiled once for all pages of a process."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"png": _png, "number": number}
    return environment


def figure_style() -> AbstractContextManager[None]:
    """Under it the page's figures are made and drawn."""
    from matplotlib import rc_context

    return rc_context(
        _STYLE
        | {
            "figure.figsize": (4.8, 3.0),
            "svg.fonttype": "none",  # text stays text, in the page's font
            "savefig.transparent": True,
        }
    )


def paper_style() -> AbstractContextManager[None]:
    """Under it the same figures come out for papers: as wide as a column, in a face that suits any serif text."""
    from matplotlib import rc_context

    return rc_context(
        _STYLE
        | {
            "figure.figsize": (3.3, 2.1),
            "font.family": "STIXGeneral",  # comes with matplotlib: the same on every machine
            "svg.fonttype": "path",
            "pdf.fonttype": 42,  # publishers refuse Type 3
            "savefig.dpi": 300,
        }
    )


def number(value: float) -> str:
    """Three significant digits, at most three decimals."""
    if not math.isfinite(value):
        return "–"
    decimals = 2 - math.floor(math.log10(max(abs(value), 0.1)))
    return f"{value:,.{max(decimals, 0)}f}".replace("-", "−")


def in_order(conditions: Iterable[str]) -> list[str]:
    """The known conditions as :data:`CONDITIONS` has them, then the others by name."""
    known = list(CONDITIONS)
    return sorted(conditions, key=lambda name: (known.index(name) if name in known else len(known), name))


def by_metric(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Rows by (metric, region) and condition."""
    table: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        table.setdefault((row["metric"], row["region"]), {})[row["condition"]] = row
    return table


def regions_of(rows: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Regions in words. Of a task whose outputs have no pixels there is one region, and it goes without saying."""
    return REGIONS if {row["region"] for row in rows} != {"all"} else {"all": ""}


def _png(image: Tensor) -> str:
    """``[3 or 4, h, w]`` in [0, 1] as a data URI."""
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    height, width = pixels.shape[:2]
    if width > _WIDEST:
        pixels = cv2.resize(pixels, (_WIDEST, round(height * _WIDEST / width)), interpolation=cv2.INTER_AREA)
    order = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
    _, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, order))
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()


def axes_of(height: float) -> tuple[Figure, Axes]:
    """A figure as wide as the style's, a phone's or a column's, and ``height`` inches high."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    figure = Figure(figsize=(rcParams["figure.figsize"][0], height), layout="constrained")
    axes = figure.add_subplot()
    dress(axes)
    return figure, axes


def dress(axes: Axes) -> None:
    """Frame, ticks and labels as every figure has them."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(DAY["rule"])
    axes.tick_params(colors=DAY["muted"], labelsize=8, width=0.6)
    axes.xaxis.label.set(color=DAY["muted"], size=8)


def draw_intervals(axes: Axes, entries: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    """Rows of a dot, its number and its interval.

    Args:
        axes: empty.
        entries: name, colour, and a row with ``mean``, ``low`` and ``high``, from top to bottom.
    """
    for place, (_, colour, row) in enumerate(entries):
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot(row["mean"], place, "o", color=colour, markersize=6)
        axes.annotate(
            number(row["mean"]),
            (row["mean"], place),
            (0, 5),
            textcoords="offset points",
            ha="center",
            color=colour,
        )
    axes.set_yticks(range(len(entries)), [name for name, _, _ in entries], color=DAY["ink"])
    axes.set_ylim(len(entries) - 0.5, -0.9)
    axes.margins(x=0.12)
    low, high = axes.get_xlim()
    missing = _NARROWEST * max(abs(low), abs(high)) - (high - low)
    if missing > 0:
        axes.set_xlim(low - missing / 2, high + missing / 2)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=DAY["rule"], linewidth=0.6)
    axes.spines["left"].set_visible(False)


def label_ends(axes: Axes, ends: Sequence[tuple[str, str, float]]) -> None:
    """Names at the right edge, each beside the end of its curve and none upon another.

    The axes' limits must be final.

    Args:
        axes: with the curves.
        ends: name, colour and last value of each curve; unknown values are left out.
    """
    known = sorted((end for end in ends if math.isfinite(end[2])), key=lambda end: end[2])
    if not known:
        return
    from matplotlib import rcParams

    texts = [
        axes.annotate(
            *(name, (1, value), (7, 0)),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )
        for name, colour, value in known
    ]
    axes.figure.draw_without_rendering()  # type: ignore[union-attr] # from here the axes have their size
    point = axes.figure.dpi / 72
    box = axes.get_window_extent()
    wanted = [(axes.transData.transform((0, value))[1] - box.y0) / point for _, _, value in known]
    placed = _spread(wanted, 1.25 * rcParams["font.size"], box.height / point)
    for text, before, after in zip(texts, wanted, placed, strict=True):
        text.xyann = (7, after - before)


def _spread(wanted: Sequence[float], gap: float, length: float) -> list[float]:
    """The places in [0, length] nearest to ``wanted``, which ascend, that keep ``gap`` between neighbours.

    Less the gaps below it each place is free to be as low as its neighbour's: what remains is isotonic regression.
    Where there is no room, they stick out above.
    """
    from scipy.optimize import isotonic_regression

    steps = gap * np.arange(len(wanted))
    levels = isotonic_regression(np.asarray(wanted) - steps).x.clip(0, max(length - steps[-1], 0))
    return (levels + steps).tolist()


def svg(figure: Figure) -> str:
    """The figure as inline SVG in the page's colours."""
    from markupsafe import Markup

    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(["Creator", "Date", "Format", "Type"]))
    drawn = re.sub(r"^.*?<svg ([^>]*?)width=\S+ height=\S+", r"<svg \1", text.getvalue(), flags=re.DOTALL)
    for role, day in DAY.items():
        drawn = drawn.replace(day, f"var(--{role})")
    return Markup(drawn)

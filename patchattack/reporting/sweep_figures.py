"""The figures of a sweep's report."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from patchattack.controls import CONDITIONS
from patchattack.reporting.page import ARROWS, DAY, axes_of, draw_intervals, dress, label_ends, number
from patchattack.reporting.report import Example
from patchattack.reporting.sweep_numbers import ENDS, EXCESS, REACH, Level, Numbers, Pair, Row, level_name, sentence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

BANDS = {"grey": DAY["muted"], "random": DAY["random"], "patch": DAY["patch"]}  # drawn with intervals, the last on top


def figures_of(numbers: Numbers) -> dict[str, Callable[[], Figure]]:
    """Their names, and what draws them in the style of the moment."""
    figures: dict[str, Callable[[], Figure]] = {}
    if len(numbers.pairs) > 1:
        figures["excess"] = partial(_draw_excess, numbers)
    for pair in numbers.pairs:
        figures[numbers.figure("baseline", pair)] = partial(_draw_baseline, numbers, pair)
        if numbers.levels(REACH):
            figures[numbers.figure(REACH, pair)] = partial(_draw_reach, numbers, pair)
        for axis, varied in numbers.evidence.axes.items():
            draw = _draw_maps if varied.kind in ("grid", "half_sphere") else _draw_curves
            figures[numbers.figure(axis, pair)] = partial(draw, numbers, pair, axis)
    return figures


def _draw_excess(numbers: Numbers) -> Figure:
    """Every pair's excess over random at the baseline."""
    rows = {name: numbers.excess.get((*pair, "baseline", "")) for pair, name in numbers.pairs.items()}
    entries = [
        (textwrap.fill(name, 24, break_long_words=False), DAY["patch"] if row["low"] > 0 else DAY["muted"], row)
        for name, row in rows.items()
        if row
    ]
    figure, axes = axes_of(height=0.7 + 0.4 * len(entries))
    axes.axvline(0, color=DAY["ink"], linewidth=0.8)
    draw_intervals(axes, entries)
    axes.set_xlabel(EXCESS)
    return figure


def _draw_baseline(numbers: Numbers, pair: Pair) -> Figure:
    """The primary metric under every condition."""
    rows = {name: numbers.measured.get((*pair, "baseline", "", name)) for name in numbers.conditions}
    entries = [
        (CONDITIONS.get(name, name), DAY.get(name, DAY["muted"]), row) for name, row in rows.items() if row is not None
    ]
    figure, axes = axes_of(height=0.7 + 0.3 * len(entries))
    draw_intervals(axes, entries)
    low, high = _unit(numbers.measured)
    axes.set_xlim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    axes.set_xlabel(textwrap.fill(numbers.label, 50))
    return figure


def _draw_reach(numbers: Numbers, pair: Pair) -> Figure:
    """The metric around the patch against the distance from its edge, each ring at its middle."""
    assert numbers.evidence.reach is not None
    metric, regions = numbers.evidence.reach
    figure, (axes,) = _panels([2.0])
    x = np.array([(low + high) / 2 for low, high in regions.values()])
    ends = []
    for name, colour in (BANDS | {"drawn": DAY["ink"]}).items():
        values = _values(numbers.around, [(*pair, REACH, region, name) for region in regions])
        if np.isfinite(values[0]).any():
            _draw_band(axes, x, values, colour, joined=True)
            ends.append((ENDS.get(name, CONDITIONS[name]), colour, _last(values[0])))
    _scale(
        axes,
        f"{sentence(numbers.evidence.labels[metric])} {ARROWS[numbers.evidence.arrows[metric]]}",
        _unit(numbers.around),
    )
    axes.set_xlabel("distance from the patch's edge (sides of the patch)")
    label_ends(axes, ends)
    return figure


def _draw_curves(numbers: Numbers, pair: Pair, axis: str) -> Figure:
    """Success against the level; below it the excess over random, and what was destroyed."""
    varied, levels = numbers.evidence.axes[axis], numbers.levels(axis)
    joined = varied.kind == "line"
    x = np.array(levels if joined else range(len(levels)), dtype=float)
    points = [(*pair, axis, level) for level in levels]
    curves = {name: _values(numbers.measured, [(*point, name) for point in points]) for name in numbers.conditions}
    destroyed = _values(numbers.destroyed, points)
    shown = bool(np.isfinite(destroyed).any())
    figure, panels = _panels([2.0, 1.25, 0.9][: 2 + shown])

    others = []
    for name, (mean, _, _) in curves.items():
        if name == "clean":
            panels[0].plot(x, mean, ":" if joined else "_", color=DAY["ink"], linewidth=1.2)
        elif name not in BANDS:
            panels[0].plot(x, mean, "-" if joined else "_", color=DAY["muted"], linewidth=0.6, alpha=0.8)
            others.append(_last(mean))
    for place, (name, colour) in enumerate(BANDS.items()):
        if name in curves:
            _draw_band(panels[0], x if joined else x + 0.12 * (place - 1), curves[name], colour, joined)
    _scale(panels[0], numbers.label, _unit(numbers.measured))

    panels[1].axhline(0, color=DAY["ink"], linewidth=0.8)
    _draw_band(panels[1], x, _values(numbers.excess, points), DAY["patch"], joined, numbers.certain(points))
    _scale(panels[1], EXCESS, _extent(numbers.excess))
    if shown:
        _draw_band(panels[2], x, destroyed, DAY["ink"], joined)
        _scale(panels[2], "Destruction rate", (0.0, 1.0))

    if joined:
        panels[-1].margins(x=0.03)
    else:
        panels[-1].set_xlim(-0.5, len(x) - 0.5)
        panels[-1].set_xticks(x, [textwrap.fill(level_name(level, varied.kind), 12) for level in levels])
    panels[-1].set_xlabel(textwrap.fill(varied.label, 50))
    ends = [(ENDS[name], BANDS.get(name, DAY["ink"]), _last(curves[name][0])) for name in ENDS if name in curves]
    if others:
        ends.append(("other controls", DAY["muted"], float(np.mean(others))))
    label_ends(panels[0], ends)
    return figure


def _panels(heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """Axes above one another with a common level, their heights in inches of a figure as wide as a phone."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    width = rcParams["figure.figsize"][0]
    figure = Figure(figsize=(width, 0.35 + sum(heights) * width / 4.8), layout="constrained")
    panels = figure.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for axes in panels:
        dress(axes)
    return figure, list(panels)


def _values(found: dict[Any, Row], keys: Sequence[tuple[Any, ...]]) -> np.ndarray:
    """``[3, n]``: mean, low and high at ``keys``; NaN where nothing was measured."""
    unknown = {"mean": np.nan, "low": np.nan, "high": np.nan}
    rows = [found.get(key, unknown) for key in keys]
    return np.array([[row[part] for row in rows] for part in unknown])


def _last(values: np.ndarray) -> float:
    """The last one that is known."""
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else math.nan


def _draw_band(
    axes: Axes, x: np.ndarray, values: np.ndarray, colour: str, joined: bool, certain: Sequence[bool] | None = None
) -> None:
    """A curve and its interval, or dots with theirs where levels are no numbers; hollow dots where it is chance's."""
    mean, low, high = values
    if joined:
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    else:
        axes.vlines(x, low, high, color=colour, linewidth=1.4)
    axes.plot(x, mean, linestyle="-" if joined else "none", color=colour, linewidth=1.5)
    filled = np.ones(len(x), bool) if certain is None else np.array(certain)
    for chosen, face in ((filled, colour), (~filled, DAY["paper"])):
        axes.plot(x[chosen], mean[chosen], "o", color=colour, markerfacecolor=face, markersize=3.5)


def _extent(rows: dict[Any, Row]) -> tuple[float, float]:
    """Of all intervals and of zero."""
    ends = [0.0, *(row[end] for row in rows.values() for end in ("low", "high") if math.isfinite(row[end]))]
    return min(ends), max(ends)


def _unit(rows: dict[Any, Row]) -> tuple[float, float]:
    """All charts of a metric have one scale; that of a fraction is from 0 to 1."""
    ends = [row[end] for row in rows.values() for end in ("low", "high") if math.isfinite(row[end])]
    return (0.0, 1.0) if not ends or (min(ends) >= 0 and max(ends) <= 1) else (min(ends), max(ends))


def _scale(axes: Axes, name: str, limits: tuple[float, float]) -> None:
    low, high = limits
    margin = 0.05 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y", color=DAY["rule"], linewidth=0.6)
    axes.set_title(textwrap.fill(name, 50), loc="left", color=DAY["muted"], size=8)


def _draw_maps(numbers: Numbers, pair: Pair, axis: str) -> Figure:
    """Over the frame, seen as the camera does, or over the poses of a half-sphere, seen from the patch: the patch's
    success and its excess over random.
    """
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    levels, sphere = numbers.levels(axis), numbers.evidence.axes[axis].kind == "half_sphere"
    points = [(*pair, axis, level) for level in levels]
    width, aspect = rcParams["figure.figsize"][0], 1.0 if sphere else _aspect(numbers.evidence.examples)
    figure = Figure(figsize=(width, 0.45 + 0.48 * width * aspect), layout="constrained")
    left, right = figure.subplots(1, 2)
    success = _values(numbers.measured, [(*point, "patch") for point in points])[0]
    low, high = _unit(numbers.measured)
    strength = (success - low) / max(high - low, 1e-9)
    if numbers.evidence.arrows[numbers.evidence.primary_metric[0]] == "lower":
        strength = 1 - strength
    excess = _values(numbers.excess, points)[0]
    most = max(map(abs, _extent(numbers.excess))) or 1.0
    everywhere = [True] * len(points)
    for axes, name, means, colours, bold in (
        (left, numbers.label, success, strength, everywhere),
        (right, EXCESS, excess, excess / most, numbers.certain(points)),
    ):
        dress(axes)
        axes.set_title(textwrap.fill(name, 26), loc="left", color=DAY["muted"], size=8)
        axes.set_box_aspect(aspect)
        (_draw_sphere if sphere else _draw_map)(axes, levels, means, colours, bold, 0.45 * width)
    return figure


def _aspect(examples: Sequence[Example]) -> float:
    """Height by width of the frames that the examples show; of a common camera where there are none."""
    for example in examples:
        height, width = next(iter(example.panels.values())).frame.shape[-2:]
        return float(min(max(height / width, 0.4), 1.0))
    return 9 / 16


def _draw_map(
    axes: Axes, levels: Sequence[Level], means: np.ndarray, strength: np.ndarray, bold: Sequence[bool], width: float
) -> None:
    """Numbers on the fields of a grid."""
    from matplotlib.patches import Rectangle

    cells = [(int(level[0]), level[1]) for level in levels if isinstance(level, tuple)]
    rows, columns = (1 + max(cell[part] for cell in cells) for part in range(2))
    fields = [Rectangle((column, row), 1, 1) for row, column in cells]
    middles = [(column + 0.5, row + 0.5) for row, column in cells]
    _fill_fields(axes, fields, middles, means, strength, bold, width / columns)
    axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(True)


def _draw_sphere(
    axes: Axes, levels: Sequence[Level], means: np.ndarray, strength: np.ndarray, bold: Sequence[bool], width: float
) -> None:
    """Numbers on rings: the camera's polar angle grows outwards, and each field lies on the camera's side."""
    from matplotlib.patches import Wedge

    poses = [level for level in levels if isinstance(level, tuple)]
    polar = sorted({pose[0] for pose in poses})
    rings = {angle: (place, place + 1) for place, angle in enumerate(polar, start=0 if polar[0] == 0 else 1)}
    fields, middles = [], []
    for angle, azimuth in poses:
        inner, outer = rings[angle]
        half = 360 / (2 * sum(pose[0] == angle for pose in poses))
        fields.append(Wedge((0, 0), outer, azimuth - half, azimuth + half, width=outer - inner))
        far, way = (inner + outer) / 2 if angle else 0.0, math.radians(azimuth)
        middles.append((far * math.cos(way), far * math.sin(way)))
    end = max(outer for _, outer in rings.values())
    _fill_fields(axes, fields, middles, means, strength, bold, width / (2.4 * end))
    for angle, (inner, outer) in rings.items():
        axes.text(0, -(inner + outer) / 2 - 0.32, f"{angle:g}°", ha="center", size=6, color=DAY["muted"])
    axes.set(xlim=(-end, end), ylim=(-end, end), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _fill_fields(
    axes: Axes,
    fields: Sequence[Patch],
    middles: Sequence[tuple[float, float]],
    means: np.ndarray,
    strength: np.ndarray,
    bold: Sequence[bool],
    width: float,
) -> None:
    """Numbers on fields that are the more orange the stronger the attack, blue where random is stronger.

    Fields are so faint that the page's ink is legible on them by day and by night.
    """
    texts = [number(float(mean)) for mean in means]
    size = min(8.0, 72 * width / (0.75 * max(map(len, texts))))
    for field, middle, text, value, strong in zip(fields, middles, texts, strength, bold, strict=True):
        share = float(np.nan_to_num(value))
        colour = DAY["patch"] if share > 0 else DAY["random"]
        field.set(facecolor=colour, alpha=min(0.6 * abs(share), 0.6), linewidth=0)
        axes.add_patch(field)
        axes.text(
            *(*middle, text),
            ha="center",
            va="center",
            size=size,
            color=DAY["ink"] if strong else DAY["muted"],
            weight="bold" if strong else "normal",
        )

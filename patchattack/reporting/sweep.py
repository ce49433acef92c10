"""The report of a sweep: under which conditions a patch does more than chance, for the screen and for papers."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from patchattack.controls import CONDITIONS
from patchattack.files import write
from patchattack.reporting import latex
from patchattack.reporting.page import (
    ARROWS,
    DAY,
    axes_of,
    by_metric,
    draw_intervals,
    dress,
    figure_style,
    in_order,
    label_ends,
    number,
    paper_style,
    regions_of,
    svg,
    write_page,
)
from patchattack.reporting.report import Example
from patchattack.statistics import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIGNIFICANT = 0.05  # after the correction for many comparisons
BANDS = {"grey": DAY["muted"], "random": DAY["random"], "patch": DAY["patch"]}  # drawn with intervals, the last on top
ENDS = {"clean": "no patch", "grey": "grey card", "random": "random patch", "patch": "patch"}  # names of curves
EXCESS = "Excess over random"
FORMATS = {  # to what is left out of the file, so that the same figure has the same bytes
    "png": ("Software",),
    "svg": ("Creator", "Date", "Format", "Type"),
    "pdf": ("Creator", "Producer", "CreationDate"),
}
Row = dict[str, Any]
Level = float | str | tuple[int, int]
Pair = tuple[str, str]  # victim and patch


@dataclass(frozen=True)
class PlottedAxis:
    """One condition that was varied.

    Attributes:
        label: in words, with its unit.
        levels: that were measured, in their order; of a grid (row, column), from the frame's top left.
        kind: ``line``, ``grid`` (places in the frame) or ``category``.
    """

    label: str
    levels: list[Level]
    kind: str


@dataclass(frozen=True)
class Evidence:
    """All that the report of a sweep shows; it knows no task.

    Attributes:
        title: names the sweep.
        sentence: the primary metric, with the excess over random and its interval.
        outcome: of the comparison with the controls.
        facts: the numbers behind the primary metric, in words.
        setup: names and values, in their order, with the seeds.
        command: repeats the sweep.
        versions: package to version.
        axes: name to what was varied. The point that all axes share is of the axis "baseline", level "".
        rows: ``victim``, ``patch``, ``axis``, ``level``, ``condition``, ``metric``, ``region``, ``mean``, ``low``,
            ``high`` (95 % interval) and ``n`` scenes. Controls are rows of every patch: they have its shape and places.
        excess: ``victim``, ``patch``, ``axis``, ``level``, ``mean``, ``low``, ``high``, ``p``, ``p_adjusted``, ``n``:
            the patch beyond the random patch in the primary metric, paired; above zero it is the stronger attack.
        destruction: ``victim``, ``patch``, ``axis``, ``level``, ``rate``, ``low``, ``high``, ``n``: share of the
            baseline's successes that the level undoes (Kurakin et al. 2016).
        primary_metric: metric and region that decide.
        labels: metric to words, with the unit.
        arrows: metric to "lower" or "higher": the way of a stronger attack.
        examples: scenes to look at, all with the same number of frames.
        legend: ``[3, h, w]`` in [0, 1], the key to the outputs' colours.
        legend_text: how to read the outputs.
        changes_legend: the same to the changes.
        patches: name to RGBA ``[4, h, w]`` in [0, 1].
    """

    title: str
    sentence: str
    outcome: Outcome
    facts: str
    setup: list[tuple[str, str]]
    command: str
    versions: dict[str, str]
    axes: dict[str, PlottedAxis]
    rows: list[Row]
    excess: list[Row]
    destruction: list[Row]
    primary_metric: tuple[str, str]
    labels: dict[str, str]
    arrows: dict[str, str]
    examples: list[Example]
    legend: Tensor | None
    legend_text: str
    changes_legend: tuple[Tensor | None, str]
    patches: dict[str, Tensor]


def write_evidence(folder: Path, evidence: Evidence) -> None:
    """Write ``report.html``, and for papers ``figures``: each figure as PNG, SVG and PDF, and two tables for LaTeX.

    The page asks nothing of any server and runs no script.

    Raises:
        InputError: a file cannot be written.
    """
    numbers = _Numbers(evidence)
    figures = _figures(numbers)
    with paper_style():
        for name, draw in figures.items():
            figure = draw()
            for suffix, left_out in FORMATS.items():
                data = io.BytesIO()
                figure.savefig(data, format=suffix, metadata=dict.fromkeys(left_out))
                write(folder / "figures" / f"{name}.{suffix}", data.getvalue())
    write(folder / "figures" / "primary_metric.tex", _primary_metric_table(numbers))
    write(folder / "figures" / "conditions.tex", _conditions_table(numbers))
    with figure_style():
        write_page(
            folder / "report.html",
            "sweep.html.j2",
            title=evidence.title,
            evidence=evidence,
            numbers=numbers,
            figures={name: svg(draw()) for name, draw in figures.items()},
            conditions=CONDITIONS,
            arrows={name: ARROWS[way] for name, way in evidence.arrows.items()},
            regions=regions_of(evidence.rows),
            example_order=in_order({name for example in evidence.examples for name in example.panels}),
        )


class _Numbers:
    """The evidence by where it belongs.

    Attributes:
        evidence: all of it.
        pairs: victim and patch, in the rows' order, to the words that tell the pair from the others.
        conditions: that the primary metric was measured under, in their order.
        measured: ``(victim, patch, axis, level, condition)`` to the primary metric's row.
        excess, destroyed: ``(victim, patch, axis, level)`` to their rows.
        label: the primary metric in words, with the way of a stronger attack.
    """

    def __init__(self, evidence: Evidence) -> None:
        metric = evidence.primary_metric[0]
        rows = [row for row in evidence.rows if (row["metric"], row["region"]) == evidence.primary_metric]
        pairs = list(dict.fromkeys((row["victim"], row["patch"]) for row in rows))
        self.evidence = evidence
        self.pairs = {pair: _pair_name(pair, pairs) for pair in pairs}
        self.conditions = in_order({row["condition"] for row in rows})
        self.measured = {(*_point(row), row["condition"]): row for row in rows}
        self.excess = {_point(row): row for row in evidence.excess}
        self.destroyed = {_point(row): row | {"mean": row["rate"]} for row in evidence.destruction}
        self.label = f"{_sentence(evidence.labels[metric])} {ARROWS[evidence.arrows[metric]]}"

    def levels(self, axis: str) -> list[Level]:
        """Those of an axis, in the order in which they are shown; the baseline has one, without a name."""
        if axis == "baseline":
            return [""]
        varied = self.evidence.axes[axis]
        return sorted(varied.levels, key=float) if varied.kind == "line" else varied.levels  # type: ignore[arg-type]

    def level_names(self, axis: str) -> list[str]:
        """The levels in words."""
        return [_level_name(level) for level in self.levels(axis)]

    def table(self, pair: Pair, axis: str) -> list[tuple[str, list[tuple[str, str]]]]:
        """What stands behind a figure: the lines' names and, for each level, a number and its interval."""
        points = [(*pair, axis, level) for level in self.levels(axis)]
        lines = [
            (CONDITIONS.get(name, name), [_cell(self.measured.get((*point, name))) for point in points])
            for name in reversed(self.conditions)
        ]
        found = [self.excess.get(point) for point in points]
        lines.append((EXCESS, [_cell(row) for row in found]))
        lines.append(("p, corrected", [(_probability(row["p_adjusted"]) if row else "–", "") for row in found]))
        if any(point in self.destroyed for point in points):
            lines.append(("Destruction rate", [_cell(self.destroyed.get(point)) for point in points]))
        lines.append(("Scenes", [(str(row["n"]) if row else "–", "") for row in found]))
        return lines

    def metrics(self, pair: Pair) -> dict[tuple[str, str], dict[str, Row]]:
        """Every metric at the baseline, by metric and region, and condition."""
        return by_metric(row for row in self.evidence.rows if _point(row) == (*pair, "baseline", ""))

    def certain(self, points: Sequence[tuple[Any, ...]]) -> list[bool]:
        """Where the patch differs from the random one beyond chance."""
        return [point in self.excess and self.excess[point]["p_adjusted"] < SIGNIFICANT for point in points]

    def figure(self, axis: str, pair: Pair) -> str:
        """Name of a figure, and of its files without their suffixes."""
        of_pair = f" {[*self.pairs].index(pair) + 1} {self.pairs[pair]}" if len(self.pairs) > 1 else ""
        return re.sub(r"\W+", "-", f"{axis}{of_pair}").strip("-").lower()


def _point(row: Row) -> tuple[str, str, str, Level]:
    return row["victim"], row["patch"], row["axis"], row["level"]


def _pair_name(pair: Pair, pairs: Sequence[Pair]) -> str:
    """The pair in as many words as it takes."""
    victim, patch = pair
    if len({victim for victim, _ in pairs}) == 1:
        return patch if len(pairs) > 1 else ""
    return victim if len({patch for _, patch in pairs}) == 1 else f"{patch} on {victim}"


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _level_name(level: Level) -> str:
    """A level in words; places count from the top left."""
    if isinstance(level, tuple):
        return f"row {level[0] + 1}, column {level[1] + 1}"
    return level if isinstance(level, str) else f"{level:g}".replace("-", "−")


def _probability(value: float) -> str:
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _interval(row: Row) -> str:
    return f"[{number(row['low'])}, {number(row['high'])}]"


def _cell(row: Row | None) -> tuple[str, str]:
    return ("–", "") if row is None else (number(row["mean"]), _interval(row))


# Figures


def _figures(numbers: _Numbers) -> dict[str, Callable[[], Figure]]:
    """Their names, and what draws them in the style of the moment."""
    figures: dict[str, Callable[[], Figure]] = {}
    if len(numbers.pairs) > 1:
        figures["excess"] = partial(_draw_excess, numbers)
    for pair in numbers.pairs:
        figures[numbers.figure("baseline", pair)] = partial(_draw_baseline, numbers, pair)
        for axis, varied in numbers.evidence.axes.items():
            draw = _draw_maps if varied.kind == "grid" else _draw_curves
            figures[numbers.figure(axis, pair)] = partial(draw, numbers, pair, axis)
    return figures


def _draw_excess(numbers: _Numbers) -> Figure:
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


def _draw_baseline(numbers: _Numbers, pair: Pair) -> Figure:
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


def _draw_curves(numbers: _Numbers, pair: Pair, axis: str) -> Figure:
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
        panels[-1].set_xticks(x, [textwrap.fill(_level_name(level), 12) for level in levels])
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
    """All charts of a metric have one scale; that of a share is from 0 to 1."""
    ends = [row[end] for row in rows.values() for end in ("low", "high") if math.isfinite(row[end])]
    return (0.0, 1.0) if not ends or (min(ends) >= 0 and max(ends) <= 1) else (min(ends), max(ends))


def _scale(axes: Axes, name: str, limits: tuple[float, float]) -> None:
    low, high = limits
    margin = 0.05 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y", color=DAY["rule"], linewidth=0.6)
    axes.set_title(textwrap.fill(name, 50), loc="left", color=DAY["muted"], size=8)


def _draw_maps(numbers: _Numbers, pair: Pair, axis: str) -> Figure:
    """Over the frame, seen as the camera does: the patch's success and its excess over random."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    levels = numbers.levels(axis)
    points = [(*pair, axis, level) for level in levels]
    width, aspect = rcParams["figure.figsize"][0], _aspect(numbers.evidence.examples)
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
        _draw_map(axes, levels, means, colours, bold, 0.45 * width)
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
    """Numbers on fields that are the more orange the stronger the attack, blue where random is stronger.

    Fields are so faint that the page's ink is legible on them by day and by night.
    """
    from matplotlib.patches import Rectangle

    cells: list[tuple[int, int]] = [level for level in levels if isinstance(level, tuple)]
    rows, columns = (1 + max(cell[part] for cell in cells) for part in range(2))
    texts = [number(float(mean)) for mean in means]
    size = min(8.0, 72 * width / columns / (0.75 * max(map(len, texts))))
    for (row, column), text, value, strong in zip(cells, texts, strength, bold, strict=True):
        share = float(np.nan_to_num(value))
        colour = DAY["patch"] if share > 0 else DAY["random"]
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, alpha=min(0.6 * abs(share), 0.6), linewidth=0))
        axes.text(
            *(column + 0.5, row + 0.5, text),
            ha="center",
            va="center",
            size=size,
            color=DAY["ink"] if strong else DAY["muted"],
            weight="bold" if strong else "normal",
        )
    axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(True)


# Tables for LaTeX


def _primary_metric_table(numbers: _Numbers) -> str:
    """The baseline: a line for each pair, as many means as a paper has room for, the excess and its p."""
    conditions = [name for name in ENDS if name in numbers.conditions]
    lines = []
    for pair in numbers.pairs:
        means = (_cell(numbers.measured.get((*pair, "baseline", "", name)))[0] for name in conditions)
        lines.append([*pair, *means, *_excess_cells(numbers, (*pair, "baseline", ""))])
    return _tex(numbers, 2, ["Victim", "Patch", *(ENDS[name] for name in conditions), "excess", "p", "n"], [lines])


def _conditions_table(numbers: _Numbers) -> str:
    """Every level of every axis: random, patch, and the excess and its p; a pair and an axis are named once."""
    several = len(numbers.pairs) > 1
    blocks = []
    for pair, name in numbers.pairs.items():
        for axis, varied in numbers.evidence.axes.items():
            names = [*([name] if several else []), _sentence(varied.label)]
            block = []
            for level in numbers.levels(axis):
                point = (*pair, axis, level)
                means = (_cell(numbers.measured.get((*point, one)))[0] for one in ("random", "patch"))
                block.append([*names, _level_name(level), *means, *_excess_cells(numbers, point)])
                names = [""] * len(names)
            blocks.append(block)
    words = [*(["Patch"] if several else []), "Condition", "Level"]
    return _tex(numbers, len(words), [*words, ENDS["random"], ENDS["patch"], "excess", "p", "n"], blocks)


def _excess_cells(numbers: _Numbers, point: tuple[Any, ...]) -> list[str]:
    row = numbers.excess.get(point)
    return [" ".join(_cell(row)), _probability(row["p_adjusted"]), str(row["n"])] if row else ["–"] * 3


def _tex(numbers: _Numbers, words: int, heads: Sequence[str], blocks: Sequence[Sequence[Sequence[str]]]) -> str:
    evidence = numbers.evidence
    about = f"{_sentence(evidence.labels[evidence.primary_metric[0]])}, means and 95 % intervals."
    return latex.table(heads, blocks, words, [about, evidence.command])

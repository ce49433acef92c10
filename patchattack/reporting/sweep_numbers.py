"""What the report of a sweep shows, and where each number of it belongs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from patchattack.controls import CONDITIONS
from patchattack.reporting.page import ARROWS, by_metric, in_order, number
from patchattack.reporting.report import Example
from patchattack.statistics import Outcome

SIGNIFICANT = 0.05  # after the correction for many comparisons
ENDS = {"clean": "no patch", "grey": "grey card", "random": "random patch", "patch": "patch"}  # names of curves
EXCESS = "Excess over random"
REACH = "reach"
HALF = 0.5  # of the scenes: where a patch breaks
Row = dict[str, Any]
Level = float | str | tuple[int, int] | tuple[float, int]
Pair = tuple[str, str]  # victim and patch


@dataclass(frozen=True)
class PlottedAxis:
    """One condition that was varied.

    Attributes:
        label: in words, with its unit.
        levels: that were measured, in their order; of a grid (row, column), from the frame's top left; of a half-sphere
            (polar angle, azimuth) in degrees.
        kind: ``line``, ``grid`` (places in the frame), ``half_sphere`` or ``category``.
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
        destruction: ``victim``, ``patch``, ``axis``, ``level``, ``rate``, ``low``, ``high``, ``n``: fraction of the
            baseline's successes that the level undoes (Kurakin et al. 2016).
        breaks: ``victim``, ``patch``, ``axis``, ``level``, ``low``, ``high``, ``n``, ``rises``, ``most``: where half
            of the scenes are won (None lies beyond the levels), and the highest fraction that is.
        worst: ``victim``, ``patch``, ``axis``, ``level``, ``condition``, ``mean``, ``low``, ``high``, ``n``: the
            primary metric at the place where the patch is strongest, on scenes that did not choose it.
        reach: metric that was measured around the patch, and its regions by their distances from and to, in sides of
            the patch; None where no metric has a value in every pixel.
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
    breaks: list[Row]
    worst: list[Row]
    reach: tuple[str, dict[str, tuple[float, float]]] | None
    primary_metric: tuple[str, str]
    labels: dict[str, str]
    arrows: dict[str, str]
    examples: list[Example]
    legend: Tensor | None
    legend_text: str
    changes_legend: tuple[Tensor | None, str]
    patches: dict[str, Tensor]


class Numbers:
    """The evidence by where it belongs.

    Attributes:
        evidence: all of it.
        pairs: victim and patch, in the rows' order, to the words that tell the pair from the others.
        conditions: that the primary metric was measured under, in their order.
        measured: ``(victim, patch, axis, level, condition)`` to the primary metric's row.
        around: the same of the axis :data:`REACH`, whose levels are the rings around the patch, of the metric that has
            them.
        excess, destroyed: ``(victim, patch, axis, level)`` to their rows.
        label: the primary metric in words, with the way of a stronger attack.
    """

    def __init__(self, evidence: Evidence) -> None:
        primary = evidence.primary_metric[0]
        rows = [row for row in evidence.rows if (row["metric"], row["region"]) == evidence.primary_metric]
        pairs = list(dict.fromkeys((row["victim"], row["patch"]) for row in rows))
        self.evidence = evidence
        self.pairs = {pair: _pair_name(pair, pairs) for pair in pairs}
        self.conditions = in_order({row["condition"] for row in rows})
        self.measured = {(*_point(row), row["condition"]): row for row in rows}
        metric, rings = evidence.reach or ("", {})
        self.around = {
            (row["victim"], row["patch"], REACH, row["region"], row["condition"]): row
            for row in evidence.rows
            if row["metric"] == metric and row["axis"] == "baseline" and row["region"] in rings
        }
        self.excess = {_point(row): row for row in evidence.excess}
        self.destroyed = {_point(row): row | {"mean": row["rate"]} for row in evidence.destruction}
        self.label = f"{sentence(evidence.labels[primary])} {ARROWS[evidence.arrows[primary]]}"

    def levels(self, axis: str) -> list[Level]:
        """Those of an axis, in the order in which they are shown; the baseline has one, without a name."""
        if axis == "baseline":
            return [""]
        if axis == REACH:
            return list(self.evidence.reach[1]) if self.evidence.reach else []
        varied = self.evidence.axes[axis]
        return sorted(varied.levels, key=float) if varied.kind == "line" else varied.levels  # type: ignore[arg-type]

    def level_names(self, axis: str) -> list[str]:
        """The levels in words."""
        kind = self.evidence.axes[axis].kind if axis in self.evidence.axes else "line"
        return [level_name(level, kind) for level in self.levels(axis)]

    def heading(self, axis: str) -> str:
        """What the levels of an axis are."""
        return "distance from the patch's edge" if axis == REACH else self.evidence.axes[axis].label

    def remarks(self, pair: Pair, axis: str) -> list[str]:
        """What an axis says besides its means."""
        here = {"victim": pair[0], "patch": pair[1], "axis": axis}
        said = [_break(row) for row in self.evidence.breaks if here.items() <= row.items()]
        worst = {row["condition"]: row for row in self.evidence.worst if here.items() <= row.items()}
        if worst:
            place = level_name(worst["patch"]["level"], self.evidence.axes[axis].kind)
            patch, random = (" ".join(cell(worst[name])) for name in ("patch", "random"))
            said.append(
                f"The patch is strongest at {place}: {patch}, a random patch {random} (chosen on half of the scenes, "
                f"measured on the other {worst['patch']['n']})."
            )
        return said

    def table(self, pair: Pair, axis: str) -> list[tuple[str, list[tuple[str, str]]]]:
        """What stands behind a figure: the lines' names and, for each level, a number and its interval."""
        points = [(*pair, axis, level) for level in self.levels(axis)]
        measured = self.around if axis == REACH else self.measured
        lines = [
            (CONDITIONS.get(name, name), [cell(measured.get((*point, name))) for point in points])
            for name in reversed(self.conditions)
        ]
        if axis == REACH:
            return lines
        found = [self.excess.get(point) for point in points]
        lines.append((EXCESS, [cell(row) for row in found]))
        lines.append(("p, corrected", [(probability(row["p_adjusted"]) if row else "–", "") for row in found]))
        if any(point in self.destroyed for point in points):
            lines.append(("Destruction rate", [cell(self.destroyed.get(point)) for point in points]))
        lines.append(("Scenes", [(str(row["n"]) if row else "–", "") for row in found]))
        return lines

    def metrics(self, pair: Pair) -> dict[tuple[str, str], dict[str, Row]]:
        """Every metric at the baseline, by metric and region, and condition."""
        around = self.evidence.reach[1] if self.evidence.reach else {}
        rows = (row for row in self.evidence.rows if row["region"] not in around)
        return by_metric(row for row in rows if _point(row) == (*pair, "baseline", ""))

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


def sentence(words: str) -> str:
    """``words`` with a capital."""
    return words[:1].upper() + words[1:]


def _break(row: Row) -> str:
    """Where half of the scenes are won, in words."""
    if row["level"] is None:
        at_all = row["most"] is not None and row["most"] >= HALF
        return f"Half of the scenes or more are won at {'every one' if at_all else 'none'} of these levels."
    low, high = ("beyond" if row[end] is None else number(row[end]) for end in ("low", "high"))
    return (
        f"Half of the scenes are won at {number(row['level'])} [{low}, {high}], more of them "
        f"{'above' if row['rises'] else 'below'} it."
    )


def level_name(level: Level, kind: str) -> str:
    """A level in words; places count from the top left."""
    if isinstance(level, tuple) and kind == "half_sphere":
        return f"{level[0]:g}° towards {level[1]}°"
    if isinstance(level, tuple):
        return f"row {int(level[0]) + 1}, column {level[1] + 1}"
    return level if isinstance(level, str) else f"{level:g}".replace("-", "−")


def probability(value: float) -> str:
    """A p-value in three digits."""
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _interval(row: Row) -> str:
    return f"[{number(row['low'])}, {number(row['high'])}]"


def cell(row: Row | None) -> tuple[str, str]:
    """The mean and its interval."""
    return ("–", "") if row is None else (number(row["mean"]), _interval(row))

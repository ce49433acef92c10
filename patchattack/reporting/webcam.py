"""The report of a printed patch before a camera."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from patchattack.reporting.page import DAY, axes_of, figure_style, svg, write_page
from patchattack.statistics import Outcome

CONDITIONS = {
    "patch": "printed patch",
    "grey": "grey card in its place",
    "control": "control sheet",
    "drawn": "patch drawn on the sheet (AR)",
    "predicted": "digital patch, predicted",
}
STYLES = {
    "patch": (DAY["patch"], "-"),
    "grey": (DAY["muted"], "-"),
    "control": (DAY["random"], "-"),
    "drawn": (DAY["calm"], "-"),
    "predicted": (DAY["ink"], ":"),
}


@dataclass(frozen=True)
class Photo:
    """A frame ``[3, H, W]`` in [0, 1] and what it shows."""

    image: Tensor
    caption: str


@dataclass(frozen=True)
class Curve:
    """Success along one axis.

    Attributes:
        label: of the axis, with its unit.
        lines: condition to its points: ``x``, ``mean``, ``low``, ``high``, ``n``.
    """

    label: str
    lines: dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Section:
    """One victim.

    Attributes:
        victim: its name.
        rows: ``condition``, ``mean``, ``low``, ``high`` of the success, ``n`` stretches of time, ``frames``, and
            ``value``, the mean of the primary metric.
        curves: success along the axes.
        pass_bys: ``condition``, ``n``, and of each measure ``mean``, ``low``, ``high`` and ``n``.
        gap: predicted minus measured success on the same frames, ``mean``, ``low``, ``high``; None without prediction.
        destroyed: fraction of the predicted successes that failed on camera, likewise, with ``n`` frames.
    """

    victim: str
    rows: list[dict[str, Any]]
    curves: list[Curve]
    pass_bys: list[dict[str, Any]]
    gap: dict[str, float] | None
    destroyed: dict[str, float] | None


@dataclass(frozen=True)
class Field:
    """All that the report shows; it knows no task.

    Attributes:
        title: names the measurement.
        verdict: one sentence.
        facts: the numbers behind it, in words.
        faults: why it is not all that was to be measured.
        outcome: whether the printed patch did more than a grey card.
        rule: when a frame counts as won, a sentence.
        label: the primary metric in words.
        independent: seconds of a stretch of time.
        pass_bys: what a pass-by is, a sentence.
        columns: names of its measures, each with its key and its meaning.
        counts: what became of the frames, in words and numbers.
        sections: one for each victim.
        won: frames that the patch won.
        lost: frames that it did not win.
        setup: names and values, in their order.
        command: repeats it.
        versions: package to version.
    """

    title: str
    verdict: str
    facts: str
    faults: list[str]
    outcome: Outcome
    rule: str
    label: str
    independent: float
    pass_bys: str
    columns: dict[str, tuple[str, str]]
    counts: list[tuple[str, int]]
    sections: list[Section]
    won: list[Photo]
    lost: list[Photo]
    setup: list[tuple[str, str]]
    command: str
    versions: dict[str, str]


def write_field(path: Path, field: Field) -> None:
    """Write ``field`` as one HTML file that asks nothing of any server and runs no script.

    Raises:
        InputError: the file cannot be written.
    """
    with figure_style():
        figures = [[_figure(curve) for curve in section.curves] for section in field.sections]
        write_page(path, "webcam.html.j2", title=field.title, field=field, conditions=CONDITIONS, figures=figures)


def _figure(curve: Curve) -> str:
    """Success with its interval, bin by bin, one line for each condition."""
    figure, axes = axes_of(height=2.4)
    for name, points in curve.lines.items():
        colour, style = STYLES[name]
        x, mean, low, high = ([point[key] for point in points] for key in ("x", "mean", "low", "high"))
        axes.vlines(x, low, high, color=colour, linewidth=1, alpha=0.5)
        axes.plot(x, mean, f"o{style}", color=colour, linewidth=1.6, markersize=3.5, label=CONDITIONS[name])
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.grid(axis="y", color=DAY["rule"], linewidth=0.6)
    axes.set_xlabel(curve.label)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0,
        ncols=2,
        fontsize=8,
        frameon=False,
        labelcolor=DAY["ink"],
    )
    return svg(figure)

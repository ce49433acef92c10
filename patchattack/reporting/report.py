"""The run's report: one HTML file that needs nothing else, for the screen, the phone and the printer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from patchattack.controls import CONDITIONS
from patchattack.reporting.page import DAY, axes_of, figure_style, number, svg, write_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REGIONS = {"all": "whole frame", "outside": "outside the patch", "patch": "on the patch"}
ARROWS = {"lower": "↓", "higher": "↑"}


@dataclass(frozen=True)
class Panel:
    """What went into the network and what came out.

    Attributes:
        frames: ``[T, 3, H, W]`` in [0, 1].
        output: ``[3, H, W]`` in [0, 1], the prediction as a picture.
    """

    frames: Tensor
    output: Tensor


@dataclass(frozen=True)
class Example:
    """One held-out scene; ``panels`` by condition."""

    panels: dict[str, Panel]


@dataclass(frozen=True)
class Report:
    """All that the report shows; it knows no task.

    Attributes:
        title: names the run.
        verdict: one sentence.
        facts: the numbers behind it, in words.
        worked: the patch did more than the control.
        rows: the results: ``condition``, ``metric``, ``region``, ``mean``, ``low``, ``high`` (95 % interval), ``n``.
        labels: metric to words, with the unit.
        arrows: metric to "lower" or "higher": the way of a stronger attack.
        headline: metric and region of the verdict.
        history: the lines of metrics.csv: ``step``, losses, and "validation/patch" and "validation/random", which are
            in the headline's metric; a scalar may be absent from a line.
        examples: scenes to look at, all with the same number of frames.
        legend: ``[3, h, w]`` in [0, 1], the key to the outputs' colours.
        legend_text: how to read the outputs.
        patch: ``[4, h, w]`` RGBA in [0, 1].
        setup: names and values, in their order.
        command: repeats the run.
        versions: package to version.
    """

    title: str
    verdict: str
    facts: str
    worked: bool
    rows: list[dict[str, Any]]
    labels: dict[str, str]
    arrows: dict[str, str]
    headline: tuple[str, str]
    history: list[dict[str, float]]
    examples: list[Example]
    legend: Tensor | None
    legend_text: str
    patch: Tensor
    setup: list[tuple[str, str]]
    command: str
    versions: dict[str, str]


def write_report(path: Path, report: Report) -> None:
    """Write ``report`` as one HTML file that asks nothing of any server and runs no script.

    Raises:
        InputError: the file cannot be written.
    """
    metric, region = report.headline
    panels = [panel for example in report.examples for panel in example.panels.values()]
    # Of a task whose outputs have no pixels there is one region, and it goes without saying.
    regions = REGIONS if {row["region"] for row in report.rows} != {"all"} else {"all": ""}
    shown = regions.get(region, region)
    with figure_style():
        write_page(
            path,
            "report.html.j2",
            title=report.title,
            report=report,
            metric=metric,
            region=region,
            conditions=CONDITIONS,
            regions=regions,
            where=f", {shown}" if shown else "",
            arrows=ARROWS,
            order=_in_order({row["condition"] for row in report.rows}),
            table=_table(report.rows),
            columns=len(panels[0].frames) + 1 if panels else 0,
            example_order=_in_order({condition for example in report.examples for condition in example.panels}),
            effect=_effect(report),
            losses=_losses(report.history),
            validation=_validation(report),
        )


def _in_order(conditions: set[str]) -> list[str]:
    """The known conditions as :data:`CONDITIONS` has them, then the others by name."""
    known = list(CONDITIONS)
    return sorted(conditions, key=lambda name: (known.index(name) if name in known else len(known), name))


def _table(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Rows by (metric, region) and condition."""
    table: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        table.setdefault((row["metric"], row["region"]), {})[row["condition"]] = row
    return table


def _effect(report: Report) -> str:
    """The headline metric under every condition, with its interval."""
    figure, axes = axes_of(height=2.1)
    found = _table(report.rows)[report.headline]
    order = _in_order(set(found))
    for place, condition in enumerate(order):
        row, colour = found[condition], DAY.get(condition, DAY["muted"])
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot(row["mean"], place, "o", color=colour, markersize=7)
        axes.annotate(
            number(row["mean"]),
            (row["mean"], place),
            (0, 7),
            textcoords="offset points",
            ha="center",
            color=colour,
            size=9,
        )
    axes.set_yticks(range(len(order)), [CONDITIONS.get(condition, condition) for condition in order], color=DAY["ink"])
    axes.set_ylim(len(order) - 0.5, -0.8)
    axes.margins(x=0.12)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=DAY["rule"], linewidth=0.6)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(report.labels[report.headline[0]])
    return svg(figure)


def _losses(history: list[dict[str, float]]) -> str | None:
    """Every loss over the steps, with its running mean."""
    names = list(dict.fromkeys(name for line in history for name in line))
    names = [name for name in names if name != "step" and not name.startswith("validation/")]
    if not names:
        return None
    figure, axes = axes_of(height=2.5)
    for place, name in enumerate(names):
        colour = [DAY["ink"], DAY["random"], DAY["calm"], DAY["muted"]][place % 4]
        steps, values = _series(history, name)
        window = max(1, len(values) // 40)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
        axes.plot(steps[window - 1 :], smooth, color=colour, linewidth=1.6, label=name)
    axes.set_xlabel("step")
    _legend(axes)
    return svg(figure)


def _validation(report: Report) -> str | None:
    """The headline metric on validation scenes, for the patch and for the control."""
    if not any("validation/patch" in line for line in report.history):
        return None
    figure, axes = axes_of(height=2.5)
    for condition in ("random", "patch"):
        steps, values = _series(report.history, f"validation/{condition}")
        axes.plot(steps, values, "o-", color=DAY[condition], linewidth=1.6, markersize=3, label=CONDITIONS[condition])
    axes.set_xlabel("step")
    _legend(axes)
    return svg(figure)


def _series(history: list[dict[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one scalar, where it was logged."""
    lines = [line for line in history if name in line]
    return np.array([line["step"] for line in lines]), np.array([line[name] for line in lines])


def _legend(axes: Axes) -> None:
    """Names above the axes, where they hide no curve."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0,
        ncols=3,
        fontsize=8,
        frameon=False,
        labelcolor=DAY["ink"],
    )

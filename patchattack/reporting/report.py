"""The run's report: one HTML file that needs nothing else, for the screen, the phone and the printer."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from patchattack.attacks.attack import Attack
from patchattack.controls import CONDITIONS
from patchattack.indicators import Indicator
from patchattack.reporting.page import (
    ARROWS,
    DAY,
    axes_of,
    by_metric,
    draw_intervals,
    figure_style,
    in_order,
    regions_of,
    svg,
    write_page,
)
from patchattack.reporting.threat_model import in_words
from patchattack.statistics import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Panel:
    """What went into the network, what came out and what that changed.

    Attributes:
        frame: ``[3, H, W]`` in [0, 1], the first one.
        output: ``[3, H, W]`` in [0, 1], the prediction as a picture.
        change: ``[3, H, W]`` in [0, 1], how it differs from that without a patch, as a picture; or None.
    """

    frame: Tensor
    output: Tensor
    change: Tensor | None = None


@dataclass(frozen=True)
class Example:
    """One held-out scene; ``panels`` by condition."""

    panels: dict[str, Panel]


def example(attack: Attack, names: Sequence[str], frames: list[Tensor], outputs: list[Any]) -> Example:
    """One scene under several conditions, drawn on one scale.

    Args:
        attack: that draws.
        names: of the conditions; the first is ``clean``.
        frames: ``[T, 3, H, W]`` in [0, 1] under each.
        outputs: of the victim under each, with a batch of one.
    """
    pictures = attack.pictures(outputs, frames)
    changes: list[Tensor | None] = [*attack.changes(outputs[1:], outputs[0], frames[1:])]
    panels = zip(names, frames, pictures, [None, *(changes or [None] * len(names[1:]))], strict=True)
    return Example({name: Panel(frame[0], picture, change) for name, frame, picture, change in panels})


@dataclass(frozen=True)
class Report:
    """All that the report shows; it knows no task.

    Attributes:
        title: names the run.
        verdict: one sentence.
        facts: the numbers behind it, in words.
        outcome: of the comparison with the controls.
        threat_model: as :func:`patchattack.reporting.threat_model.threat_model` gives it.
        rule: what the outcomes are and what a small effect is, in words.
        rows: the results: ``condition``, ``metric``, ``region``, ``mean``, ``low``, ``high`` (95 % interval), ``n``.
        labels: metric to words, with the unit.
        arrows: metric to "lower" or "higher": the way of a stronger attack.
        primary_metric: metric and region of the verdict.
        over: "step" or "queries": what the curves are drawn over.
        history: lines of ``over``, losses, and "validation/patch" and "validation/random", which are in the primary
            metric; a scalar may be absent from a line.
        examples: scenes to look at.
        legend: ``[3, h, w]`` in [0, 1], the key to the outputs' colours.
        legend_text: how to read the outputs.
        changes_legend: the same to the changes.
        indicators: of a failure of the attack itself.
        patch: ``[4, h, w]`` RGBA in [0, 1].
        setup: names and values, in their order.
        command: repeats the run.
        versions: package to version.
    """

    title: str
    verdict: str
    facts: str
    outcome: Outcome
    threat_model: dict[str, Any]
    rule: str
    rows: list[dict[str, Any]]
    labels: dict[str, str]
    arrows: dict[str, str]
    primary_metric: tuple[str, str]
    over: str
    history: list[dict[str, float]]
    examples: list[Example]
    legend: Tensor | None
    legend_text: str
    changes_legend: tuple[Tensor | None, str]
    indicators: list[Indicator]
    patch: Tensor
    setup: list[tuple[str, str]]
    command: str
    versions: dict[str, str]


def write_report(path: Path, report: Report) -> None:
    """Write ``report`` as one HTML file that asks nothing of any server and runs no script.

    Raises:
        InputError: the file cannot be written.
    """
    metric, region = report.primary_metric
    regions = regions_of(report.rows)
    shown = regions.get(region, region)
    with figure_style():
        write_page(
            path,
            "report.html.j2",
            title=report.title,
            report=report,
            metric=metric,
            region=region,
            box=in_words(report.threat_model),
            conditions=CONDITIONS,
            regions=regions,
            where=f", {shown}" if shown else "",
            arrows={name: ARROWS[way] for name, way in report.arrows.items()},
            order=in_order({row["condition"] for row in report.rows}),
            table=by_metric(report.rows),
            example_order=in_order({condition for example in report.examples for condition in example.panels}),
            effect=_effect(report),
            losses=_losses(report),
            validation=_validation(report),
        )


def _effect(report: Report) -> str:
    """The primary metric under every condition, with its interval."""
    found = by_metric(report.rows)[report.primary_metric]
    figure, axes = axes_of(height=0.7 + 0.3 * len(found))
    entries = []
    for name in in_order(found):
        colour = DAY.get(name.partition("_")[0], DAY["muted"])  # in every medium
        entries.append((CONDITIONS.get(name, name).replace(", ", "\n"), colour, found[name]))
    draw_intervals(axes, entries)
    axes.set_xlabel(textwrap.fill(report.labels[report.primary_metric[0]], 40))
    return svg(figure)


def _losses(report: Report) -> str | None:
    """Every loss over the steps or queries, with its running mean."""
    names = list(dict.fromkeys(name for line in report.history for name in line))
    names = [name for name in names if name != report.over and not name.startswith("validation/")]
    if not names:
        return None
    figure, axes = axes_of(height=2.5)
    for place, name in enumerate(names):
        colour = [DAY["ink"], DAY["random"], DAY["calm"], DAY["muted"]][place % 4]
        places, values = _series(report, name)
        window = max(1, len(values) // 40)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(places, values, color=colour, linewidth=0.6, alpha=0.3)
        axes.plot(places[window - 1 :], smooth, color=colour, linewidth=1.6, label=name)
    axes.set_xlabel(report.over)
    _legend(axes)
    return svg(figure)


def _validation(report: Report) -> str | None:
    """The primary metric on validation scenes, for the patch and for the control."""
    if not any("validation/patch" in line for line in report.history):
        return None
    figure, axes = axes_of(height=2.5)
    for condition in ("random", "patch"):
        places, values = _series(report, f"validation/{condition}")
        axes.plot(places, values, "o-", color=DAY[condition], linewidth=1.6, markersize=3, label=CONDITIONS[condition])
    axes.set_xlabel(report.over)
    _legend(axes)
    return svg(figure)


def _series(report: Report, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Where one scalar was logged, and its values."""
    lines = [line for line in report.history if name in line]
    return np.array([line[report.over] for line in lines]), np.array([line[name] for line in lines])


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

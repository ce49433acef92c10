"""A page with one patch for each ablation: how strong it is, and how far from the patch of the whole set-up."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from patchattack.reporting.page import ARROWS, DAY, axes_of, draw_intervals, figure_style, svg, write_page

MEDIA = {"digital": "digital", "printed": "as printed and photographed"}
_COLOURS = {"whole": DAY["patch"], "again": DAY["ink"], "ablation": DAY["ink"], "control": DAY["muted"]}


@dataclass(frozen=True)
class Line:
    """One patch or control.

    Attributes:
        name: in words.
        told: what is another than in the whole set-up.
        role: ``whole``, ``again`` (the whole set-up from another seed), ``ablation`` or ``control``.
        cells: medium to ``mean``, ``low``, ``high`` and ``n``; of ``again`` and ablations also ``difference``,
            ``difference_low``, ``difference_high`` and ``p_adjusted``.
    """

    name: str
    told: str
    role: str
    cells: Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class AblationTable:
    """All that the page shows.

    Attributes:
        title: names the table.
        verdict: which ablations change the patch.
        metric: the primary metric's, in words.
        stronger: ``lower`` or ``higher``: the way of a stronger attack.
        lines: from top to bottom.
        patches: name to RGBA ``[4, h, w]`` in [0, 1].
        setup: names and values, in their order.
        command: repeats it.
        versions: package to version.
    """

    title: str
    verdict: str
    metric: str
    stronger: str
    lines: Sequence[Line]
    patches: Mapping[str, Tensor]
    setup: Sequence[tuple[str, str]]
    command: str
    versions: dict[str, str]


def probability(p: float) -> str:
    """``p = 0.012``, in three decimals."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def write_table(path: Path, table: AblationTable) -> None:
    """Write ``table`` as one HTML file that asks nothing of any server and runs no script.

    Raises:
        InputError: the file cannot be written.
    """
    with figure_style():
        write_page(
            path,
            "ablation.html.j2",
            title=table.title,
            table=table,
            media=MEDIA,
            probability=probability,
            figures={medium: _draw(table, medium) for medium in MEDIA},
        )


def _draw(table: AblationTable, medium: str) -> str:
    """Every line's mean and interval in one medium, on the scale of all; a rule where the whole set-up is."""
    entries = [
        (textwrap.fill(line.name, 26, break_long_words=False), _COLOURS[line.role], line.cells[medium])
        for line in table.lines
    ]
    figure, axes = axes_of(height=0.7 + 0.33 * len(entries))
    (whole,) = (line.cells[medium]["mean"] for line in table.lines if line.role == "whole")
    axes.axvline(whole, color=DAY["patch"], linewidth=0.8, linestyle=":")
    draw_intervals(axes, entries)
    ends = [row[bound] for line in table.lines for row in line.cells.values() for bound in ("low", "high")]
    room = 0.08 * (max(ends) - min(ends)) or 0.1
    axes.set_xlim(min(ends) - room, max(ends) + room)
    axes.set_xlabel(textwrap.fill(f"{table.metric[0].upper()}{table.metric[1:]} {ARROWS[table.stronger]}", 50))
    return svg(figure)

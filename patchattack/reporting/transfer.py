"""A page with patches in rows and victims in columns: what transfers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchattack.reporting.page import DAY, axes_of, figure_style, number, svg, write_page


@dataclass(frozen=True)
class Matrix:
    """All that the page shows.

    Attributes:
        title: names the table.
        verdict: one sentence.
        label: the metric, in words.
        stronger: ``lower`` or ``higher``: the way of a stronger attack.
        patches: names of the rows, controls first.
        victims: names of the columns.
        cells: ``(patch, victim)`` to ``mean``, ``low``, ``high`` and ``n``.
        command: repeats it.
        versions: package to version.
    """

    title: str
    verdict: str
    label: str
    stronger: str
    patches: list[str]
    victims: list[str]
    cells: dict[tuple[str, str], dict[str, Any]]
    command: str
    versions: dict[str, str]


def write_matrix(path: Path, matrix: Matrix) -> None:
    """Write ``matrix`` as one HTML file that asks nothing of any server and runs no script.

    Raises:
        InputError: the file cannot be written.
    """
    with figure_style():
        write_page(path, "transfer.html.j2", title=matrix.title, matrix=matrix, figure=heat_map(matrix))


def heat_map(matrix: Matrix) -> str:
    """The means as a heat map; darker is a stronger attack."""
    from matplotlib.colors import LinearSegmentedColormap

    means = np.array([[matrix.cells[patch, victim]["mean"] for victim in matrix.victims] for patch in matrix.patches])
    figure, axes = axes_of(height=0.9 + 0.42 * len(matrix.patches))
    colours = LinearSegmentedColormap.from_list("stronger", ["#f7e3d8", "#c2410c"])
    known = means[np.isfinite(means)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    strength = (means - low) / max(high - low, 1e-9)
    if matrix.stronger == "lower":
        strength = 1 - strength
    axes.pcolormesh(np.nan_to_num(strength), cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=2)
    for row, column in np.ndindex(means.shape):
        colour = "#ffffff" if strength[row, column] > 0.6 else "#1a1c20"
        axes.text(
            column + 0.5, row + 0.5, number(float(means[row, column])), ha="center", va="center", color=colour, size=9
        )
    axes.set_xticks(np.arange(len(matrix.victims)) + 0.5, matrix.victims, color=DAY["ink"], size=8)
    axes.set_yticks(np.arange(len(matrix.patches)) + 0.5, matrix.patches, color=DAY["ink"], size=8)
    axes.invert_yaxis()
    axes.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    return svg(figure)

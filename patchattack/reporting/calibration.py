"""A page with patches trained with and without calibration: what each wins before the camera."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from patchattack.reporting.page import DAY, axes_of, draw_intervals, figure_style, svg, write_page

PATCHES = {"random": "random patch", "without": "without calibration", "with": "with calibration"}
CHANGES = {"difference": "with minus without", "lost": "digital minus printed, without calibration"}
PARTS = {"lab": "in the lab", "drive_by": "in the drive-by"}
_COLOURS = {"random": DAY["random"], "without": DAY["ink"], "with": DAY["patch"]}


@dataclass(frozen=True)
class Gain:
    """All that the page shows.

    Attributes:
        title: names it.
        verdict: whether calibrating pays.
        rule: when a frame counts as won.
        rows: ``seed`` (or ``all``), ``part``, ``patch`` (of :data:`PATCHES` and :data:`CHANGES`), ``mean``, ``low``,
            ``high``, ``n`` takes and ``frames``; of ``difference`` over all seeds also ``p_adjusted``.
        patches: name to RGBA ``[4, h, w]`` in [0, 1]: what the printer is told, and what it prints.
        setup: names and values, in their order.
        command: repeats it.
        versions: package to version.
    """

    title: str
    verdict: str
    rule: str
    rows: Sequence[dict[str, Any]]
    patches: Mapping[str, Tensor]
    setup: Sequence[tuple[str, str]]
    command: str
    versions: dict[str, str]

    def cells(self) -> dict[tuple[Any, str], dict[str, dict[str, Any]]]:
        """Rows by (seed, part) and patch, all seeds together first."""
        table: dict[tuple[Any, str], dict[str, dict[str, Any]]] = {}
        for row in sorted(self.rows, key=lambda row: row["seed"] != "all"):
            table.setdefault((row["seed"], row["part"]), {})[row["patch"]] = row
        return table


def write_gain(path: Path, gain: Gain) -> None:
    """Write ``gain`` as one HTML file that asks nothing of any server and runs no script.

    Raises:
        InputError: the file cannot be written.
    """
    with figure_style():
        write_page(
            path,
            "calibration.html.j2",
            title=gain.title,
            gain=gain,
            parts=PARTS,
            patches=PATCHES,
            changes=CHANGES,
            figures={part: _draw(gain, part) for part in PARTS},
        )


def _draw(gain: Gain, part: str) -> str:
    """All seeds together, then the trained patches seed by seed."""
    entries = []
    for (seed, where), cells in gain.cells().items():
        if where == part:
            shown = [name for name in PATCHES if seed == "all" or name != "random"]
            label = "" if seed == "all" else f"seed {seed}: "
            entries += [(label + PATCHES[name], _COLOURS[name], cells[name]) for name in shown]
    figure, axes = axes_of(height=0.6 + 0.33 * len(entries))
    draw_intervals(axes, entries)
    axes.set_xlim(-0.06, 1.06)
    axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.set_xlabel("Frames won")
    return svg(figure)

"""A page with victims and defences in rows: what each costs and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchattack.reporting.page import figure_style, write_page
from patchattack.reporting.transfer import Matrix, heat_map


@dataclass(frozen=True)
class DefenseTable:
    """All that the page shows.

    Attributes:
        title: names the table.
        verdict: one sentence.
        clean_metric: the metric of the column ``clean``, in words.
        metric: the patches' metric, in words.
        stronger: ``lower`` or ``higher``: the way of a stronger attack.
        patches: the columns of the picture.
        columns: names of all columns.
        rows: victim, defence, and column to ``mean``, ``low``, ``high`` and ``n``, or None where nothing is known.
        command: repeats it.
        versions: package to version.
    """

    title: str
    verdict: str
    clean_metric: str
    metric: str
    stronger: str
    patches: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[tuple[str, str, dict[str, dict[str, Any] | None]]]
    command: str
    versions: dict[str, str]


def write_table(path: Path, table: DefenseTable) -> None:
    """Write ``table`` as one HTML file that asks nothing of any server and runs no script.

    Raises:
        InputError: the file cannot be written.
    """
    several = len({victim for victim, _, _ in table.rows}) > 1
    names = [f"{victim}: {defense}" if several else defense for victim, defense, _ in table.rows]
    matrix = Matrix(
        title=table.title,
        verdict=table.verdict,
        label=table.metric,
        stronger=table.stronger,
        patches=names,
        victims=list(table.patches),
        cells={
            (name, patch): cell
            for name, (_, _, cells) in zip(names, table.rows, strict=True)
            for patch in table.patches
            if (cell := cells[patch]) is not None
        },
        command=table.command,
        versions=table.versions,
    )
    with figure_style():
        write_page(path, "defenses.html.j2", title=table.title, table=table, figure=heat_map(matrix))

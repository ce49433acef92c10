"""The report of a sweep: under which conditions a patch does more than chance, for the screen and for papers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchattack.controls import CONDITIONS
from patchattack.files import write
from patchattack.reporting import latex
from patchattack.reporting.page import ARROWS, figure_style, in_order, paper_style, regions_of, svg, write_page
from patchattack.reporting.sweep_figures import figures_of
from patchattack.reporting.sweep_numbers import ENDS, Evidence, Numbers, cell, level_name, probability, sentence

FORMATS = {  # to what is left out of the file, so that the same figure has the same bytes
    "png": ("Software",),
    "svg": ("Creator", "Date", "Format", "Type"),
    "pdf": ("Creator", "Producer", "CreationDate"),
}


def write_evidence(folder: Path, evidence: Evidence) -> None:
    """Write ``report.html``, and for papers ``figures``: each figure as PNG, SVG and PDF, and two tables for LaTeX.

    The page asks nothing of any server and runs no script.

    Raises:
        InputError: a file cannot be written.
    """
    numbers = Numbers(evidence)
    figures = figures_of(numbers)
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


def _primary_metric_table(numbers: Numbers) -> str:
    """The baseline: a line for each pair, as many means as a paper has room for, the excess and its p."""
    conditions = [name for name in ENDS if name in numbers.conditions]
    lines = []
    for pair in numbers.pairs:
        means = (cell(numbers.measured.get((*pair, "baseline", "", name)))[0] for name in conditions)
        lines.append([*pair, *means, *_excess_cells(numbers, (*pair, "baseline", ""))])
    return _tex(numbers, 2, ["Victim", "Patch", *(ENDS[name] for name in conditions), "excess", "p", "n"], [lines])


def _conditions_table(numbers: Numbers) -> str:
    """Every level of every axis: random, patch, and the excess and its p; a pair and an axis are named once."""
    several = len(numbers.pairs) > 1
    blocks = []
    for pair, name in numbers.pairs.items():
        for axis, varied in numbers.evidence.axes.items():
            names = [*([name] if several else []), sentence(varied.label)]
            block = []
            for level in numbers.levels(axis):
                point = (*pair, axis, level)
                means = (cell(numbers.measured.get((*point, one)))[0] for one in ("random", "patch"))
                block.append([*names, level_name(level, varied.kind), *means, *_excess_cells(numbers, point)])
                names = [""] * len(names)
            blocks.append(block)
    words = [*(["Patch"] if several else []), "Condition", "Level"]
    return _tex(numbers, len(words), [*words, ENDS["random"], ENDS["patch"], "excess", "p", "n"], blocks)


def _excess_cells(numbers: Numbers, point: tuple[Any, ...]) -> list[str]:
    row = numbers.excess.get(point)
    return [" ".join(cell(row)), probability(row["p_adjusted"]), str(row["n"])] if row else ["–"] * 3


def _tex(numbers: Numbers, words: int, heads: Sequence[str], blocks: Sequence[Sequence[Sequence[str]]]) -> str:
    evidence = numbers.evidence
    about = f"{sentence(evidence.labels[evidence.primary_metric[0]])}, means and 95 % intervals."
    return latex.table(heads, blocks, words, [about, evidence.command])

"""The runs of a sweep as one table and a page for each task, what is missing among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchattack import cells
from patchattack.cells import FINISHED, Cell
from patchattack.errors import InputError
from patchattack.redaction import printable
from patchattack.reporting import compare
from patchattack.reporting.page import number
from patchattack.studies.study import write_csv

TABLE = "table.csv"
_CONTROLS = {"drawn": "best hand-drawn", "random": "random"}


def publish(sweep: Path, folder: Path, command: str) -> str:
    """Write ``table.csv``, and ``report_TASK.html`` of the trainings of each task.

    Args:
        sweep: folder of the runs.
        folder: to write into.
        command: repeats it.

    Returns:
        The table as text.

    Raises:
        InputError: there are no runs in it, or a file cannot be written.
    """
    found = cells.read_all(sweep)
    if not found:
        raise InputError(f"runs: expected the folder of a sweep, got {sweep} without runs; check the path")
    runs, reasons = {}, {}
    for cell in found:
        if cell.status != FINISHED:
            reasons[cell.name] = cell.reason or "not finished"
        elif cell.command == "train":
            try:
                runs[cell.name] = compare.load_run(cell.folder)
            except InputError as error:
                reasons[cell.name] = str(error)
    keys = _differing(found)
    rows = [_row(cell, keys, runs.get(cell.name), reasons.get(cell.name, "")) for cell in found]
    write_csv(folder / TABLE, rows)
    gaps = [f"{name} is missing: {reason}" for name, reason in reasons.items()]
    for task in dict.fromkeys(run.task for run in runs.values()):
        of_task = [run for run in runs.values() if run.task == task]
        compare.write_comparison(folder / f"report_{task}.html", of_task, command, gaps)
    return _text(rows, keys)


def written(folder: Path) -> list[Path]:
    """What :func:`publish` has left in a folder."""
    return [folder / TABLE, *sorted(folder.glob("report_*.html"))]


def _settings(cell: Cell) -> dict[str, str]:
    return {key.lstrip("+"): value for key, _, value in (one.partition("=") for one in cell.overrides)}


def _differing(found: Sequence[Cell]) -> list[str]:
    """Keys of the overrides that are not the same in all cells."""
    settings = [_settings(cell) for cell in found]
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if len({one.get(key) for one in settings}) > 1]


def _row(cell: Cell, keys: Sequence[str], run: compare.Run | None, reason: str) -> dict[str, Any]:
    settings = _settings(cell)
    row: dict[str, Any] = {"run": cell.name} | {key: settings.get(key, "") for key in keys}
    row |= dict.fromkeys(("task", "metric", "region", "patch", "low", "high", "n", *_CONTROLS), "")
    if run is not None:
        metric, region = run.primary_metric
        row |= {"task": run.task, "metric": metric, "region": region}
        if patch := compare.primary_row(run, run.primary_metric, "patch"):
            row |= {"patch": patch["mean"]} | {key: patch[key] for key in ("low", "high", "n")}
        found = {name: compare.primary_row(run, run.primary_metric, name) for name in _CONTROLS}
        row |= {name: one["mean"] for name, one in found.items() if one}
    return row | {"missing": reason}


def _text(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> str:
    """The table for the terminal: what differs, the primary metric of patch and controls, or why it is missing."""
    lines = [[*(keys or ["run"]), "metric", "patch", *_CONTROLS.values()]]
    for row in rows:
        told = [str(row[key]) for key in keys or ["run"]]
        shown = f"{number(row['patch'])} [{number(row['low'])}, {number(row['high'])}]" if row["patch"] != "" else "–"
        controls = [number(row[name]) if row[name] != "" else "–" for name in _CONTROLS]
        lines.append([*told, str(row["metric"]) or "–", shown, *controls[:-1], row["missing"] or controls[-1]])
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]) - 1)] + [0]
    return "\n".join(
        "  ".join(printable(cell).ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )

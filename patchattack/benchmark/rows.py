"""The rows of the benchmark: JSON Lines, one file for each victim behind a defence at a size.

A row is a condition (no patch, a control or a patch) in one medium and one bin of the pose, read by one metric. What a
file holds follows from the suite, its patches and the versions alone: when and by whom it was measured stands beside
it, in ``made.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from patchattack import files
from patchattack.cells import FINISHED, Cell
from patchattack.errors import InputError

VERSION = 1
FILE, MADE = "rows.jsonl", "made.json"
CELL = "bench cell"  # the command of its cell.json
WHITE_BOX, BLACK_BOX, TRANSFER, NONE = "white box", "black box", "transfer", "none"
KNOWLEDGE = (WHITE_BOX, BLACK_BOX, TRANSFER, NONE)
# What a row is about. ``shape`` is that of the mask: a control of another shape is another control.
TEXT = (
    *("suite", "task", "victim", "defense", "size", "pose", "medium", "shape", "condition", "name", "sha256"),
    *("metric", "region"),
)
_WORDS = ("label", "stronger", "knowledge", "detail")
OVER = ("random", "drawn")  # each with mean, low and high of the paired difference, positive for a stronger attack
NUMBERS = (
    *("mean", "low", "high", "n"),
    *(f"over_{control}{end}" for control in OVER for end in ("", "_low", "_high")),
)
Row = dict[str, Any]


def text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSON Lines."""
    return "".join(files.json_text(row) + "\n" for row in rows)


def read(path: Path) -> list[Row]:
    """The rows of a file, which may be a stranger's; null is NaN again.

    ``when`` and ``by`` are those of ``made.json`` beside it, empty where there is none.

    Raises:
        InputError: they are not rows, or of a version that this one cannot read.
    """
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        versions = {row.get("version") if isinstance(row, dict) else None for row in found} - {VERSION}
        if versions:
            raise ValueError(f"rows of version {', '.join(map(str, versions))}")
        rows = [
            row | {"unbeaten": told.get("unbeaten")}
            for row, told in zip(files.check_rows(found, (*TEXT, *_WORDS), NUMBERS), found, strict=True)
        ]
        for row in rows:
            if row["stronger"] not in ("lower", "higher") or row["knowledge"] not in KNOWLEDGE:
                raise ValueError(f"stronger = {row['stronger']!r} and knowledge = {row['knowledge']!r}")
            if not all(isinstance(row.get(key), bool) for key in ("primary", "adaptive")):
                raise ValueError(f"expected primary and adaptive as truth values, got {row}")
            if not (row["unbeaten"] is None or _are_names(row["unbeaten"])):
                raise ValueError(f"expected the names of controls, got {row['unbeaten']!r}")
            if not (isinstance(row.get("versions"), dict) and _are_names([*row["versions"].values()])):
                raise ValueError(f"expected versions of packages, got {row.get('versions')!r}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected rows of the benchmark, version {VERSION}, got {error!r}; leave the folder out"
        ) from error
    return [row | _made(path.with_name(MADE)) for row in rows]


def _are_names(node: Any) -> bool:
    return isinstance(node, list) and all(isinstance(one, str) for one in node)


def _made(path: Path) -> dict[str, str]:
    """When and by whom."""
    if not path.is_file():
        return {"when": "", "by": ""}
    try:
        told = files.read_object(path)
        return {key: str(told.get(key) or "") for key in ("when", "by")}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected when and by whom, got {error!r}; delete the file") from error


def collect(folders: Sequence[Path]) -> tuple[list[Row], list[Cell]]:
    """All rows in ``folders``, with ``folder`` that of their file, and the cells without any.

    Raises:
        InputError: no folder, one without rows, or a file that cannot be read.
    """
    if not folders:
        raise InputError("runs: expected the folders of patchattack bench run, got none; give runs=[FOLDER,FOLDER]")
    rows, missing = [], []
    for folder in folders:
        found = sorted(folder.rglob(FILE))
        if not found:
            raise InputError(f"runs: expected a folder with {FILE} of patchattack bench run in it, got {folder}")
        rows += [row | {"folder": path.parent} for path in found for row in read(path)]
        cells = (Cell.read(path.parent) for path in sorted(folder.rglob("cell.json")))
        missing += [cell for cell in cells if cell and cell.command == CELL and cell.status != FINISHED]
    if not rows:
        raise InputError(f"runs: expected rows, got empty files in {', '.join(map(str, folders))}")
    return rows, missing


def newest(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Of rows about the same, the newest; and the others. Both keep their order, and of equals the last counts."""
    kept = {tuple(row[name] for name in TEXT): id(row) for row in sorted(rows, key=lambda row: row["when"])}
    shown = {*kept.values()}
    return [row for row in rows if id(row) in shown], [row for row in rows if id(row) not in shown]


def known(row: Row, key: str) -> bool:
    """Whether the row has a number there."""
    return not math.isnan(row[key])

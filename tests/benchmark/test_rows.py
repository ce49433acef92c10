"""The rows of the benchmark, which may be a stranger's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from patchattack.benchmark import rows
from patchattack.cells import FAILED, Cell
from patchattack.errors import InputError

ROW: dict[str, Any] = {
    "version": 1,
    **dict.fromkeys(rows.TEXT, "x"),
    "label": "metric",
    "stronger": "higher",
    "knowledge": "white box",
    "detail": "",
    **dict.fromkeys(rows.NUMBERS, 0.5),
    "primary": True,
    "adaptive": True,
    "unbeaten": ["random"],
    "versions": {"torch": "2"},
}


def write(folder: Path, *found: dict[str, Any], when: str = "", by: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / rows.FILE).write_text(rows.text(found))
    if when:
        (folder / rows.MADE).write_text(json.dumps({"when": when, "by": by}))
    return folder


def test_rows_come_back_with_who_measured_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", ROW | {"mean": math.nan, "unbeaten": None}, ROW, when="2026-01-02", by="us")
    first, second = rows.read(folder / rows.FILE)
    assert math.isnan(first.pop("mean"))
    assert first == {key: value for key, value in ROW.items() if key != "mean"} | {
        "unbeaten": None,
        "when": "2026-01-02",
        "by": "us",
    }
    assert second == ROW | {"when": "2026-01-02", "by": "us"}


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 2},
        {"version": None},
        {"victim": 7},
        {"mean": "high"},
        {"n": True},
        {"stronger": "louder"},
        {"knowledge": "all"},
        {"primary": 1},
        {"unbeaten": [7]},
        {"unbeaten": "random"},
        {"versions": "2"},
        {"versions": {"torch": 2}},
    ],
)
def test_what_are_no_rows_is_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    folder = write(tmp_path / "a", ROW, ROW | damage)
    with pytest.raises(InputError, match=r"rows\.jsonl: expected rows of the benchmark, version 1, got"):
        rows.read(folder / rows.FILE)


@pytest.mark.parametrize("text", ["{", "7\n", "[]\n", "null\n", "{}\n", "\n", "[" * 100_000, "\xff"])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / rows.FILE
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"rows\.jsonl: expected rows of the benchmark"):
        rows.read(path)


def test_of_rows_about_the_same_the_newest_is_shown(tmp_path: Path) -> None:
    old = write(tmp_path / "b" / "deep", ROW | {"mean": 0.1}, when="2026-01-01", by="you")
    new = write(tmp_path / "a", ROW | {"mean": 0.2}, ROW | {"victim": "y"}, when="2026-02-01", by="us")
    found, _ = rows.collect([tmp_path / "a", tmp_path / "b"])
    shown, older = rows.newest(found)
    assert [(row["victim"], row["mean"], row["folder"]) for row in shown] == [("x", 0.2, new), ("y", 0.5, new)]
    assert [(row["mean"], row["by"], row["folder"]) for row in older] == [(0.1, "you", old)]


def test_what_is_not_finished_is_told(tmp_path: Path) -> None:
    write(tmp_path / "cells" / "a", ROW)
    (tmp_path / "cells" / "b").mkdir()
    Cell(tmp_path / "cells" / "b", rows.CELL, ["task=flow"], FAILED, "no weights").write()
    Cell(tmp_path, "bench", ["part=1/8"], FAILED, "one of its cells").write()  # of a sweep: no cell of ours
    _, missing = rows.collect([tmp_path])
    assert [(cell.name, cell.reason) for cell in missing] == [("b", "no weights")]


def test_no_rows_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="runs: expected the folders of patchattack bench run, got none"):
        rows.collect([])
    with pytest.raises(InputError, match=r"runs: expected a folder with rows\.jsonl"):
        rows.collect([tmp_path])
    write(tmp_path / "a")
    with pytest.raises(InputError, match="runs: expected rows, got empty files"):
        rows.collect([tmp_path])

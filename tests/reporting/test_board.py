"""What a board says of rows."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from patchattack.benchmark import board, rows
from patchattack.cells import FAILED, Cell
from patchattack.errors import InputError

SPOT = {
    "version": 1,
    "suite": "tiny",
    "task": "classification",
    "victim": "net",
    "defense": "none",
    "size": "default",
    "pose": "any",
    "medium": "digital",
    "shape": "square",
    "region": "all",
    "detail": "",
    "seed": 0,
    "settings": "abc",
    "versions": {"torch": "2", "patchattack": "1"},
}
PRIMARY = {"metric": "success", "label": "attack success rate", "stronger": "higher", "primary": True}
CLEAN = {"metric": "accuracy", "label": "fraction that is right", "stronger": "lower", "primary": False}


def condition(what: str, mean: float, **more: Any) -> dict[str, Any]:
    told = {"condition": what, "name": "", "sha256": "", "knowledge": "none", "adaptive": False, "unbeaten": None}
    numbers = dict.fromkeys(rows.NUMBERS[4:]) | {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 9}
    return SPOT | told | numbers | more


def patch(name: str, mean: float, knowledge: str, **more: Any) -> dict[str, Any]:
    told = {"name": name, "sha256": name, "knowledge": knowledge, "adaptive": knowledge == "white box"}
    beyond = {f"over_{one}{end}": 0.25 for one in rows.OVER for end in ("", "_low", "_high")}
    return condition("patch", mean, **{**told, **beyond, "unbeaten": []} | more)


def some_rows(knowledge: str = "white box", victim: str = "net") -> list[dict[str, Any]]:
    """One victim, two patches and two controls, in two metrics."""
    weak, strong = ("weak", knowledge, {"unbeaten": ["random"]}), ("strong", "transfer", {})
    both = []
    for words, means in ((PRIMARY, (0.0, 0.1, 0.2, 0.3, 0.7)), (CLEAN, (0.95, 0.9, 0.8, 0.6, 0.2))):
        clean, random, drawn, one, other = means
        both += [
            condition("clean", clean, **words),
            condition("random", random, **words),
            condition("drawn", drawn, **words, detail="black and white stripes"),
            patch(weak[0], one, weak[1], **words, **weak[2]),
            patch(strong[0], other, strong[1], **words, **strong[2]),
        ]
    return [row | {"victim": victim} for row in both]


def write_rows(folder: Path, found: list[dict[str, Any]], when: str = "", by: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / rows.FILE).write_text(rows.text(found))
    if when:
        (folder / rows.MADE).write_text(json.dumps({"when": when, "by": by}))
    return folder


def publish(tmp_path: Path, *runs: Path, hub: str | None = None) -> str:
    """The page, without its style and script."""
    board.publish(runs, tmp_path / "board", "patchattack bench board", hub)
    return re.sub(r"<(style|script)>.*?</\1>", "", (tmp_path / "board" / "board.html").read_text(), flags=re.DOTALL)


def lines_of(page: str, table: str) -> list[str]:
    """The lines of a table, without tags."""
    body = re.search(rf'data-count="{table}".*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert body
    return [" ".join(re.sub("<.*?>", " ", line).split()) for line in body[1].split("<tr")[1:]]


def test_a_victim_has_two_scores(tmp_path: Path) -> None:
    page = publish(tmp_path, write_rows(tmp_path / "run", some_rows(), "2026-01-02T10:00:00+00:00", "us"))
    (line,) = lines_of(page, "victims")
    # The strongest of all patches counts, where an adaptive one is among them.
    assert "0.950 [0.850, 1.05] n = 9 0.200 [0.100, 0.300] n = 9 0.900 [0.800, 1.00] n = 9 strong transfer" in line
    assert "beats every control ↓ accuracy default digital rows 2026-01-02 by us" in line
    assert 'href="../run/"' in page
    assert "In 1 of 1 measurements the strongest patch does more than every control." in page


def test_without_an_adaptive_patch_there_is_a_gap_and_a_reason(tmp_path: Path) -> None:
    page = publish(tmp_path, write_rows(tmp_path / "run", some_rows("transfer")))
    (line,) = lines_of(page, "victims")
    assert "n = 9 – 0.900 [0.800, 1.00] n = 9 no adaptive patch: none was trained on it ↓ accuracy" in line
    assert "No adaptive patch has met any of the victims" in page
    assert "classification, net, none" in page
    behind = [row | {"defense": "jpeg"} for row in some_rows("transfer")]
    page = publish(tmp_path, write_rows(tmp_path / "run", some_rows() + behind))
    assert "no adaptive patch: none was trained on it through jpeg" in lines_of(page, "victims")[1]
    assert "In 1 of 1 measurements the strongest patch does more than every control; 1 more lack" in page


def test_a_patch_stands_beside_its_controls(tmp_path: Path) -> None:
    page = publish(tmp_path, write_rows(tmp_path / "run", some_rows()))
    found = lines_of(page, "patches")
    names = ["strong transfer; beats every control", "weak white box; not shown to beat: random patch"]
    names += ["random patch control", "best hand-drawn texture black and white stripes"]
    assert all(name in line for name, line in zip(names, found, strict=True))
    assert "0.700 [0.600, 0.800] n = 9 +0.250 [0.250, 0.250] +0.250 [0.250, 0.250] ↑ success" in found[0]


def test_the_page_asks_nothing_and_runs_its_own_script_alone(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    found = [row | {"victim": hostile, "name": row["name"] and hostile} for row in some_rows()]
    publish(tmp_path, write_rows(tmp_path / "run", found, "2026-01-01", hostile))
    page = (tmp_path / "board" / "board.html").read_text()
    assert page.count("<script") == page.count("</script>") == 1
    assert not re.search(r"https?:|\b(src|onclick)=", page)
    assert "script-src 'sha256-" in page
    assert '<meta name="viewport"' in page
    assert hostile not in page.replace("&lt;", "")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_peoples_rows_both_are_kept_and_the_newer_shown(tmp_path: Path, order: tuple[int, int]) -> None:
    old = [row | {"mean": row["mean"] / 2, "settings": "def"} for row in some_rows()]
    runs = [
        write_rows(tmp_path / "b", old, "2026-01-01T00:00:00+00:00", "you"),
        write_rows(tmp_path / "a", some_rows(), "2026-02-01T00:00:00+00:00", "us"),
    ]
    page = publish(tmp_path, *(runs[place] for place in order))
    (line,) = lines_of(page, "victims")
    assert "0.950" in line
    assert "us" in line
    assert (
        "shown: 2026-02-01T00:00:00+00:00 by us; also measured: 2026-01-01T00:00:00+00:00 by you, under other settings"
    ) in page
    told = json.loads((tmp_path / "board" / "board.json").read_text())
    assert {(row["by"], row["newest"]) for row in told} == {("us", True), ("you", False)}
    assert len(told) == 2 * len(some_rows())


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    run = write_rows(tmp_path / "run" / "cells" / "a", some_rows()).parents[1]
    (run / "cells" / "b").mkdir()
    Cell(run / "cells" / "b", rows.CELL, ["task=flow", "victim=net"], FAILED, "weights: none").write()
    page = publish(tmp_path, run)
    assert "<strong>flow, net</strong> <span>weights: none</span>" in page
    assert "- flow, net: weights: none" in (tmp_path / "board" / "board.md").read_text()


def test_the_figures_are_the_same_bytes_however_the_suite_was_cut(tmp_path: Path) -> None:
    first, second = some_rows(), some_rows(victim="other")
    whole = write_rows(tmp_path / "whole", first + second, "2026-01-01", "us")
    parts = [write_rows(tmp_path / "z", first, "2026-03-01"), write_rows(tmp_path / "y", second, "2026-02-01")]
    texts = []
    for runs in ([whole], parts):
        publish(tmp_path, *runs)
        texts.append([(tmp_path / "board" / name).read_bytes() for name in ("board.csv", "board.md", "table.tex")])
    assert texts[0] == texts[1]
    with (tmp_path / "board" / "board.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == len(first + second)
    assert {row["versions"] for row in found} == {"patchattack 1, torch 2"}
    assert {row["over_random"] for row in found} == {"", "0.25"}


def test_the_files_for_the_hub_are_what_it_reads(tmp_path: Path) -> None:
    found = some_rows() + some_rows("transfer", "other") + [row | {"defense": "jpeg"} for row in some_rows()]
    publish(tmp_path, write_rows(tmp_path / "run", found, "2026-01-02T10:00:00+00:00"), hub="us/patches")
    hub = tmp_path / "board" / "hub"
    described = yaml.safe_load((hub / "eval.yaml").read_text())
    tasks = [task["id"] for task in described["tasks"]]
    assert tasks == ["classification_default_any_digital_clean", "classification_default_any_digital_patch"]
    results = {path.parts[-3]: yaml.safe_load(path.read_text()) for path in hub.rglob("patchattack.yaml")}
    assert {name: [entry["value"] for entry in one] for name, one in results.items()} == {
        "net": [0.95, 0.2],
        "other": [0.95],  # no adaptive patch, no second score
    }
    read = pytest.importorskip("huggingface_hub").parse_eval_result_entries(results["net"])
    assert [(one.dataset_id, one.task_id, one.date) for one in read] == [
        ("us/patches", task, "2026-01-02") for task in tasks
    ]


def test_a_name_that_the_hub_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hub: expected OWNER/NAME of a data set, got patches"):
        publish(tmp_path, write_rows(tmp_path / "run", some_rows()), hub="patches")

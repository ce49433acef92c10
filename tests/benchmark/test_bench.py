"""The benchmark from the command line: the same rows in whatever parts and order, killed or not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patchattack import files
from patchattack.benchmark import patch_file, rows
from patchattack.benchmark.measure import Bench

NewPatch = Callable[[Path, str, str, tuple[str, ...]], Path]


def bytes_of(folder: Path) -> dict[str, bytes]:
    """What every cell has measured."""
    return {path.parent.name: path.read_bytes() for path in folder.rglob(rows.FILE)}


def read(folder: Path) -> list[dict[str, Any]]:
    return rows.collect([folder])[0]


def test_every_condition_has_its_rows(measured: Path) -> None:
    found = read(measured)
    assert len(bytes_of(measured)) == 4
    for spot in {(row["task"], row["defense"], row["size"]) for row in found}:
        mine = [row for row in found if (row["task"], row["defense"], row["size"]) == spot]
        assert {row["medium"] for row in mine} == {"digital", "photographed"}
        for medium in ("digital", "photographed"):
            primary = [row for row in mine if row["medium"] == medium and row["primary"]]
            conditions = [row["condition"] for row in primary]
            patches = 2 if spot[0] == "flow" else 1
            assert conditions == ["clean", "grey", "white", "black", "random", "drawn", *["patch"] * patches]
    flow, classes = ({row["metric"] for row in found if row["task"] == task} for task in ("flow", "classification"))
    assert (flow, classes) == ({"cosine", "epe_truth"}, {"success", "accuracy"})
    assert {(row["seed"], row["scenes"], row["draws"], row["by"]) for row in found} == {(0, 3, 1, "us")}
    assert all(row["when"].startswith("20") for row in found)


def test_a_patch_is_compared_with_its_controls(measured: Path) -> None:
    for row in read(measured):
        is_patch = row["condition"] == "patch"
        assert (row["over_random"] == row["over_random"]) == (is_patch and row["n"] > 0)
        assert (row["unbeaten"] is not None) == is_patch
        assert bool(row["detail"]) == (row["condition"] == "drawn")
    mine = [
        row
        for row in read(measured)
        if (row["task"], row["size"], row["medium"], row["metric"]) == ("flow", "small", "digital", "epe_truth")
    ]
    means = {row["name"] or row["condition"]: row["mean"] for row in mine}
    for row in mine:
        if row["condition"] == "patch":
            assert row["over_drawn"] == pytest.approx(means[row["name"]] - means["drawn"], abs=1e-5)
            beaten = {"grey", "white", "black", "random", "drawn"} - {*row["unbeaten"]}
            assert all(means[row["name"]] > means[one] for one in beaten)


def test_who_made_a_patch_knew_the_victim_or_did_not(measured: Path) -> None:
    known = {(row["name"], row["defense"]): (row["knowledge"], row["adaptive"]) for row in read(measured)}
    assert known == {
        ("", "none"): ("none", False),
        ("", "bit_depth"): ("none", False),
        ("for_flow", "none"): ("white box", True),
        ("for_another", "none"): ("transfer", False),
        ("for_classes", "none"): ("white box", True),
        ("for_classes", "bit_depth"): ("transfer", False),
    }


def test_the_board_is_the_same_however_the_suite_was_cut(
    measured: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    parts = tmp_path / "parts"
    for number, cell in enumerate(sorted((measured / "cells").iterdir())):
        shutil.copytree(cell, parts / str(number) / "cells" / cell.name)
    for name, runs in (("one", str(measured)), ("many", ",".join(map(str, sorted(parts.iterdir(), reverse=True))))):
        outcome = command("board", f"runs=[{runs}]", f"output={tmp_path / name}", entry="bench")
        assert outcome.status == 0, outcome.err
    assert "board.html" in outcome.out
    one, many = ((tmp_path / name / "board.csv").read_bytes() for name in ("one", "many"))
    assert one == many
    page = (tmp_path / "one" / "board.html").read_text()
    assert page.count('href="') == 2 * (4 + 2 * 7 + 2 * 6)  # of two media: victims, and all conditions but clean
    assert "no adaptive patch: none was trained on it through bit_depth" in page


def test_several_processes_are_the_same_bytes(measured: Path, tmp_path: Path, bench: Callable[..., Any]) -> None:
    assert bench(f"output={tmp_path}", "only=[classification]", "workers=2").status == 0
    whole = bytes_of(measured)
    assert bytes_of(tmp_path) == {name: whole[name] for name in whole if name.startswith("classification")}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process to kill")
def test_what_was_killed_and_then_measured_in_parts_has_the_same_bytes(
    measured: Path, tmp_path: Path, bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for written in (6, 9):  # files, of which the last is written half
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of threads that others have left
            child = os.fork()
        if child == 0:
            _die_after(written)
            try:
                bench(f"output={tmp_path}")
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert 0 < len(bytes_of(tmp_path)) < 4
    for part in ("3/3", "1/3", "2/3", "8/8"):
        assert bench(f"output={tmp_path}", f"part={part}").status == 0
    assert bytes_of(tmp_path) == bytes_of(measured)

    def never(*_: Any) -> None:
        raise AssertionError("it is measured already")

    monkeypatch.setattr(Bench, "rows", never)
    assert bench(f"output={tmp_path}").status == 0


def _die_after(count: int) -> None:
    write = files.write

    def counted(path: Path, data: bytes | str) -> None:
        nonlocal count
        count -= 1
        if count == 0:
            path.with_name(f".{path.name}.half").write_bytes(b"{")
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, data)

    files.write = counted


def test_what_fails_leaves_its_reason_and_the_others_go_on(tmp_path: Path, bench: Callable[..., Any]) -> None:
    missing = 'suite.tasks.flow.overrides=["victims.own.weights=missing.pt","data.size=[32,64]","data.scenes=8"]'
    given = (f"output={tmp_path}", "only=[own,default,none]", missing)
    outcome = bench(*given)
    assert outcome.status == 2
    assert "1 of 2 could not be measured, the first: flow_own_none_default_" in outcome.err
    assert "missing.pt" in outcome.err
    assert "1 of 2 measured" in outcome.out
    assert [row["task"] for row in read(tmp_path)[:1]] == ["classification"]
    (cell,) = rows.collect([tmp_path])[1]
    assert cell.status == "failed"
    assert "missing.pt" in cell.reason


def test_patches_can_stand_in_the_place_of_the_suites(
    tmp_path: Path, bench: Callable[..., Any], new_patch: NewPatch
) -> None:
    path = new_patch(tmp_path / "mine", "mine", "flow", ("own",))
    folder = tmp_path / "out"
    assert bench(f"output={folder}", f"patches=[{path}]", "only=[default]").status == 0
    assert {(row["task"], row["name"]) for row in read(folder)} == {("flow", ""), ("flow", "mine")}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("part=9/8",), "part: expected K/N with K from 1 to N, as 2/8, got 9/8"),
        (("only=[flwo]",), "only: expected one of flow, classification, own, "),
        (("~suite.tasks.flow", "~suite.tasks.classification"), "suite: expected at least one task"),
        (("+suite.sizes=[1]",), "suite: expected one of name, tasks, "),
        (("suite.tasks.flow.victims.own=depth_unet",), "expected victims for flow, got own for depth"),
        (("suite.tasks.flow.victims.own=flow_mtching",), "did you mean flow_matching?"),
        (("+suite.tasks.flow.sizes={odd:{placement.size:1}}",), "expected keys of the renderer, as placement.area"),
        (("+suite.tasks.flow.sizes={odd:{placement.area:2}}",), "placement.area: expected"),
        (("suite.tasks.flow.patches=[nowhere]",), "nowhere"),
        (("workers=0",), "workers: expected an integer >= 1, got 0"),
        (("suite=tny",), "suite: expected one of compact, "),
    ],
)
def test_bad_input_is_one_line_before_the_work(
    tmp_path: Path, bench: Callable[..., Any], given: tuple[str, ...], message: str
) -> None:
    outcome = bench(*given, f"output={tmp_path / 'out'}")
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_patch_for_another_task_is_refused(
    tmp_path: Path, bench: Callable[..., Any], configs: Path, new_patch: NewPatch
) -> None:
    path = configs.parent / "patches" / "for_classes.png"
    outcome = bench(f"suite.tasks.flow.patches=[{path}]", f"output={tmp_path / 'out'}")
    assert "patches: expected patches for flow, got for_classes for classification" in outcome.err
    depth = new_patch(tmp_path, "deep", "depth", ("own",))
    outcome = bench(f"patches=[{depth}]", f"output={tmp_path / 'out'}")
    assert "patches: expected patches for flow, classification, got deep for depth" in outcome.err


def test_a_patch_that_was_changed_is_refused(tmp_path: Path, bench: Callable[..., Any], new_patch: NewPatch) -> None:
    path = new_patch(tmp_path, "mine", "flow", ("own",))
    facts = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(facts | {"sha256": "0" * 64}))
    outcome = bench(f"patches=[{path}]", f"output={tmp_path / 'out'}")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "sha256" in outcome.err


def test_a_run_becomes_a_patch_file(tmp_path: Path, command: Callable[..., Any], finished: Path) -> None:
    outcome = command("add", str(finished), "licence=CC0", f"output={tmp_path}", entry="bench")
    assert outcome.status == 0, outcome.err
    (path,) = tmp_path.glob("*.png")
    assert patch_file.read(path).licence == "CC0"
    (tmp_path / "runs").mkdir()
    shutil.copytree(finished, tmp_path / "runs" / "one")
    several = command("add", str(tmp_path / "runs"), f"output={tmp_path / 'several'}", entry="bench")
    assert "one for flow, white box" in several.out
    again = command("add", str(path), f"output={tmp_path / 'again'}", entry="bench")
    assert again.status == 0, again.err
    assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert "flow" in again.out


def test_what_others_have_published_becomes_a_patch_file(
    tmp_path: Path, command: Callable[..., Any], configs: Path
) -> None:
    picture = shutil.copy(configs.parent / "patches" / "for_flow.png", tmp_path / "some picture.png")
    details = ("size_mm=90", "task=flow", "trained_on=[raft]", "licence=CC0", "source='https://example.org'")
    outcome = command("import", "picture", str(picture), *details, f"output={tmp_path / 'out'}", entry="bench")
    assert outcome.status == 0, outcome.err
    assert "Licence: " in outcome.out
    one = patch_file.read(tmp_path / "out" / "some picture.png")
    assert (one.patch.size_mm, one.task, one.victims, one.licence) == ((90, 90), "flow", ["raft"], "CC0")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("import",), "expected patchattack bench import KIND PATH, KIND one of detection_defenses, "),
        (("import", "nobody", "x"), "got nobody and x"),
        (("import", "picture", "x", "size_mm=wide"), "size_mm: expected millimetres, got wide"),
        (("add",), "patches: expected runs or patch files, got none"),
        (("add", "nowhere"), "nowhere"),
        (("board",), "runs: expected the folders of patchattack bench run, got none"),
        (("board", "runs=[nowhere]"), "runs: expected a folder with rows.jsonl"),
        (("walk",), "bench: expected run, add, import, board, got walk"),
        ((), "bench: expected run, add, import, board, got nothing"),
    ],
)
def test_a_word_without_what_it_needs_is_one_line(
    tmp_path: Path, command: Callable[..., Any], given: tuple[str, ...], message: str
) -> None:
    outcome = command(*given, *([f"output={tmp_path / 'out'}"] if given else []), entry="bench")
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1

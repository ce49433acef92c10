"""``patchattack evaluate`` from its command line to its files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patchattack.patch import Patch, write_png
from patchattack.reporting import sweep as evidence
from patchattack.studies.sweep import measure

AXES = ("axes=[size,print]", "axes.size.levels=[0.05,0.2]", "scenes=2", "draws=2")


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than all that is tested here."""
    monkeypatch.setattr(evidence, "write_evidence", lambda *_: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., Any], tiny: tuple[str, ...]) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert command("attack=flow", "victim=flow_matching", *tiny, "trainer.test_draws=2", f"output={folder}").status == 0
    return folder


@pytest.fixture(scope="module")
def first(trained: Path, command: Callable[..., Any]) -> Path:
    outcome = command(f"run={trained}", *AXES, "batch=32", "workers=1", entry="evaluate")
    assert outcome.status == 0, outcome.err
    return trained / "evaluation"


def test_an_evaluation_leaves_a_report_numbers_and_views(trained: Path, first: Path) -> None:
    assert {"report.html", "summary.json", "views.csv", "settings.json"} <= {path.name for path in first.iterdir()}
    found = json.loads((first / "summary.json").read_text())
    assert [(row["axis"], row["level"]) for row in found["excess"]] == [
        ("baseline", ""),
        ("size", 0.05),
        ("size", 0.2),
        ("print", "digital"),
        ("print", "printed"),
    ]
    assert all(0 < row["p"] <= row["p_adjusted"] <= 1 and row["n"] == 2 for row in found["excess"])
    assert found["sentence"].startswith("Inconclusive: 2 test scenes are too few")
    with (first / "views.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 2 * 2 * 10
    # At the baseline it is the run's own test, with the same draws.
    mine = [float(row["cosine/outside"]) for row in rows if (row["axis"], row["condition"]) == ("baseline", "patch")]
    (own,) = (
        row["mean"]
        for row in json.loads((trained / "results.json").read_text())
        if (row["condition"], row["metric"], row["region"]) == ("patch", "cosine", "outside")
    )
    assert sum(mine) / 4 == pytest.approx(own, abs=0.02)  # the patch has been through a file of 8 bits


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("how", [("batch=1", "workers=1"), ("batch=3", "workers=2")])
def test_the_bytes_are_the_same_whatever_the_batch_and_the_processes(
    trained: Path, first: Path, tmp_path: Path, command: Callable[..., Any], how: tuple[str, ...]
) -> None:
    outcome = command(f"run={trained}", *AXES, *how, f"output={tmp_path / 'other'}", entry="evaluate")
    assert outcome.status == 0, outcome.err
    for name in ("views.csv", "summary.json"):
        assert (tmp_path / "other" / name).read_bytes() == (first / name).read_bytes()


@pytest.mark.usefixtures("no_report")
def test_after_ctrl_c_the_same_command_goes_on(
    trained: Path, first: Path, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    row, asked = measure.ViewTable.__getitem__, []

    def interrupted(table: measure.ViewTable, index: int) -> str:
        asked.append(index)
        if len(asked) == 8:
            raise KeyboardInterrupt
        return row(table, index)

    arguments = (f"run={trained}", *AXES, "batch=2", "workers=1")
    with monkeypatch.context() as patches:
        patches.setattr(measure.ViewTable, "__getitem__", interrupted)
        outcome = command(*arguments, f"output={tmp_path / 'other'}", entry="evaluate")
    assert outcome.status == 130
    assert "interrupted. Resume with: patchattack evaluate attack=flow " in outcome.out
    assert outcome.out.rstrip().endswith(f"output={tmp_path / 'other'}")
    assert not (tmp_path / "other" / "summary.json").exists()
    assert (tmp_path / "other" / "views.csv").read_bytes().count(b"\n") == 1 + 6 * 10
    outcome = command(*arguments, f"output={tmp_path / 'other'}", entry="evaluate")
    assert outcome.status == 0, outcome.err
    for name in ("views.csv", "summary.json"):
        assert (tmp_path / "other" / name).read_bytes() == (first / name).read_bytes()
    outcome = command(*arguments, "seed=3", f"output={tmp_path / 'other'}", entry="evaluate")
    assert outcome.status == 2
    assert "expected the settings that it was made with, got other ones: seed, seed=3; repeat those" in outcome.err
    outcome = command(*arguments, f"resume={tmp_path / 'other'}", entry="evaluate")
    assert "resume: expected output=FOLDER, by which all but a training are resumed" in outcome.err


@pytest.mark.usefixtures("no_report")
def test_any_image_is_a_patch_for_several_victims(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...]
) -> None:
    write_png(tmp_path / "photo.png", torch.rand(3, 10, 20), torch.ones(1, 10, 20), (100.0, 50.0))
    outcome = command(
        "attack=flow",
        f"patch={tmp_path / 'photo.png'}",
        "victims=[flow_matching,flow_encoder_decoder]",
        "victims.flow_matching.weights=random",
        "victims.flow_encoder_decoder.weights=random",
        *(one for one in tiny if not one.startswith(("victim", "patch"))),
        *("axes=[size,blur]", "axes.size.levels=[0.05]", "axes.blur.levels=[1,2]", "sweep=factorial"),
        *("scenes=2", "draws=1", "workers=1", f"output={tmp_path / 'out'}"),
        entry="evaluate",
    )
    assert outcome.status == 0, outcome.err
    excess = json.loads((tmp_path / "out" / "summary.json").read_text())["excess"]
    assert [(row["victim"], row["patch"], row["axis"], row["level"]) for row in excess] == [
        (victim, "photo", *point)
        for victim in ("flow_matching", "flow_encoder_decoder")
        for point in (("baseline", ""), ("size × blur", "0.05 × 1"), ("size × blur", "0.05 × 2"))
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "expected one of run=RUN, runs=[RUN,RUN] and patch=FILE, got none"),
        (["patch=nowhere.png", "runs=[a]"], "got runs and patch"),
        (["patch=nowhere.png"], "patch: expected a readable image file, got nowhere.png"),
        (["runs=[nowhere]"], "nowhere/patch.png"),
        (["patch=x.png", "axes=[sizes]"], "axes: expected one of"),
        (["patch=x.png", "axes.size.levels=[big]"], "axes.size.levels: expected"),
        (["patch=x.png", "axes.size.levels=[2]"], "placement.area: expected a fraction of the frame in (0, 1], got 2"),
        (["patch=x.png", "scenes=0"], "scenes: expected an integer >= 1, got 0"),
        (["patch=x.png", "workers=-1"], "workers: expected an integer >= 1, got -1"),
        (["patch=x.png", "sweep=both"], "sweep: expected single or factorial, got both"),
        (["patch=x.png", "format=xlsx"], "format: expected csv or parquet, got xlsx"),
    ],
)
def test_bad_input_is_one_line(
    command: Callable[..., Any],
    tiny: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "x.png", torch.rand(3, 4, 4), torch.ones(1, 4, 4), (10.0, 10.0))
    rest = [one for one in tiny if not one.startswith("patch")]
    outcome = command("attack=flow", "victim=flow_matching", *rest, *given, entry="evaluate")
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"x.png"}


def test_a_patch_with_the_json_of_another_is_refused_in_one_line(
    command: Callable[..., Any], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    Patch.create(resolution=8).save(tmp_path / "patch.png", {})
    (tmp_path / "patch.json").write_text('{"size_mm": "large"}')
    rest = [one for one in tiny if not one.startswith("patch")]
    outcome = command(
        "attack=flow", "victim=flow_matching", *rest, f"patch={tmp_path / 'patch.png'}", *AXES, entry="evaluate"
    )
    assert outcome.status == 2
    assert "expected JSON with size_mm" in outcome.err
    assert outcome.err.count("\n") == 1

"""Patches trained with and without calibration, printed and photographed alike, from the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from patchattack import files
from patchattack.errors import InputError
from patchattack.rehearsal import rehearse
from patchattack.studies import calibration as gain
from patchattack.studies.calibration import CalibrationStudy, camera_results, pair, verdict

NAMES = ["random", "without", "with", "difference", "lost"]
SMALL = (
    *(
        "attack=flow",
        "victim=flow_matching",
        "attack.still=0.001",
        "seeds=[3]",
        "printers=[5]",
        "size=[360,640]",
        "keep=4",
    ),
    *("lab.angles=[0]", "lab.distances=[0.16,0.22]", "lab.frames=2", "drive_by.passes=1", "drive_by.frames=4"),
)


@pytest.fixture(scope="module")
def start(
    tmp_path_factory: pytest.TempPathFactory, command: Callable[..., Any], tiny: tuple[str, ...]
) -> tuple[Path, Callable[..., Any]]:
    """A folder, and the script into it."""
    folder = tmp_path_factory.mktemp("gains") / "gain"
    given = [one for one in tiny if one != "tracker=none"]
    return folder, lambda *more: command(*SMALL, *given, f"output={folder}", *more, entry="calibration-gain")


@pytest.fixture(scope="module")
def interrupted(start: tuple[Path, Callable[..., Any]]) -> Any:
    """What a call says that is interrupted while it measures the second of three patches."""
    _, calls = start
    evaluate, asked = rehearse.evaluate, []

    def stops(*arguments: Any) -> Any:
        asked.append(evaluate(*arguments))
        if len(asked) < 3:
            return asked[-1]
        return replace(asked[-1], interrupted=True)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(rehearse, "evaluate", stops)
        return calls()


@pytest.fixture(scope="module")
def finished(start: tuple[Path, Callable[..., Any]], interrupted: Any) -> tuple[Any, dict[Path, int]]:
    """What the next call says, and when the files were written that it has found."""
    assert interrupted.status == 130, interrupted.err
    folder, calls = start
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    return calls(), before


def test_an_interrupted_call_says_how_to_go_on(start: tuple[Path, Callable[..., Any]], interrupted: Any) -> None:
    folder, _ = start
    assert interrupted.status == 130, interrupted.err
    assert "interrupted. Resume with: patchattack calibration-gain attack=flow" in interrupted.out
    assert interrupted.out.count(f"output={folder}") == 1
    assert (folder / "seed_3" / "random" / "rehearsal" / "rehearsal.json").is_file()


def test_what_is_there_is_not_done_again(start: tuple[Path, Callable[..., Any]], finished: Any) -> None:
    folder, _ = start
    outcome, before = finished
    assert outcome.status == 0, outcome.err
    redone = folder / "seed_3" / "without" / "rehearsal"
    assert redone / "rehearsal.json" not in before
    assert redone / "lab" / "video.mp4" in before
    kept = {path for path in before if not path.is_relative_to(redone)}
    assert {path for path in kept if path.stat().st_mtime_ns != before[path]} == set()
    assert "optimising the patch" not in outcome.err


def test_every_patch_is_measured_before_the_same_camera(start: tuple[Path, Callable[..., Any]], finished: Any) -> None:
    folder, _ = start
    outcome, _ = finished
    rows = json.loads((folder / "results.json").read_text())
    expected = [(seed, part, name) for part in ("lab", "drive_by") for seed in (3, "all") for name in NAMES]
    assert [(row["seed"], row["part"], row["patch"]) for row in rows] == expected
    cells = {(row["seed"], row["part"], row["patch"]): row for row in rows}
    for part, takes in (("lab", 2), ("drive_by", 1)):
        assert {cells["all", part, name]["n"] for name in NAMES} == {takes}
        assert cells["all", part, "difference"]["p_adjusted"] <= 1
    with (folder / "results.csv").open() as file:
        assert [float(row["mean"]) for row in csv.DictReader(file)] == [row["mean"] for row in rows]
    own = folder / "seed_3"
    truths = {(own / name / "rehearsal" / "lab" / "truth.csv").read_bytes() for name in NAMES[:3]}
    sheets = {(own / name / "rehearsal" / "sheet.png").read_bytes() for name in NAMES[:3]}
    assert (len(truths), len(sheets)) == (1, 3)
    assert json.loads((own / "with" / "rehearsal" / "rehearsal.json").read_text())["printer"]["seed"] == 5
    assert "| 3 | drive-by | " in outcome.out


@pytest.mark.usefixtures("finished")
def test_the_report_shows_it(start: tuple[Path, Callable[..., Any]]) -> None:
    page = (start[0] / "report.html").read_text()
    assert "Calibrating cannot be judged in the lab: 2 takes are too few. It cannot be judged in the drive-by" in page
    assert "5 of seed 3" in page
    assert page.count("<svg") == 2
    assert page.count("data:image/png") == 3
    assert "<script" not in page


@pytest.mark.usefixtures("finished")
def test_other_settings_do_not_join(start: tuple[Path, Callable[..., Any]]) -> None:
    folder, calls = start
    for override, key in (("optimizer.lr=0.5", "optimizer"), ("printers=[6]", "printer"), ("lab.frames=3", "lab")):
        outcome = calls(override)
        assert outcome.status == 2
        line = outcome.err.splitlines()[-1]
        assert line.startswith(f"patchattack: {folder / 'seed_3'}: expected the settings that it was made with")
        assert f"got other ones: {key}" in line


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("seeds=[]", "seeds: expected one or more, each once, got []"),
        ("seeds=[1,1]", "seeds: expected one or more, each once, got [1, 1]"),
        ("seeds=[1,-1]", "seeds: expected a list of integers >= 0, got [1, -1]"),
        ("seeds=2", "seeds: expected a list of integers"),
        ("seeds=[1,2] printers=[1]", "printers: expected one for each of 2 seeds, got 1"),
        ("print.fiducials=false", "print.fiducials: expected true, got false"),
        ("victim=depth_unet", "expected a victim for flow"),
        ("trainer.devices=2", "trainer.devices: expected 1, got 2"),
        ("lab.frames=1", "lab.frames: expected 2 or more, got 1"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...], given: str, message: str
) -> None:
    outcome = command(*SMALL, *tiny, *given.split(), f"output={tmp_path / 'gain'}", entry="calibration-gain")
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "gain").exists()


class BuiltError(Exception):
    """Ends a training before it begins."""


def test_trainings_differ_by_the_calibration_alone(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    with initialize_config_dir(str(files.package_folder("conf").resolve()), version_base="1.3"):
        composed = compose("calibration_gain", [*SMALL, *tiny, "appearance=[contrast,calibrated,shadow]"])
    config = OmegaConf.to_container(composed, resolve=True)
    built: list[dict[str, Any]] = []

    def build(given: dict[str, Any]) -> Any:
        built.append(given)
        raise BuiltError

    trial = CalibrationStudy(config, build, {3: 5}, {}, "python")  # type: ignore[arg-type]
    for calibration in (None, tmp_path / "calibration.json"):
        with pytest.raises(BuiltError):
            gain._train_patch(trial, 3, calibration, tmp_path / "run", None)
    without, calibrated = built
    assert list(without["renderer"]["appearance"]) == ["contrast", "calibrated", "shadow"]
    stack = calibrated["renderer"]["appearance"]
    assert list(stack) == ["calibrated", "contrast", "shadow"]
    assert stack["calibrated"].items() >= {"file": str(tmp_path / "calibration.json"), "spread": 1.0}.items()
    assert without["seed"] == without["patch"]["seed"] == 3
    for one in built:
        one["renderer"].pop("appearance")
        one.pop("appearance")
    assert without == calibrated


def test_frames_are_paired_and_takes_counted(tmp_path: Path) -> None:
    """Two takes: frames 0 to 2, and 4 and 5; one frame of one patch is not measured."""
    seen = {"random": [0, 0, 0, 0, 0], "without": [1, 0, 0, np.nan, 0], "with": [1, 1, 0, 1, 1]}
    for name, success in seen.items():
        place = tmp_path / name / "rehearsal" / "lab"
        place.mkdir(parents=True)
        (place / "truth.csv").write_text("frame,x0\n" + "".join(f"{frame},0\n" for frame in (0, 1, 2, 4, 5)))
        lines = [f"{frame},{value}" for frame, value in zip((0, 1, 2, 4, 5), success, strict=True)]
        (place / "frames.csv").write_text("\n".join(["frame,success", *lines, "3,nan"]) + "\n")
        (place / "predicted.csv").write_text("frame,value,success\n0,0.5,1\n2,0.5,1\n4,0.5,1\n")
    success, take = camera_results(tmp_path, "lab")
    np.testing.assert_array_equal(success["lost"], [0, np.nan, 1, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(success["difference"], [0, 1, 0, np.nan, np.nan, 1])
    np.testing.assert_array_equal(success["with"], [1, 1, 0, np.nan, 1, 1])
    assert [len(set(take[rows])) for rows in ([0, 1, 2], [4, 5], [2, 4])] == [1, 1, 2]
    for file, damaged in (
        ("with/rehearsal/lab/frames.csv", ("frame,success\n6,1\n", "frame,success\n-1,1\n", "frame,success\nnan,1\n")),
        (
            "random/rehearsal/lab/truth.csv",
            ("frame\n", "frame\n1\n0\n", "frame\n-1\n", "frame\nnan\n", "frame\n1e12\n"),
        ),
    ):
        for content in damaged:
            (tmp_path / file).write_text(content)
            with pytest.raises(InputError, match=r"\.csv: expected (the )?frames of "):
                camera_results(tmp_path, "lab")


def rows(lab: tuple[float, float, float, float], drive_by: tuple[float, float, float, float], n: int = 9) -> list[Any]:
    """Of all seeds: difference, low, high and p in each part."""
    found = []
    for part, (mean, low, high, p) in (("lab", lab), ("drive_by", drive_by)):
        for name, value in (("random", 0.0), ("without", 0.4), ("with", 0.4 + mean)):
            found.append({"seed": "all", "part": part, "patch": name, "mean": value})
        change = {"mean": mean, "low": low, "high": high, "p_adjusted": p, "n": n}
        found.append({"seed": "all", "part": part, "patch": "difference"} | change)
    return found


def test_the_verdict_needs_interval_and_p() -> None:
    said = verdict(rows((0.2, 0.1, 0.3, 0.01), (-0.2, -0.3, -0.1, 0.01)))
    assert said == (
        "Calibrating pays in the lab: of the frames the patch wins 60 % with it and 40 % without it, +20 % [+10 %, "
        "+30 %]. It costs in the drive-by: of the frames the patch wins 20 % with it and 40 % without it, -20 % "
        "[-30 %, -10 %]."
    )
    for change in ((0.2, -0.1, 0.3, 0.01), (0.2, 0.1, 0.3, 0.06), (-0.2, -0.3, -0.1, 0.06)):
        assert "makes no difference beyond chance in the lab" in verdict(rows(change, change))
    few = verdict(rows((0.2, 0.1, 0.3, 0.01), (0.2, 0.1, 0.3, 0.01), n=5))
    assert few.count("cannot be judged") == 2


def test_each_seed_has_its_printer() -> None:
    assert pair([2, 0], [7, 7]) == {2: 7, 0: 7}
    with pytest.raises(InputError, match="printers: expected one for each of 2 seeds, got 1"):
        pair([0, 1], [3])

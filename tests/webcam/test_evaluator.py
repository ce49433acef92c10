"""Whatever ends a measurement, there is a report of what was measured, and it can be made again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patchattack.attacks.classification import ClassificationAttack
from patchattack.errors import InputError, VictimError
from patchattack.patch import Patch
from patchattack.printing.fiducials import Layout
from patchattack.victims.victim import Victim
from patchattack.webcam.camera_victim import CameraVictim
from patchattack.webcam.capture import Recorded
from patchattack.webcam.evaluator import evaluate
from patchattack.webcam.pose import Lens
from patchattack.webcam.screen import NoScreen
from patchattack.webcam.session import Setup
from patchattack.webcam.summary import SessionOrigin, SessionResult, publish

ORIGIN = SessionOrigin("The patch", [("Source", "film.avi")], "patchattack webcam source=film.avi", {"torch": "2"})


class Failing:
    """A network that fails when it is asked for the time ``at``, from 0."""

    def __init__(self, victim: Victim, error: BaseException, at: int) -> None:
        self.victim, self.error, self.left = victim, error, at

    def __call__(self, frames: Tensor) -> Any:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.victim(frames)


@pytest.fixture
def measure(
    coloured: Callable[[], Victim], patch: Patch, sheet: Layout, photo: Callable[..., np.ndarray], tmp_path: Path
) -> Callable[..., SessionResult]:
    """Four frames with the sheet, of a network that may fail, into ``tmp_path``."""

    def run(error: BaseException | None = None, at: int = 0, progress: Any = iter, images: Any = None) -> SessionResult:
        victim, attack = coloured(), ClassificationAttack("targeted", "sheet")
        network = victim if error is None else Failing(victim, error, at)
        trial = CameraVictim("coloured", victim, attack, network, torch.device("cpu"))
        frames = [photo()] * 4 if images is None else images
        capture = Recorded((None if one is None else one[..., ::-1] for one in frames), 1, 10)
        return evaluate(Setup([trial], patch, [sheet], Lens(60)), capture, NoScreen(), tmp_path, ORIGIN, progress)

    return run


def written(folder: Path) -> tuple[dict[str, Any], str]:
    """Summary and report, which are the same when they are made again."""
    names = ("summary.json", "report.html")
    before = [(folder / name).read_text() for name in names]
    publish(folder)
    assert [(folder / name).read_text() for name in names] == before
    return json.loads(before[0], parse_constant=pytest.fail), before[1]


def test_a_whole_measurement_has_no_faults(measure: Callable[..., SessionResult], tmp_path: Path) -> None:
    outcome = measure()
    summary, page = written(tmp_path)
    assert (outcome.faults, outcome.interrupted, summary["faults"]) == ([], False, [])
    assert outcome.counts == summary["counts"]
    assert "Not all of it" not in page
    assert page.count("<img") == 4


def test_ctrl_c_ends_the_prediction_and_not_the_report(measure: Callable[..., SessionResult], tmp_path: Path) -> None:
    def interrupted(shots: Iterable[Any]) -> Iterator[Any]:
        yield next(iter(shots))
        raise KeyboardInterrupt

    outcome = measure(progress=interrupted)
    said = "interrupted when 1 of 4 frames were predicted"
    summary, page = written(tmp_path)
    assert outcome.interrupted
    assert outcome.faults == summary["faults"] == [said]
    rows = {row["condition"]: row["frames"] for row in summary["victims"]["coloured"]["rows"]}
    assert rows == {"patch": 4, "grey": 4, "predicted": 1}
    assert said in page


@pytest.mark.parametrize(("at", "measured", "predicted"), [(2, 2, 0), (6, 4, 2)])
def test_a_network_that_fails_is_one_line_and_a_report(
    measure: Callable[..., SessionResult], tmp_path: Path, at: int, measured: int, predicted: int
) -> None:
    with pytest.raises(VictimError) as caught:
        measure(RuntimeError("CUDA error:\n  out of luck"), at)
    line = "victim coloured: expected an output for {} scenes at once, got RuntimeError: CUDA error: out of luck"
    line = line.format(3 if at < 4 else 2)
    assert str(caught.value) == f"{line} (the report is of what was measured before: {tmp_path / 'report.html'})"
    summary, page = written(tmp_path)
    assert summary["counts"]["with the sheet"] == measured
    assert len((tmp_path / "predicted.csv").read_text().splitlines()) == 1 + predicted
    assert summary["faults"] == [line]
    assert line in page


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_too_little_memory_is_told_from_other_failures(measure: Callable[..., SessionResult], error: Exception) -> None:
    with pytest.raises(VictimError, match=r"3 scenes at once, got .*; ask about smaller frames than 360 × 640: size="):
        measure(error, 1)


def test_a_network_that_always_fails_has_no_report(measure: Callable[..., SessionResult], tmp_path: Path) -> None:
    with pytest.raises(VictimError, match=r"got ValueError: no$"):
        measure(ValueError("no"))
    assert not (tmp_path / "report.html").exists()


def test_ctrl_c_is_not_taken_for_a_failure(measure: Callable[..., SessionResult]) -> None:
    outcome = measure(KeyboardInterrupt(), 2)
    assert (outcome.interrupted, outcome.counts["with the sheet"]) == (True, 2)


def test_damaged_frames_are_said(
    measure: Callable[..., SessionResult], photo: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    outcome = measure(images=[photo(), None, photo(), photo()])
    assert outcome.faults == ["1 of 4 frames are damaged"]
    assert "Not all of it could be measured: 1 of 4 frames are damaged." in written(tmp_path)[1]


def test_a_mirrored_picture_is_told_from_a_wrong_sheet(
    measure: Callable[..., SessionResult], photo: Callable[..., np.ndarray]
) -> None:
    mirrored = [photo()[:, ::-1]] * 3
    with pytest.raises(InputError, match=r"got its mirror image in 3 of 3 frames; turn the picture with mirrored=true"):
        measure(images=mirrored)

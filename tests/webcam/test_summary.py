from __future__ import annotations

import base64
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from patchattack.errors import InputError
from patchattack.statistics import Outcome
from patchattack.webcam.digital import Prediction
from patchattack.webcam.paper import White
from patchattack.webcam.records import CORNERS, Log, Record, Store, read
from patchattack.webcam.summary import by_stretch, note_predicted, publish, summarise, verdict

NOTED = {
    "title": "The patch",
    "setup": [["Patch", "outputs/x"]],
    "command": "patchattack webcam source=0",
    "versions": {"torch": "2"},
    "rule": "success is x",
    "label": "x",
    "independent_s": 1.0,
    "source": {"frames": 40, "dropped": 24, "gaps": 2},
    "faults": [],
}


def records(folder: Path, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    log = Log(folder / "frames.csv")
    for number, row in enumerate(rows):
        known = {"frame": number, "time": number, "victim": "v", "state": "found", "kind": "patch", "grey_success": 0.0}
        log.write(Record(**{**known, "patch": 0.5, "grey": 0.1, **row}))
    log.close()
    return read(folder / "frames.csv")


def row(found: dict[str, Any], condition: str) -> dict[str, Any]:
    (one,) = (row for row in found["rows"] if row["condition"] == condition)
    return one


def test_neighbouring_frames_count_as_one() -> None:
    values = np.array([1, 1, 0, np.nan, np.nan, 1.0])
    assert by_stretch(values, np.array([0, 0, 1, 1, 2, 5])).tolist() == [1, 0, 1]
    assert by_stretch(np.full(3, np.nan), np.arange(3)).tolist() == []


def test_intervals_are_of_stretches_and_not_of_frames(tmp_path: Path) -> None:
    columns = records(tmp_path, [{"time": n / 30, "success": float(n < 150)} for n in range(300)])
    second, half = (row(summarise(columns, {}, seconds)["v"], "patch") for seconds in (1.0, 0.5))
    assert (second["n"], half["n"], second["frames"]) == (10, 20, 300)
    assert second["mean"] == half["mean"] == 0.5
    assert second["high"] - second["low"] > half["high"] - half["low"] > 0.3


def test_success_falls_with_distance(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    distances = rng.uniform(0.5, 3, 200)
    rows = [{"distance_m": d, "success": float(d < 1.5), "grey_success": 0.0, "tilt": 10.0} for d in distances]
    found = summarise(records(tmp_path, rows), {}, 1.0)["v"]
    points = found["curves"]["distance_m"]["patch"]
    assert [point["n"] for point in points] == pytest.approx([200 / 6] * 6, abs=1)
    assert [point["x"] for point in points] == sorted(point["x"] for point in points)
    assert points[0]["mean"] == 1
    assert points[-1]["mean"] == 0
    assert all(point["low"] - 1e-9 <= point["mean"] <= point["high"] + 1e-9 for point in points)
    assert [point["x"] for point in found["curves"]["distance_m"]["grey"]] == [point["x"] for point in points]
    assert len(found["curves"]["tilt"]["patch"]) == 1  # the same angle everywhere
    assert found["curves"]["light"] == {}  # never known
    assert found["excess"]["low"] > 0


def test_gap_and_destruction_are_of_the_frames_that_were_predicted(tmp_path: Path) -> None:
    # Frames 0..9 are predicted: of eight predicted successes, two failed; frames 10.. would change both.
    success = [1, 1, 1, 1, 1, 1, 0, 0, 0, 1] + [0] * 30
    columns = records(tmp_path, [{"success": float(one)} for one in success])
    predicted = {n: Prediction(0.9, float(n < 8)) for n in range(10)}
    found = summarise(columns, predicted, 1.0)["v"]
    assert found["gap"]["mean"] == pytest.approx(0.1)
    assert found["destroyed"]["mean"] == pytest.approx(2 / 8)
    assert found["destroyed"]["n"] == 8
    assert row(found, "predicted")["frames"] == 10


def test_an_hour_takes_little_memory_in_the_end(tmp_path: Path) -> None:
    records(tmp_path, [{"time": 12.5, "success": 1.0, "distance_m": 0.5}, {"time": 12.5, "success": 0.0}])
    header, *lines = (tmp_path / "frames.csv").read_text().splitlines()
    hour = [line.replace(",12.5,", f",{n / 10},", 1) for n in range(36_000) for line in lines[n % 2 : n % 2 + 1]]
    (tmp_path / "frames.csv").write_text("\n".join([header, *hour]) + "\n")
    del hour
    tracemalloc.start()
    found = summarise(read(tmp_path / "frames.csv"), {}, 0.5)["v"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert row(found, "patch")["n"] == 7200
    assert found["excess"]["low"] > 0.4
    assert peak < 50e6


def test_control_sheets_and_drawn_patches_stand_apart(tmp_path: Path) -> None:
    kinds = {"patch": 1.0, "control": 0.0, "drawn": 0.5}
    columns = records(tmp_path, [{"kind": kind, "success": value} for kind, value in kinds.items() for _ in range(8)])
    found = summarise(columns, {}, 1.0)["v"]
    assert {one["condition"]: one["mean"] for one in found["rows"]} == {**kinds, "grey": 0.0}
    assert row(found, "grey")["frames"] == 8


def test_each_victim_has_its_own_numbers(tmp_path: Path) -> None:
    rows = [{"victim": name, "success": value} for name, value in (("a", 1.0), ("b", 0.0)) for _ in range(8)]
    found = summarise(records(tmp_path, rows), {}, 1.0)
    assert {name: row(one, "patch")["mean"] for name, one in found.items()} == {"a": 1, "b": 0}


@pytest.mark.parametrize(
    ("rows", "outcome", "start"),
    [
        (
            [{"success": 1.0}] * 20,
            Outcome.WORKS,
            "It works on camera: the printed patch won 100 % of the frames",
        ),
        ([{"success": 1.0, "grey_success": 1.0}] * 20, Outcome.FAILS, "It does not work on camera"),
        (
            [{"success": 1.0}] * 5,
            Outcome.INCONCLUSIVE,
            "Inconclusive: 5 stretches of time are too few",
        ),
        ([{"success": 1.0, "kind": "drawn"}] * 9, Outcome.INCONCLUSIVE, "A rehearsal: the patch that was drawn"),
        ([{"success": float("nan")}] * 9, Outcome.INCONCLUSIVE, "Nothing was measured"),
    ],
)
def test_the_verdict(tmp_path: Path, rows: list[dict[str, Any]], outcome: Outcome, start: str) -> None:
    found = summarise(records(tmp_path, rows), {}, 1.0)["v"]
    answer, sentence = verdict(found)
    assert answer is outcome
    assert sentence.startswith(start)


def test_everything_is_written(tmp_path: Path) -> None:
    rows = [{"success": float(n % 2), "distance_m": 1 + n / 10, "tilt": 5.0 * n, "light": 0.5} for n in range(16)]
    records(tmp_path, rows)
    store = Store(tmp_path / "frames", 20)
    corners = np.array([[(4.0, 4), (20, 4), (20, 20), (4, 20)]])
    outline = dict(zip(CORNERS, 10 * corners.ravel(), strict=True))
    camera = np.random.default_rng(0).integers(0, 256, (720, 1280, 3)).astype(np.uint8)  # the worst case of its bytes
    for number, one in enumerate(rows):
        record = Record(number, number, "v", "found", kind="patch", **one, **outline)
        store.offer(record, [np.full((32, 32, 3), 90, np.uint8)], corners, [White(np.zeros((3, 3)))], camera)
    note_predicted(tmp_path, {n: Prediction(1.0, 1.0) for n in range(16)})
    (tmp_path / "session.json").write_text(json.dumps(NOTED))
    outcome = publish(tmp_path)
    assert outcome.verdict.startswith("It works on camera: the printed patch won 50 %")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["counts"] == outcome.counts
    assert (outcome.counts["frames"], outcome.counts["with the sheet"], outcome.faults) == (40, 16, [])
    assert summary["victims"]["v"]["destroyed"]["mean"] == 0.5
    assert (tmp_path / "predicted.csv").read_text().splitlines()[:2] == ["frame,value,success", "0,1,1"]
    page = (tmp_path / "report.html").read_text()
    assert outcome.verdict in page
    assert page.count("<svg") == 2  # of distance and angle; the light never changed
    pictures = [
        cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        for data in re.findall(r'<img src="data:image/png;base64,([^"]*)"', page)
    ]
    assert [picture.shape for picture in pictures] == [(270, 480, 3)] * 12  # what the camera saw, not the victim's 32
    assert len(page) < 7e6
    assert "predicted won" in page
    publish(tmp_path)
    assert (tmp_path / "report.html").read_text() == page


def test_json_has_neither_nan_nor_infinity(tmp_path: Path) -> None:
    endless = {"success": 0.0, "patch": float("inf"), "distance_m": float("inf")}
    records(tmp_path, [endless] * 8 + [endless | {"distance_m": 2.0}] * 8)
    note_predicted(tmp_path, {0: Prediction(0.0, 0.0)})
    publish(tmp_path)
    text = (tmp_path / "summary.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)["victims"]["v"]
    assert found["destroyed"]["mean"] is None
    assert row(found, "patch")["value"] is None
    assert [point["x"] for point in found["curves"]["distance_m"]["patch"]] == [2]
    assert "promised no success" in (tmp_path / "report.html").read_text()


def test_a_report_of_nothing(tmp_path: Path) -> None:
    records(tmp_path, [{"state": "lost", "kind": ""}] * 3)
    assert publish(tmp_path).verdict == "Nothing was measured of the printed patch."


def test_a_report_of_what_a_killed_session_has_left(tmp_path: Path) -> None:
    records(tmp_path, [{"success": 1.0}] * 20)
    table = tmp_path / "frames.csv"
    table.write_text(table.read_text() + "20,20,v,fou")  # the line that was being written
    outcome = publish(tmp_path)
    assert outcome.verdict.startswith("It works on camera")
    assert outcome.counts["frames"] == 20
    assert outcome.faults == ["it was ended before all was written down"]
    assert "ended before all was written down" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("frames.csv", "frame,time\n1,2\n", r"frames\.csv: expected the table that .* got none \(no column "),
        ("frames.csv", "", "got none .no column"),
        ("frames.csv", None, "got none .*No such file"),
        ("session.json", "{", r"session\.json: expected what the evaluator wrote, got .*; remove it"),
        ("session.json", "[1]", "expected what the evaluator wrote"),
        ("session.json", '{"faults": "none"}', "got another faults; remove it"),
        ("predicted.csv", "frame,value,success\n1,2\n", r"predicted\.csv: expected what the evaluator wrote"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    records(tmp_path, [{"success": 1.0}])
    (tmp_path / name).unlink(missing_ok=True)
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        publish(tmp_path)

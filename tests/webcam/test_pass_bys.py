from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchattack.errors import InputError
from patchattack.webcam.pass_bys import PassByRule, lines, pass_bys, summarise
from patchattack.webcam.records import Log, Record, read
from patchattack.webcam.summary import publish

Rows = list[dict[str, Any]]


def records(
    distances: list[float], success: list[float], seconds: float = 0.1, **columns: list[Any]
) -> dict[str, np.ndarray]:
    count = len(distances)
    given = {"distance_m": distances, "success": success, "grey_success": [0.0] * count, **columns}
    known = {"frame": list(range(count)), "time": [seconds * n for n in range(count)]}
    return {k: np.array(v) for k, v in ({"kind": ["patch"] * count, "sheet": [3] * count} | known | given).items()}


def of(rows: Rows, condition: str) -> Rows:
    return [row for row in rows if row["condition"] == condition]


APPROACH = [10.0, 9, 8, 7, 6, 5, 4, 3, 2]


def test_an_approach_by_hand() -> None:
    """Won at 9, 8, 6, 5 and 4 m of 10 to 2: at 6 m for the third time in five frames, first correct at 10 m."""
    rule = PassByRule(until=5, latch=(3, 5), speed=18, reaction=0.5, braking=5)  # 5 m/s: 2.5 m, and 2.5 m to brake
    assert rule.stopping == 5
    patch, grey = pass_bys(records(APPROACH, [0, 1, 1, 0, 1, 1, 1, 0, 0]), rule)
    expected = {
        "number": 0,
        "condition": "patch",
        "sheet": 3,
        "first_frame": 0,
        "last_frame": 8,
        "from_m": 10,
        "to_m": 2,
    }
    expected |= {"frames": 9, "won": 5 / 9, "whole": 0, "latched": 1, "latched_m": 6, "correct_m": 10}
    assert patch == expected | {"collision_s": 2, "missed": 0}
    assert (grey["won"], grey["latched"], grey["correct_m"], grey["missed"]) == (0, 0, 10, 0)
    assert math.isnan(grey["latched_m"])


@pytest.mark.parametrize(
    ("success", "whole", "correct", "missed"),
    [
        ([1.0] * 9, 1, math.nan, 1),  # never correct
        ([1.0] * 5 + [0.0] * 4, 0, 5, 0),  # just in time
        ([1.0] * 6 + [0.0] * 3, 1, 4, 1),
        ([math.nan] * 2 + [1.0] * 4 + [0.0] * 3, 1, 4, 1),  # nothing to win from afar
        ([math.nan] * 6 + [1.0] * 3, math.nan, math.nan, math.nan),  # begins below 5 m: nobody could have stopped
    ],
)
def test_stopping_and_holding(success: list[float], whole: float, correct: float, missed: float) -> None:
    rule = PassByRule(until=5, speed=18, reaction=0.5, braking=5)
    row = pass_bys(records(APPROACH, success), rule)[0]
    np.testing.assert_equal([row[name] for name in ("whole", "correct_m", "missed")], [whole, correct, missed])
    assert math.isnan(pass_bys(records(APPROACH, success), PassByRule())[0]["missed"])  # nobody asked


def test_a_model_of_the_road_needs_less_room() -> None:
    assert PassByRule(speed=36, reaction=1, braking=5, scale=10).stopping == pytest.approx(2)
    row = pass_bys(records(APPROACH, [1.0] * 8 + [0.0]), PassByRule(speed=36, reaction=1, braking=5, scale=10))[0]
    assert (row["correct_m"], row["collision_s"], row["missed"]) == (2, 2, 0)


@pytest.mark.parametrize(
    ("distances", "seconds", "columns", "expected"),
    [
        (APPROACH * 2, 0.1, {}, [(0, 8), (9, 17)]),  # cut to the beginning
        (APPROACH + APPROACH[::-1] + APPROACH, 0.1, {}, [(0, 8), (17, 26)]),  # there, back and there again
        ([5.0, 10, 9, 4.4, 4.0, 4.5], 0.1, {}, [(1, 4)]),  # from the farthest to the nearest
        ([10.0, 9.8, 9.6, 9.4], 0.1, {}, []),  # beside it
        (APPROACH[::-1], 0.1, {}, []),  # away from it
        ([*APPROACH[:4], math.nan, math.nan, *APPROACH[4:]], 0.1, {}, [(0, 10)]),
        (APPROACH, 1.1, {}, []),  # every frame after a second without the sheet
        (APPROACH, 0.1, {"time": [0, 0.1, 0.2, 0.3, 0.4, 1.5, 1.6, 1.7, 1.8]}, [(0, 4), (5, 8)]),
        (APPROACH, 0.1, {"sheet": [3] * 5 + [4] * 4, "kind": ["patch"] * 5 + ["control"] * 4}, [(0, 4), (5, 8)]),
        ([], 0.1, {}, []),
    ],
)
def test_pass_bys_are_told_apart(
    distances: list[float], seconds: float, columns: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    rows = pass_bys(records(distances, [1.0] * len(distances), seconds, **columns), PassByRule())
    found = {row["number"]: (row["first_frame"], row["last_frame"]) for row in rows}
    assert list(found.values()) == expected


def test_a_pass_by_counts_once() -> None:
    """One of many frames, all of them won, and nine of a few, none won."""
    long = np.linspace(10, 2, 80).tolist()
    rows = pass_bys(records(long + APPROACH * 9, [1.0] * 80 + [0.0] * 81, 0.05), PassByRule())
    patch, grey = summarise(rows)
    assert (patch["n"], patch["won"]["mean"], patch["whole"]["mean"]) == (10, 0.1, 0.1)
    assert 0.35 < patch["won"]["high"] < 0.45  # Wilson's of 1 in 10
    assert patch["correct_m"] == {"mean": 10, "low": 10, "high": 10, "n": 9}
    assert "missed" not in patch
    assert grey["latched"]["mean"] == 0
    assert lines([patch])[0].startswith("patch    10 pass-bys: frames won 0.10 [")
    assert lines([]) == ["no pass-by was recorded: the camera never came nearer to the sheet by a factor of 1.5"]


def test_controls_stand_apart() -> None:
    sheets = {"kind": ["patch"] * 9 + ["control"] * 9, "sheet": [3] * 9 + [4] * 9}
    rows = pass_bys(records(APPROACH * 2, [1.0] * 9 + [0.0] * 9, **sheets), PassByRule())
    assert [(row["number"], row["condition"], row["won"]) for row in rows] == [
        (0, "patch", 1),
        (0, "grey", 0),
        (1, "control", 0),
    ]


def write(folder: Path, distances: list[float]) -> None:
    log = Log(folder / "frames.csv")
    measured = {"patch": 0.5, "grey": 0.1, "success": 1.0, "grey_success": 0.0}
    for number, distance in enumerate(distances):
        log.write(Record(number, number / 10, "v", "found", 3, "patch", distance_m=distance, **measured))
    log.close()


def test_they_are_written_and_reported_and_can_be_asked_again(tmp_path: Path) -> None:
    write(tmp_path, APPROACH * 7)
    outcome = publish(tmp_path)
    assert [(row["condition"], row["n"]) for row in outcome.pass_bys] == [("patch", 7), ("grey", 7)]
    page = (tmp_path / "report.html").read_text()
    assert "100 %<small>[65 %, 100 %]</small>" in page
    assert "would not stop" not in page
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["victims"]["v"]["pass_bys"][0]["latched"]["mean"] == 1
    assert summary["pass_by"]["latch"] == [3, 5]
    publish(tmp_path, {"speed": 18.0, "latch": [9, 9]})
    with (tmp_path / "pass_bys.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 14
    assert {key: table[2][key] for key in ("victim", "number", "condition", "from_m", "latched_m", "missed")} == {
        "victim": "v",
        "number": "1",
        "condition": "patch",
        "from_m": "10",
        "latched_m": "2",
        "missed": "1",
    }
    page = (tmp_path / "report.html").read_text()
    assert "nearer than the 7.08 m that it takes to stop from 18 km/h" in page
    assert "9 of 9 frames in a row" in page


def test_a_recording_without_any_says_so(tmp_path: Path) -> None:
    write(tmp_path, [3.0, 2.9, 2.8])
    assert publish(tmp_path).pass_bys == []
    assert "None was recorded. A pass-by ends where" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "pass_bys.csv").read_text() == "victim\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"latch": (5, 3)}, r"pass_by.latch: expected \[N, M\] with 1 <= N <= M, got"),
        ({"latch": 3}, "pass_by.latch"),
        ({"speed": 0}, "pass_by.speed: expected a number above 0, got 0"),
        ({"until": -1.0}, "pass_by.until"),
        ({"braking": "hard"}, "pass_by.braking: expected a number above 0, got hard"),
        ({"reaction": None}, "pass_by.reaction"),
    ],
)
def test_what_cannot_be_asked_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PassByRule(**given)


def test_a_session_without_a_rule_has_the_standard_one(tmp_path: Path) -> None:
    write(tmp_path, APPROACH)
    (tmp_path / "session.json").write_text("{}")
    assert publish(tmp_path).pass_bys[0]["n"] == 1
    (tmp_path / "session.json").write_text('{"pass_by": {"speed": -3}}')
    with pytest.raises(InputError, match=r"session\.json: expected what the evaluator wrote, got .*pass_by.speed"):
        publish(tmp_path)
    assert read(tmp_path / "frames.csv")["frame"].tolist() == list(range(9))

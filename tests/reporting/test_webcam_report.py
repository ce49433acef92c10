from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from patchattack.reporting.webcam import CONDITIONS, Curve, Field, Photo, Section, write_field
from patchattack.statistics import Outcome

pytestmark = pytest.mark.figures


def some_field() -> Field:
    points = [{"x": float(n), "mean": 0.5, "low": 0.2, "high": 0.8, "n": 9.0} for n in range(3)]
    row = {"mean": 0.5, "low": 0.2, "high": 0.8, "n": 9, "frames": 90, "value": 0.123}
    cell = {"mean": 0.42, "low": 0.2, "high": 0.8, "n": 7}
    section = Section(
        victim="flow <net>",
        rows=[{"condition": condition} | row for condition in CONDITIONS],
        pass_bys=[
            {"condition": "patch", "n": 7, "won": cell, "correct_m": cell | {"mean": 1.5}, "latched": cell | {"n": 5}}
        ],
        curves=[Curve("distance (m)", {"patch": points, "predicted": points}), Curve("angle (°)", {"grey": points})],
        gap={"mean": 0.25, "low": 0.1, "high": 0.4},
        destroyed={"mean": 0.3, "low": 0.2, "high": 0.5, "n": 40},
    )
    return Field(
        title="Sheet <3>",
        verdict="It works & how.",
        facts="The digital patch wins more.",
        faults=["it stopped answering"],
        outcome=Outcome.WORKS,
        rule="Success is x.",
        label="success rate",
        independent=0.5,
        pass_bys="A pass-by is <so>.",
        columns={"frames won": ("won", "the mean"), "latched": ("latched", "3 of 5"), "late": ("missed", "too late")},
        counts=[("frames", 120), ("dropped", 3)],
        sections=[section],
        won=[Photo(torch.rand(3, 12, 16), "frame 7: 1.20 m")],
        lost=[],
        setup=[("Source", "rtsp://camera")],
        command="patchattack webcam run='x y'",
        versions={"torch": "2.15.0"},
    )


def page_of(folder: Path, field: Field) -> str:
    write_field(folder / "report.html", field)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_shows_everything_and_escapes_it(tmp_path: Path) -> None:
    page = page_of(tmp_path, some_field())
    for text in (
        *("Sheet &lt;3&gt;", "It works &amp; how.", "flow &lt;net&gt;", "frame 7: 1.20 m", "run=&#39;x y&#39;"),
        *("Success is x.", "0.123", "25 % [10 %, 40 %]", "30 % [20 %, 50 %] of 40", "rtsp://camera", "Dropped"),
        "Not all of it could be measured: it stopped answering.",
        *CONDITIONS.values(),
    ):
        assert text in page
    assert page.count("<svg") == 2
    assert "Where it worked" in page
    assert "Where it did not" not in page


def test_the_page_asks_nothing_of_anybody(tmp_path: Path) -> None:
    page = page_of(tmp_path, some_field())
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_the_same_field_gives_the_same_bytes(tmp_path: Path) -> None:
    field = some_field()
    assert page_of(tmp_path, field) == page_of(tmp_path, field)


def test_curves_are_in_the_colours_of_the_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, some_field())
    assert "var(--patch)" in page
    assert "100 %" in page


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Outcome.WORKS, "The printed patch works"),
        (Outcome.FAILS, "The printed patch does not work"),
        (Outcome.INCONCLUSIVE, "Inconclusive"),
    ],
)
def test_without_curves_gap_or_photos_there_is_still_a_page(tmp_path: Path, outcome: Outcome, words: str) -> None:
    bare = replace(some_field().sections[0], curves=[], gap=None, destroyed=None)
    unknown = [row | {"mean": math.nan, "low": math.nan, "high": math.nan} for row in bare.rows]
    page = page_of(
        tmp_path, replace(some_field(), sections=[replace(bare, rows=unknown)], won=[], faults=[], outcome=outcome)
    )
    assert "Not all" not in page
    assert "<svg" not in page
    assert "gap" not in page.split("</style>")[1]
    assert "nan" not in page.split("</style>")[1].lower()
    assert f'<p class="state">{words}</p>' in page

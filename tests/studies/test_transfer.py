"""Patches of several runs on several victims."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., Any], tiny: tuple[str, ...]) -> list[Path]:
    folders = []
    for network in ("matching", "encoder_decoder"):
        folder = tmp_path_factory.mktemp("runs") / network
        assert command("attack=flow", f"victim=flow_{network}", *tiny, f"output={folder}").status == 0
        folders.append(folder)
    return folders


def test_every_patch_meets_every_victim(
    runs: list[Path], tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...]
) -> None:
    arguments = (
        "attack=flow",
        f"runs=[{runs[0]},{runs[1]}]",
        "victims=[flow_matching,flow_encoder_decoder]",
        "victims.flow_matching.weights=random",
        *(one for one in tiny if not one.startswith("victim")),
        f"output={tmp_path / 'table'}",
    )
    outcome = command(*arguments, entry="transfer")
    assert outcome.status == 0, outcome.err
    rows = json.loads((tmp_path / "table" / "transfer.json").read_text())
    patches, victims = {row["patch"] for row in rows}, {row["victim"] for row in rows}
    assert patches == {"clean", "grey", "white", "black", "drawn", "random", "flow_matching", "flow_encoder_decoder"}
    assert victims == {"flow_matching", "flow_encoder_decoder"}
    assert len(rows) == 16
    assert all(row["low"] <= row["mean"] <= row["high"] and row["n"] == 2 for row in rows)
    page = (tmp_path / "table" / "transfer.html").read_text()
    assert all(f"<th>{patch}</th>" in page for patch in patches)
    assert "<script" not in page
    assert all(patch in outcome.out for patch in patches)
    # The row of a victim's own run is what that run has measured: the same scenes, the same draws.
    (own,) = (row for row in rows if (row["patch"], row["victim"]) == ("flow_matching", "flow_matching"))
    results = json.loads((runs[0] / "results.json").read_text())
    (same,) = (
        row
        for row in results
        if (row["condition"], row["metric"], row["region"]) == ("patch", own["metric"], own["region"])
    )
    assert own["mean"] == pytest.approx(same["mean"], abs=0.02)  # the patch has been through a file of 8 bits


def test_an_image_is_a_patch_too_and_runs_leave_out_what_they_have_seen(
    runs: list[Path], tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...]
) -> None:
    cv2.imwrite(str(tmp_path / "photo.png"), np.full((8, 16, 3), 90, np.uint8))
    arguments = (
        "attack=flow",
        f"runs=[{tmp_path / 'photo.png'},{runs[0]}]",
        "size_mm=80",
        "victims=[flow_matching]",
        "victims.flow_matching.weights=random",
        *(one for one in tiny if not one.startswith("victim")),
        "trainer.split=[0.25,0.25,0.5]",  # of its last four scenes, the run has seen two
        f"output={tmp_path / 'table'}",
    )
    outcome = command(*arguments, entry="transfer")
    assert outcome.status == 0, outcome.err
    rows = {row["patch"]: row for row in json.loads((tmp_path / "table" / "transfer.json").read_text())}
    assert rows.keys() == {"clean", "grey", "white", "black", "drawn", "random", "photo", "flow_matching"}
    assert {row["n"] for row in rows.values()} == {2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "runs: expected the folders of runs, got none"),
        (["runs=[nowhere]"], "nowhere/patch.png"),
        (["runs=[nowhere.jpg]"], "patch: expected a readable image file, got nowhere.jpg"),
    ],
)
def test_bad_input_is_one_line(
    command: Callable[..., Any], tiny: tuple[str, ...], given: list[str], message: str
) -> None:
    rest = [one for one in tiny if not one.startswith("victim")]
    outcome = command("attack=flow", "victims=[flow_matching]", *rest, *given, entry="transfer")
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1

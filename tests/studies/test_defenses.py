"""Victims × defences, from the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from patchattack import files
from patchattack.attacks.detection import DetectionAttack
from patchattack.data.world import World
from patchattack.defenses.object_seeker import ObjectSeeker
from patchattack.errors import InputError
from patchattack.patch import Patch
from patchattack.studies import defenses
from patchattack.victims.compact.detection import CompactDetector
from patchattack.victims.defended import Defended

COLUMNS = ("clean", "random", "transferred", "adaptive")


@pytest.fixture(scope="module")
def base(tiny: tuple[str, ...]) -> tuple[str, ...]:
    """A run on signs that takes a second."""
    kept = [one for one in tiny if not one.startswith(("data.size", "trainer.steps"))]
    return (*kept, "data.size=[32,32]", "trainer.steps=2", "attack=classification")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., Any], base: tuple[str, ...]) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undefended"
    outcome = command(*base, f"output={folder}")
    assert outcome.status == 0, outcome.err
    return folder


def test_a_run_trains_through_the_defence_and_says_so(
    tmp_path: Path, command: Callable[..., Any], base: tuple[str, ...], trained: Path
) -> None:
    outcome = command(*base, "defense=[bit_depth,jpeg]", "defense.jpeg.quality=40", f"output={tmp_path / 'run'}")
    assert outcome.status == 0, outcome.err
    assert "classifier_residual behind bit_depth+jpeg" in outcome.out
    facts = json.loads((tmp_path / "run" / "patch.json").read_text())
    assert facts["victims"] == ["classifier_residual behind bit_depth+jpeg"]
    # The gradient came through the defence: the patch is another one than without it.
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() != (
        trained / "checkpoint.safetensors"
    ).read_bytes()


def test_the_table_has_every_pair_and_goes_on_where_it_stopped(
    tmp_path: Path, command: Callable[..., Any], trained: Path
) -> None:
    folder = tmp_path / "table"
    given = (f"run={trained}", f"output={folder}")
    first = command(*given, "defenses=[bit_depth]", entry="defenses")
    assert first.status == 0, first.err
    before = (folder / "defenses.json").read_text()

    options = ("defenses=[bit_depth,patch_cleanser]", "defenses.patch_cleanser.masks=2")
    refused = command(*given, *options, entry="defenses")
    assert refused.status == 2
    assert "got other ones: defenses.patch_cleanser.masks=2" in refused.err
    assert (folder / "defenses.json").read_text() == before

    second = command(*given, "defenses=[bit_depth,median]", entry="defenses")
    assert second.status == 0, second.err
    assert "defence: median" in second.err + second.out
    assert "defence: bit_depth" not in second.err + second.out  # its rows are there
    assert (folder / "defenses.json").read_text().startswith(before.rstrip("]\n"))

    rows = json.loads((folder / "defenses.json").read_text())
    assert {row["defense"] for row in rows} == {"none", "bit_depth", "median"}
    for defense in ("none", "bit_depth", "median"):
        mine = {(row["condition"], row["metric"]): row for row in rows if row["defense"] == defense}
        assert {("clean", "accuracy"), *((one, "success") for one in COLUMNS)} <= mine.keys()
        assert mine["clean", "accuracy"]["n"] == 2
        for one in ("transferred", "adaptive"):
            assert 0 < mine[one, "excess"]["p"] <= 1
    assert (folder / "adaptive" / "classifier_residual-median" / "patch.png").is_file()

    with (folder / "defenses.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert "https://" not in page
    assert all(f"<th>{one}</th>" in page for one in ("none", "bit_depth", "median"))
    whole = (folder / "defenses.json").read_text()
    for damaged in ("[", "7", [{"victim": "a"}], rows[:2], [row | {"mean": "1"} for row in rows]):
        (folder / "defenses.json").write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
        with pytest.raises(InputError, match=r"defenses\.json: expected what a run has written"):
            files.read_again(folder / "defenses.json", defenses._read)
    without_p = [{key: value for key, value in row.items() if key != "p"} for row in rows]
    (folder / "defenses.json").write_text(json.dumps(without_p))
    with pytest.raises(InputError, match="expected p of every excess"):
        files.read_again(folder / "defenses.json", defenses._read)
    (folder / "defenses.json").write_text(whole)
    assert len(files.read_again(folder / "defenses.json", defenses._read)) == len(rows)

    table = [line for line in second.out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3
    assert table[0] == (
        "| victim | defence | fraction of scenes that are classified as they are labelled "
        "| random | transferred | adaptive |"
    )


def test_an_adaptive_patch_begins_as_the_transferred_one(
    tmp_path: Path, command: Callable[..., Any], trained: Path
) -> None:
    outcome = command(f"run={trained}", "defenses=[jpeg]", "optimizer.lr=0", f"output={tmp_path}", entry="defenses")
    assert outcome.status == 0, outcome.err
    adaptive = Patch.load(tmp_path / "adaptive" / "classifier_residual-jpeg" / "patch.png")
    assert torch.equal(adaptive(), Patch.load(trained / "patch.png")())


def test_what_is_certified_stands_beside_it(tmp_path: Path, command: Callable[..., Any], trained: Path) -> None:
    options = ("defenses=[patch_cleanser]", "defenses.patch_cleanser.masks=2", f"output={tmp_path}")
    outcome = command(f"run={trained}", *options, entry="defenses")
    assert outcome.status == 0, outcome.err
    rows = json.loads((tmp_path / "defenses.json").read_text())
    (certified,) = (row for row in rows if row["condition"] == "certified")
    (clean,) = (
        row
        for row in rows
        if (row["defense"], row["condition"], row["metric"]) == ("patch_cleanser", "clean", "accuracy")
    )
    assert certified["defense"] == "patch_cleanser"
    assert certified["mean"] <= clean["mean"]
    assert outcome.out.count("| – |") == 1  # without a defence nothing is proved
    assert "Certified" in (tmp_path / "report.html").read_text()


def test_objects_are_certified_by_the_place_of_the_patch(tmp_path: Path) -> None:
    world = World(scenes=2, size=(64, 128), frames=1, subject="vehicle", supersampling=1)
    victim = CompactDetector("centre", weights="random")
    attack = DetectionAttack(goal="hide", target="vehicle", min_height=4).bound(victim, world)
    behind = Defended(victim, [ObjectSeeker(lines=2)])
    fabric = SimpleNamespace(device="cpu", autocast=nullcontext)
    job: Any = SimpleNamespace(attack=attack, victim=behind, fabric=fabric, source=attack.scenes(world, victim))
    proved = defenses._certified(job, [0, 1])
    assert {key: len(values) for key, values in proved.items()} == {
        ("recall", place): 2 for place in ("far", "close", "over")
    }
    job.victim = victim
    assert defenses._certified(job, [0, 1]) == {}

    value = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 2, "p": 0.5}
    rows = [
        {"victim": "a", "defense": defense, "condition": condition, "metric": metric, "region": "all"} | value
        for defense in ("none", "object_seeker")
        for condition in COLUMNS
        for metric in ("ap50", "recall", "excess")
    ]
    rows += [
        {"victim": "a", "defense": "object_seeker", "condition": "certified", "metric": "recall", "region": place}
        | value
        for place in ("far", "close", "over")
    ]
    parts = SimpleNamespace(attack=attack, source=world)
    study: Any = SimpleNamespace(parts=parts, victims={"a": victim}, command="patchattack defenses")
    head, _, alone, seeker = [line for line in defenses.publish(study, rows, tmp_path).splitlines() if "|" in line]
    assert head.endswith("| adaptive | certified, far | certified, close | certified, over |")
    assert alone.endswith("| – | – | – |")
    assert "–" not in seeker
    assert "can hide, proved, by where it lies" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("attack=classification", "defenses=[jpeg]"), "run: expected the folder of a run"),
        (("run=RUN",), "defenses: expected at least one, got none"),
        (("run=RUN", "defenses=[jpg]"), "did you mean jpeg?"),
        (("run=RUN", "defenses=[jpeg]", "patch.resolution=24"), "run: expected a patch in the shape and resolution"),
        (
            ("run=RUN", "defenses=[saliency]", "victims=[depth_unet]"),
            "defense: expected a victim for classification, where saliency is defined, got depth_unet for depth",
        ),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, command: Callable[..., Any], trained: Path, given: tuple[str, ...], message: str
) -> None:
    overrides = [one.replace("RUN", str(trained)) for one in given]
    outcome = command(*overrides, f"output={tmp_path / 'table'}", entry="defenses")
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1

"""Every task and every published set-up through the one command, as small as the world allows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patchattack import files
from patchattack.controls import NO_RIVALS, controls
from patchattack.patch import Patch

EXPERIMENTS = sorted(path.stem for path in (files.package_folder("conf") / "experiment").glob("*.yaml"))
SMALL = {
    "classification": ("data.scenes=32", "data.size=[32,32]"),
    "depth": ("data.scenes=8", "data.size=[32,64]"),
    "detection": ("data.scenes=12", "data.size=[64,128]", "attack.min_height=6"),
    "flow": ("data.scenes=8", "data.size=[32,64]"),
}
TASKS = {  # a region of the primary metric, and conditions beside clean, grey, random and patch
    "classification": ("success", {"photo"}),
    "depth": ("gap", set()),
    "detection": ("recall", set()),
    "flow": ("cosine", set()),
}


@pytest.fixture(scope="module")
def training(tiny_training: tuple[str, ...]) -> tuple[str, ...]:
    return (*(one for one in tiny_training if not one.startswith("victim")), "data.supersampling=1")


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.figures
@pytest.mark.parametrize("task", SMALL)
def test_a_task_runs_from_its_attack_alone(
    task: str, tmp_path: Path, command: Callable[..., Any], training: tuple[str, ...]
) -> None:
    outcome = command(f"attack={task}", *training, *SMALL[task], f"output={tmp_path / 'run'}")
    assert outcome.status == 0, outcome.err
    primary_metric, others = TASKS[task]
    found = rows(tmp_path / "run")
    assert {row["condition"] for row in found} == {"drawn", *NO_RIVALS, *controls(Patch.create())} | others
    assert {row["condition"] for row in found if row["metric"] == primary_metric} == {row["condition"] for row in found}
    values = [row["mean"] for row in found if row["metric"] == primary_metric and row["n"]]
    assert values
    assert all(map(math.isfinite, values))
    report = (tmp_path / "run" / "report.html").read_text()
    assert report.count("Output, optimised patch") >= 1
    assert Patch.load(tmp_path / "run" / "patch.png").mask.shape[-1] == 16
    again = command(str(tmp_path / "run"), str(tmp_path / "run"), f"output={tmp_path / 'both'}", entry="compare")
    assert again.status == 0, again.err
    assert (
        next(row["label"] for row in found if row["metric"] == primary_metric)
        in (tmp_path / "both" / "report.html").read_text()
    )


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_published_set_up_is_one_command(
    experiment: str, tmp_path: Path, command: Callable[..., Any], training: tuple[str, ...]
) -> None:
    task = (
        (files.package_folder("conf") / "experiment" / f"{experiment}.yaml")
        .read_text()
        .split("/attack: ")[1]
        .split()[0]
    )
    small = (*training, *SMALL[task])
    if experiment == "one_place":  # the keys of the source that its scene comes from
        small = tuple(one.replace("data.s", "data.source.s") for one in small)
    outcome = command(f"experiment={experiment}", *small, f"output={tmp_path / 'run'}")
    assert outcome.status == 0, outcome.err
    assert {row["condition"] for row in rows(tmp_path / "run")} >= {"clean", "grey", "random", "patch"}


@pytest.mark.parametrize("combine", ["mean", "worst", "random"])
def test_an_ensemble_is_a_list_of_victims(
    combine: str, tmp_path: Path, command: Callable[..., Any], training: tuple[str, ...]
) -> None:
    members = "victim=[flow_matching,flow_encoder_decoder]"
    outcome = command(
        "attack=flow", members, f"victim.combine={combine}", *training, *SMALL["flow"], f"output={tmp_path / 'run'}"
    )
    assert outcome.status == 0, outcome.err
    metrics = {row["metric"] for row in rows(tmp_path / "run")}
    assert {"cosine", "cosine/flow_matching", "cosine/flow_encoder_decoder"} <= metrics
    facts = json.loads((tmp_path / "run" / "patch.json").read_text())
    assert facts["victims"] == ["flow_matching", "flow_encoder_decoder"]


def test_an_ensemble_at_random_resumes_to_the_bit(
    tmp_path: Path, command: Callable[..., Any], training: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from patchattack import checkpoint

    arguments = ("attack=flow", "victim=[flow_matching,flow_encoder_decoder]", "victim.combine=random", *training)
    arguments = (*arguments, *SMALL["flow"])
    assert command(*arguments, f"output={tmp_path / 'whole'}").status == 0
    save = checkpoint.save

    def interrupted(job: Any, folder: Path, progress: Any) -> None:
        save(job, folder, progress)
        if progress.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patches:
        patches.setattr(checkpoint, "save", interrupted)
        assert command(*arguments, f"output={tmp_path / 'halved'}").status == 130
    assert command(f"resume={tmp_path / 'halved'}").status == 0
    whole, halved = ((tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("whole", "halved"))
    assert whole == halved


def test_members_of_different_tasks_are_refused(command: Callable[..., Any], training: tuple[str, ...]) -> None:
    outcome = command("attack=flow", "victim=[flow_matching,depth_unet]", *training, *SMALL["flow"])
    assert outcome.status == 2
    assert "expected an ensemble of victims for one task" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("task", ["classification", "depth", "detection"])
def test_data_of_two_frames_is_refused_by_a_network_of_one(
    task: str, command: Callable[..., Any], training: tuple[str, ...]
) -> None:
    outcome = command(f"attack={task}", "data=world", "placement=uniform", *training, *SMALL["flow"])
    assert outcome.status == 2
    assert outcome.err.count("\n") == 1

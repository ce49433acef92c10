"""A network that learns what a victim answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from patchattack.errors import InputError, VictimError
from patchattack.job import Settings
from patchattack.scene import Scene, Source
from patchattack.studies import substitute
from patchattack.studies.substitute import Notebook, Recipe, SubstituteStudy, learn
from patchattack.victims.substitute import Substitute
from patchattack.victims.victim import ClassificationVictim

COLOURS = ("red", "green", "blue")


class Colours(Source):
    """Frames of one colour each, with noise."""

    def __init__(self, scenes: int, size: int = 16) -> None:
        generator = torch.Generator().manual_seed(0)
        colour = torch.rand(scenes, 1, 3, 1, 1, generator=generator) * 0.8 + 0.1
        noise = torch.rand(scenes, 1, 3, size, size, generator=generator) * 0.2 - 0.1
        self.frames = ((colour + noise) * 255).byte()

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Scene:
        return Scene(self.frames[index : index + 1], torch.tensor([index]))


class Brightest(ClassificationVictim):
    """Says which channel is the brightest, as a label; gives up after ``patience`` questions."""

    def __init__(self, name: str = "brightest") -> None:
        super().__init__(torch.nn.Identity(), name, COLOURS)
        self.differentiable = False
        self.asked = 0
        self.patience = 10**9

    def logits(self, images: Tensor) -> Tensor:
        if self.asked + len(images) > self.patience:
            raise VictimError("victim brightest: expected an answer, got nothing")
        self.asked += len(images)
        return torch.eye(3)[images.mean(dim=(2, 3)).argmax(dim=1)] * 27 - 27


class Processor:
    """What learning asks of Fabric."""

    device = torch.device("cpu")

    def autocast(self) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()


def trial(victim: ClassificationVictim, scenes: int = 20, **options: Any) -> SubstituteStudy:
    given = {"rounds": 2, "queries": 30, "epochs": 1, "batch": 4, "size": (16, 16), **options}
    settings = Settings(steps=1, batch=1, split=(0.5, 0.25, 0.25))
    return SubstituteStudy(victim, Colours(scenes), Recipe(**given), settings, seed=0)


def taught(victim: ClassificationVictim, folder: Path, **options: Any) -> Notebook:
    return learn(trial(victim, **options), Processor(), folder)  # type: ignore[arg-type]


def test_the_points_double_up_to_the_budget_and_each_is_asked_once(tmp_path: Path) -> None:
    victim = Brightest()
    notebook = taught(victim, tmp_path)
    assert [row["queries"] for row in notebook.rows] == [10, 20, 30]
    assert [row["round"] for row in notebook.rows] == [0, 1, 2]
    assert len(notebook.points) == len(notebook.answers) == 30
    assert victim.asked == 30 + 5  # and the scenes that it is measured on
    assert all(row["low"] <= row["agreement"] <= row["high"] and row["n"] == 5 for row in notebook.rows)
    few = taught(Brightest(), tmp_path / "few", queries=6)
    assert [row["queries"] for row in few.rows] == [6]
    alone = taught(Brightest(), tmp_path / "alone", rounds=0)
    assert [row["queries"] for row in alone.rows] == [10]


def test_a_label_is_enough_to_learn_from(tmp_path: Path) -> None:
    notebook = taught(Brightest(), tmp_path, scenes=160, rounds=1, queries=160, epochs=8, batch=16)
    assert notebook.rows[-1]["agreement"] > 0.8  # a third by chance
    assert notebook.rows[-1]["n"] == 40


def test_a_substitute_is_a_victim_with_gradient(tmp_path: Path) -> None:
    taught(Brightest(), tmp_path)
    victim = Substitute(tmp_path)
    assert (victim.name, victim.classes, victim.size) == ("substitute_of_brightest", COLOURS, (16, 16))
    assert victim.differentiable
    frames = torch.rand(2, 1, 3, 24, 20, generator=torch.Generator().manual_seed(0)).requires_grad_()
    victim(frames).sum().backward()
    assert frames.grad is not None
    assert frames.grad.abs().sum() > 0
    assert not any(value.requires_grad for value in victim.parameters())
    note = json.loads((tmp_path / "substitute.json").read_text())
    assert note["queries"] == 35
    assert note["victim"] == "brightest"
    with pytest.raises(InputError, match=r"expected the folder of a substitute, with substitute\.json, got .*nowhere"):
        Substitute(tmp_path / "nowhere")


def test_the_same_seed_teaches_the_same(tmp_path: Path) -> None:
    frames = Colours(4).frames.float() / 255
    first, second = (taught(Brightest(), tmp_path / name) and Substitute(tmp_path / name) for name in ("a", "b"))
    assert torch.equal(first(frames), second(frames))


@pytest.mark.parametrize("patience", [4, 13, 33])
def test_what_was_answered_is_kept_and_not_asked_again(tmp_path: Path, patience: int) -> None:
    impatient = Brightest()
    impatient.patience = patience
    with pytest.raises(VictimError):
        taught(impatient, tmp_path)
    victim = Brightest()
    notebook = taught(victim, tmp_path)
    assert [row["queries"] for row in notebook.rows] == [10, 20, 30]
    assert impatient.asked + victim.asked == 35
    uninterrupted = taught(Brightest(), tmp_path / "whole")
    assert torch.equal(notebook.points[:10], uninterrupted.points[:10])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process to kill")
@pytest.mark.parametrize("answered", [4, 13, 30])
def test_a_run_that_is_killed_asks_nothing_twice(tmp_path: Path, answered: int) -> None:
    class Deadly(Brightest):
        def logits(self, images: Tensor) -> Tensor:
            if self.asked >= answered:
                os.kill(os.getpid(), signal.SIGKILL)
            logits = super().logits(images)
            (tmp_path / "asked").write_text(str(self.asked))
            return logits

    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # torch's threads stay behind
        child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        taught(Deadly(), tmp_path / "run")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    victim = Brightest()
    notebook = taught(victim, tmp_path / "run")
    assert [row["queries"] for row in notebook.rows] == [10, 20, 30]
    assert int((tmp_path / "asked").read_text()) + victim.asked == 35


def test_a_notebook_is_one_victims(tmp_path: Path) -> None:
    taught(Brightest(), tmp_path)
    with pytest.raises(InputError, match="expected answers of darkest with 3 classes, got those of brightest with 3"):
        taught(Brightest("darkest"), tmp_path)
    (tmp_path / "answers.safetensors").write_bytes(b"nothing of ours")
    with pytest.raises(InputError, match="expected the answers of an earlier run"):
        taught(Brightest(), tmp_path)


NOTED = {"victim": "brightest", "round": 0, "rows": []}
HELD: dict[str, Tensor] = {
    "points": torch.zeros(2, 1, 3, 16, 16, dtype=torch.uint8),
    "answers": torch.zeros(1, 3),
    "held_out": torch.zeros(1, 3),
}


@pytest.mark.parametrize(
    "damaged",
    [
        {"note": 7},
        {"note": {"round": 0, "rows": []}},
        *(
            {"note": NOTED | one}
            for one in ({"round": "0"}, {"round": -1}, {"round": 2}, {"rows": 7}, {"rows": [7]}, {"rows": [{}]})
        ),
        *({"points": torch.zeros(*shape)} for shape in ((2, 1, 3, 16, 16), (2, 3))),
        {"points": HELD["points"][0]},
        {"answers": torch.zeros(3)},
        {"answers": torch.zeros(3, 3)},
        {"answers": torch.zeros(1, 2)},
        {"held_out": torch.full((1, 3), float("nan"))},
        {"held_out": torch.zeros(1, 2)},
    ],
    ids=lambda one: "-".join(one),
)
def test_a_notebook_that_is_damaged_is_refused(tmp_path: Path, damaged: dict[str, Any]) -> None:
    held = {name: damaged.get(name, value) for name, value in HELD.items()}
    path = tmp_path / "answers.safetensors"
    path.write_bytes(safetensors.torch.save(held, {"notebook": json.dumps(damaged.get("note", NOTED))}))
    with pytest.raises(InputError, match=r"answers\.safetensors: expected (the )?answers of "):
        Notebook.read(path, Brightest())


def test_answers_about_more_scenes_than_there_are_are_refused(tmp_path: Path) -> None:
    held = HELD | {"held_out": torch.zeros(9, 3)}
    (tmp_path / "answers.safetensors").write_bytes(safetensors.torch.save(held, {"notebook": json.dumps(NOTED)}))
    with pytest.raises(InputError, match="expected answers about 5 test scenes at most, got 9"):
        taught(Brightest(), tmp_path)


def test_a_new_point_lies_a_step_up_the_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(substitute, "_jitter", lambda frames, _: frames)
    weights = torch.tensor([[1.0, -2, 3], [-1, 2, 3]])

    class Linear(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3)) @ weights.T

    student = ClassificationVictim(Linear(), "linear", ["a", "b"])
    points = torch.tensor([100, 250, 10], dtype=torch.uint8).view(1, 1, 3, 1, 1).expand(2, 1, 3, 4, 4)
    new = substitute._augment(student, points, torch.tensor([[1.0, 0], [0, 1]]), 0.2, torch.Generator())
    assert new.dtype == torch.uint8
    assert new[:, 0, :, 0, 0].tolist() == [[151, 199, 61], [49, 255, 61]]  # 51 up or down, and no further than white


def test_what_is_moved_is_turned_about_its_middle_in_any_proportions() -> None:
    frames = torch.zeros(64, 1, 3, 32, 64)
    frames[..., 12:20, 24:40] = 1
    moved = substitute._jitter(frames, torch.Generator().manual_seed(0))
    assert moved.shape == frames.shape
    areas = moved[:, 0, 0].sum(dim=(1, 2)) / (8 * 16)
    assert 0.6 < areas.min() < 0.8
    assert 1.25 < areas.max() < 1.6
    rows = (moved[:, 0, 0].sum(dim=2) @ torch.arange(32.0)) / moved[:, 0, 0].sum(dim=(1, 2))
    columns = (moved[:, 0, 0].sum(dim=1) @ torch.arange(64.0)) / moved[:, 0, 0].sum(dim=(1, 2))
    assert (rows - 15.5).abs().max() < 4.5
    assert (columns - 31.5).abs().max() < 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 3}, r"substitute\.queries: expected at least one batch of substitute\.batch=4, got 3"),
        ({"step": 0.0}, r"step in \(0, 1\], got .*step=0"),
        ({"size": (8, 8)}, r"expected \[h,w\] of at least 16 px"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trial(Brightest(), **options)


MODULE = """
import numpy as np
ASKED, PATIENCE = [], [10**9]
def predict(images):
    if sum(ASKED) + len(images) > PATIENCE[0]:
        raise ConnectionError("no more today")
    ASKED.append(len(images))
    return images.mean(axis=(1, 2))
"""


def test_the_script_says_how_to_go_on(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "service.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    rest = [one for one in tiny if not one.startswith("victim")]
    arguments = (
        *("victim=callable", "victim.task=classification", "victim.function=service.predict", *rest),
        *("substitute.rounds=1", "substitute.queries=7", "substitute.batch=2", "substitute.epochs=1"),
        f"output={tmp_path / 'folder'}",
    )
    import service  # type: ignore[import-not-found]

    monkeypatch.setitem(sys.modules, "service", service)
    service.PATIENCE[0] = 4  # one to try it, two that are held out, and one question is refused
    outcome = command(*arguments, entry="substitute")
    assert outcome.status == 2
    assert outcome.err.splitlines()[-1].startswith("patchattack: victim predict: expected an answer, got ConnectionErr")
    assert "resume with: patchattack substitute " in outcome.err
    service.PATIENCE[0] = 10**9
    outcome = command(*arguments, entry="substitute")
    assert outcome.status == 0, outcome.err
    assert sum(service.ASKED) == 1 + 1 + 2 + 7  # each run tries the victim once
    assert "7 to teach it and 2 to measure it" in outcome.out
    folder = tmp_path / "folder"
    lines = {line.strip().split("  ")[0]: line for line in outcome.out.splitlines()}
    assert f"patchattack train attack=classification {' '.join(rest[:1])}" in lines["attack it"]
    assert lines["attack it"].endswith(f"victim=substitute victim.weights={folder}")
    assert f"victims=[substitute,callable]' victims.substitute.weights={folder}" in lines["transfer"]
    assert "victims.callable.function=service.predict" in lines["transfer"]


def test_only_classifiers_are_substituted(tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...]) -> None:
    outcome = command("victim=depth_unet", *tiny, f"output={tmp_path / 'folder'}", entry="substitute")
    assert outcome.status == 2
    assert "expected a classifier to be substituted, got depth_unet for depth" in outcome.err

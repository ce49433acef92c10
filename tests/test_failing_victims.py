"""Victims that nothing can be optimised against are refused before the work, and a run says how to go on after one."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchattack import assembly, checkpoint, pipeline, processes, training
from patchattack.attacks.classification import ClassificationAttack
from patchattack.attacks.detection import DetectionAttack
from patchattack.data.world import World
from patchattack.eot.placement import OnSurface, Uniform
from patchattack.eot.renderer import Renderer
from patchattack.errors import InputError, VictimError
from patchattack.job import Settings
from patchattack.optimizers.random_search import RandomSearch
from patchattack.patch import Patch
from patchattack.printing.sheet import Sheet
from patchattack.tracking import NullTracker
from patchattack.victims.ensemble import Ensemble
from patchattack.victims.victim import ClassificationVictim, DetectionVictim, Victim

SETTINGS = Settings(
    starts=0,
    candidates=1,
    stages=1,
    steps=3,
    batch=2,
    validate_every=2,
    checkpoint_every=2,
    split=(0.5, 0.25, 0.25),
    test_draws=1,
    accelerator="cpu",
)


class Classifier(ClassificationVictim):
    """Does to its logits, from call number ``at`` on, what ``trouble`` does."""

    def __init__(self, trouble: Callable[[Tensor], Tensor] = lambda logits: logits, at: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = nn.Sequential(nn.Conv2d(3, 16, 5, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(network, "own", World(scenes=1, subject="sign", frames=1).classes)
        self.trouble, self.left = trouble, at

    def forward(self, frames: Tensor) -> Tensor:
        self.left -= 1
        logits = super().forward(frames)
        return self.trouble(logits) if self.left < 0 else logits


class Detector(DetectionVictim):
    """One candidate for every 8 × 8 pixels: its box as ``kind`` says, and two scores of at most ``highest``.

    Its first ``blind`` answers are empty boxes.
    """

    def __init__(self, kind: str, highest: float = 0.9) -> None:
        super().__init__(nn.Conv2d(3, 2, 8, 8), "own", ("vehicle", "sign"), multiple=8)
        self.kind, self.highest, self.asked, self.blind = kind, highest, 0, 0

    def candidates(self, images: Tensor) -> Tensor:
        self.asked += 1
        scores = self.network(images)
        rows, columns = (torch.arange(n) * 8.0 + 4 for n in scores.shape[-2:])
        middle = torch.stack(torch.meshgrid(columns, rows, indexing="xy")).flatten(1).T.expand(len(images), -1, 2)
        side = torch.full_like(middle, 12)
        boxes = {"centres": (middle, side), "corners": (middle - side / 2, middle + side / 2)}
        scores = scores.sigmoid() * self.highest if self.highest <= 1 else scores * 100
        return torch.cat([*boxes[self.kind], scores.flatten(2).mT], dim=-1) * (self.asked > self.blind)


@pytest.fixture(scope="module")
def signs() -> World:
    return World(scenes=8, size=(32, 32), supersampling=1, frames=1, subject="sign")


@pytest.fixture
def parts(signs: World) -> Callable[..., assembly.Parts]:
    def parts(victim: Victim, **changes: Any) -> assembly.Parts:
        made = assembly.Parts(
            attack=ClassificationAttack("targeted", target="stop"),
            victim=victim,
            source=signs,
            renderer=Renderer(Uniform(area=0.2)),
            patch=Patch.create(resolution=8, size_mm=60),
            regularizers={},
            optimizer=functools.partial(torch.optim.Adam, lr=0.1),
            schedule=functools.partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
            tracker=lambda folder, config, run_id: NullTracker(folder, config, run_id),
            settings=SETTINGS,
            sheet=Sheet(),
            seed=3,
        )
        return replace(made, **changes)

    return parts


def assemble(parts: assembly.Parts, resumed: Path | None = None) -> Any:
    return assembly.assemble(parts, processes.start(parts.settings), resumed)


def run(parts: assembly.Parts, folder: Path) -> None:
    job = assemble(parts)
    folder.mkdir()
    pipeline.run(parts, job, folder, pipeline.Origin({"attack": "classification"}, "patchattack train"), False)


def train(parts: assembly.Parts, folder: Path, resumes: bool = False) -> bytes:
    """The last checkpoint."""
    job = assemble(parts, folder if resumes else None)
    folder.mkdir(exist_ok=True)
    progress = checkpoint.resume(job, folder) if resumes else checkpoint.begin(job)
    training.train(job, folder, NullTracker(folder, {}), progress)
    return (folder / "checkpoint.safetensors").read_bytes()


def thaw(victim: Classifier) -> Callable[[Tensor], Tensor]:
    def trouble(logits: Tensor) -> Tensor:
        victim.network.requires_grad_(True)
        return logits

    return trouble


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "softmax": (
        lambda logits: logits.softmax(dim=1),
        "victim own: got probabilities, expected logits; give victim.answer=probabilities",
    ),
    "shape": (lambda logits: logits[:, :2], r"victim own: expected an output \[1, 16\], got \[1, 2\]"),
    "scenes": (lambda logits: logits.mean(dim=1), r"victim own: expected an output \[1, 16\], got \[1\]"),
    "infinite": (lambda logits: logits / 0, "victim own: expected finite numbers, got NaN or infinite ones"),
    "detached": (torch.detach, "victim own: expected a finite gradient of its output to the frames, got none"),
    "no slope": (lambda logits: logits + 0 * torch.sqrt(logits - logits), "to the frames, got one of length nan"),
    "no room": (
        lambda logits: logits.new_empty(10**15),
        "out of memory|allocate memory.*a smaller trainer.candidates, trainer.batch or trainer.draws, before the work "
        "started",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("together", [False, True], ids=["alone", "in an ensemble"])
def test_what_no_patch_can_be_optimised_against_is_refused(
    parts: Callable[..., assembly.Parts], name: str, together: bool
) -> None:
    trouble, message = REFUSED[name]
    victim = Classifier(trouble)
    with pytest.raises(InputError, match=message) as refused:
        assemble(parts(Ensemble({"sound": Classifier(), "own": victim}) if together else victim))
    assert "\n" not in str(refused.value)


def test_a_sigmoid_is_said(parts: Callable[..., assembly.Parts], caplog: pytest.LogCaptureFixture) -> None:
    assemble(parts(Classifier(torch.sigmoid)))
    assert "victim own: expected logits, got numbers from 0." in caplog.text
    caplog.clear()
    assemble(parts(Classifier()))
    assert "sigmoid" not in caplog.text


def test_weights_that_thaw_are_refused(parts: Callable[..., assembly.Parts]) -> None:
    victim = Classifier()
    victim.trouble = thaw(victim)
    with pytest.raises(InputError, match=r"victim own: expected frozen weights in eval mode, got network\.0\.weight"):
        assemble(parts(victim))


@pytest.fixture(scope="module")
def traffic() -> World:
    return World(scenes=8, size=(64, 128), supersampling=1, frames=1, subject="vehicle")


@pytest.mark.parametrize("boxes", ["labels", "victim"])
def test_boxes_that_end_before_they_begin_are_refused(
    parts: Callable[..., assembly.Parts], traffic: World, boxes: str
) -> None:
    attack = DetectionAttack(boxes=boxes, min_height=6)
    on_it = {"attack": attack, "source": traffic, "renderer": Renderer(OnSurface())}
    with pytest.raises(InputError, match=r"% of the boxes end before they begin.*; boxes are .*give victim.centres=tr"):
        assemble(parts(Detector("centres"), **on_it))
    with pytest.raises(InputError, match=r"victim own: got scores .*, expected 0 to 1; put a sigmoid at"):
        assemble(parts(Detector("corners", highest=100), **on_it))


def test_boxes_of_a_black_box_are_refused_before_it_is_asked_for_more(
    parts: Callable[..., assembly.Parts], traffic: World
) -> None:
    """One clean scene and one with the patch tell; and where those show none, the scenes of the validation."""
    victim = Detector("centres")
    victim.differentiable = False
    search = functools.partial(RandomSearch, lr=0.5)
    on_it = {"attack": DetectionAttack(min_height=6), "source": traffic, "renderer": Renderer(OnSurface())}
    with pytest.raises(InputError, match=r"end before they begin.*; give victim.centres=true"):
        assemble(parts(victim, optimizer=search, **on_it))
    assert victim.asked == 2
    victim.asked, victim.blind = 0, 2
    with pytest.raises(InputError, match=r"end before they begin.*; give victim.centres=true"):
        assemble(parts(victim, optimizer=search, **on_it))
    assert victim.asked == 3


def test_a_victim_that_finds_nothing_is_said_before_the_work(
    parts: Callable[..., assembly.Parts], traffic: World, caplog: pytest.LogCaptureFixture
) -> None:
    on_it = {"attack": DetectionAttack(min_height=6), "source": traffic, "renderer": Renderer(OnSurface())}
    assemble(parts(Detector("corners", highest=0.1), **on_it))
    assert "in any of 2 validation scenes: it finds none of the objects without a patch" in caplog.text


TROUBLE: dict[str, tuple[Any, str]] = {
    "raise": (
        ValueError("it fell over\nsecond line"),
        "victim own: expected an answer, got 'it fell over second line'",
    ),
    "exit": (SystemExit(0), "victim own: expected an answer, got '0'"),
    "device": (torch.OutOfMemoryError("CUDA out of memory. Tried"), "got 'CUDA out of memory. Tried'"),
    "shape": (lambda logits: logits[:, :2], r"victim own: expected an output \[\d, 16\] as before, got \[\d, 2\]"),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_a_victim_that_fails_in_the_middle_leaves_a_run_that_goes_on(
    parts: Callable[..., assembly.Parts], tmp_path: Path, name: str
) -> None:
    trouble, message = TROUBLE[name]

    def fail(logits: Tensor) -> Tensor:
        if isinstance(trouble, BaseException):
            raise trouble
        return trouble(logits)

    folder = tmp_path / "a run"
    with pytest.raises(VictimError) as stopped:
        run(parts(Classifier(fail, at=12)), folder)
    said = str(stopped.value)
    assert re.search(message, said)
    assert re.search(r", after step [12] of 3$", said)
    assert ("start a new run with a smaller trainer.candidates, trainer.batch or trainer.draws" in said) is (
        name == "device"
    )
    assert "\n" not in said
    assert (folder / "patch.png").exists()
    if name == "raise":
        assert train(parts(Classifier()), folder, resumes=True) == train(parts(Classifier()), tmp_path / "whole")


def test_a_step_without_room_says_what_needs_less(
    parts: Callable[..., assembly.Parts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backward pass is no part of the victim's answer, and needs the most."""

    def backward(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    made = parts(Classifier())
    job = assemble(made)
    monkeypatch.setattr(Tensor, "backward", backward)
    with pytest.raises(
        VictimError, match=r"expected room for a step, got 'CUDA out of memory\.'; free .*, after step 0 of 3$"
    ):
        pipeline.run(made, job, tmp_path, pipeline.Origin({"attack": "classification"}, "patchattack train"), False)
    assert json.loads((tmp_path / "state.json").read_text())["step"] == 0


@pytest.mark.parametrize(("most", "fits"), [(5, ": the victim has room for 3 views at once, a step has 12"), (0, "")])
def test_a_step_without_room_says_what_fits(
    parts: Callable[..., assembly.Parts], tmp_path: Path, most: int, fits: str
) -> None:
    trained = False

    def small(logits: Tensor) -> Tensor:
        nonlocal trained
        trained |= len(logits) == 12
        if trained and len(logits) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return logits

    with pytest.raises(VictimError) as stopped:
        run(parts(Classifier(small), settings=replace(SETTINGS, draws=3, candidates=2)), tmp_path / "run")
    assert f"trainer.batch or trainer.draws{fits}, after step 0 of 3" in str(stopped.value)

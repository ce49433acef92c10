from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchattack.attacks.attack import Attack
from patchattack.attacks.classification import ClassificationAttack
from patchattack.attacks.depth import DepthAttack
from patchattack.attacks.detection import DetectionAttack
from patchattack.attacks.flow import FlowAttack
from patchattack.errors import InputError
from patchattack.victims.ensemble import Ensemble
from patchattack.victims.victim import Victim
from patchattack.webcam.camera_victim import CameraVictim, select_victims

SIZE = (16, 32)
CORNERS = torch.tensor([[[[10.0, 4], [17, 4], [17, 11], [10, 11]]]])


class Scripted(Victim):
    """Gives prepared outputs, whatever it sees; ``is_metric`` and ``depth_range`` as of a depth victim."""

    is_metric, depth_range = True, (0.1, 200.0)

    def __init__(self, task: str, frames: int = 1, classes: tuple[str, ...] = (), outputs: Any = None) -> None:
        super().__init__(nn.Identity(), "scripted")
        self.task, self.frames, self.classes, self.given = task, frames, classes, outputs

    def forward(self, frames: Tensor) -> Tensor:
        assert frames.dtype == torch.float32
        assert 0 <= frames.min() <= frames.max() <= 1
        return self.given[: len(frames)]


def judged(attack: Attack, victim: Victim, margin: float = 0.1) -> tuple[list[float], list[float]]:
    trial = CameraVictim("scripted", victim, attack, victim, torch.device("cpu"), margin)
    frames = torch.randint(0, 256, (3, victim.frames, 3, *SIZE), dtype=torch.uint8)
    coverage = torch.zeros(1, victim.frames, 1, *SIZE)
    coverage[..., 4:12, 10:18] = 1
    verdicts = trial.judge(frames, coverage, CORNERS.expand(1, victim.frames, 4, 2))
    return verdicts.values, verdicts.success


def test_a_rate_is_the_success() -> None:
    logits = torch.tensor([[0.0, 5], [5, 0], [5, 0]])  # as seen, with a grey card, without the patch
    victim = Scripted("classification", classes=("calm", "stop"), outputs=logits)
    assert judged(ClassificationAttack("targeted", "stop"), victim)[1] == [1, 0, 0]


def test_where_there_is_nothing_to_win_nothing_is_known() -> None:
    logits = torch.tensor([[0.0, 5], [5, 0], [0, 5]])  # the target's class without the patch already
    victim = Scripted("classification", classes=("calm", "stop"), outputs=logits)
    assert all(map(math.isnan, judged(ClassificationAttack("targeted", "stop"), victim)[1]))


def test_what_is_no_rate_has_to_move_by_more_than_the_margin() -> None:
    still = torch.zeros(3, 2, *SIZE)
    still[:, 0] = 1
    still[0, 0, :4] = -1  # as seen, a part of the flow outside the patch is reversed: 128 of 448 pixels
    victim = Scripted("flow", 2, outputs=still)
    values, success = judged(FlowAttack(), victim)
    assert values == pytest.approx([1 - 2 * 128 / 448, 1, 1])
    assert success == [1, 0, 0]
    assert judged(FlowAttack(), victim, margin=0.6)[1] == [0, 0, 0]


def test_an_error_that_is_0_without_the_patch_has_to_reach_the_margin_itself() -> None:
    still = torch.zeros(3, 2, *SIZE)
    still[0, 0], still[1, 0] = 0.3, 0.05
    values, success = judged(FlowAttack(target=[1.0, 0.0], distance="epe"), Scripted("flow", 2, outputs=still))
    assert values == pytest.approx([0.3, 0.05, 0])
    assert success == [1, 0, 0]


def test_the_patch_itself_is_the_surface() -> None:
    depth = torch.full((3, 1, *SIZE), 50.0)
    depth[0, :, 4:12, 10:18] = 30.0
    victim = Scripted("depth", outputs=depth)
    for region in ("patch", "surface"):
        values = judged(DepthAttack("near", target=30.0, region=region), victim)[1]
        assert values == [1, 0, 0]


def candidates(*rows: tuple[list[float], float]) -> Tensor:
    """``[n, 5]`` of one class."""
    return torch.tensor([[*box, score] for box, score in rows])


def test_the_object_is_the_one_that_carries_the_patch() -> None:
    carrier, other = [6.0, 0, 22, 15], [24.0, 0, 31, 15]
    attack = DetectionAttack("hide", min_height=4)
    lost = torch.stack(
        [
            candidates((carrier, 0.1), (other, 0.9)),
            candidates((carrier, 0.8), (other, 0.9)),
            candidates((carrier, 0.9), (other, 0.95)),
        ]
    )
    values, success = judged(attack, Scripted("detection", classes=("car",), outputs=lost))
    assert values == [0, 1, 1]  # recall
    assert success == [1, 0, 0]
    elsewhere = lost.clone()
    elsewhere[2, 0, 4] = 0.1  # without the patch, only the other object is detected
    assert all(map(math.isnan, judged(attack, Scripted("detection", classes=("car",), outputs=elsewhere))[1]))
    nothing = torch.zeros_like(lost)
    assert all(map(math.isnan, judged(attack, Scripted("detection", classes=("car",), outputs=nothing))[1]))


def test_objects_are_looked_for_in_every_frame_anew() -> None:
    attack = DetectionAttack("hide", min_height=4)
    seen = torch.stack([candidates(([6.0, 0, 22, 15], score)) for score in (0.1, 0.8, 0.9)])
    victim = Scripted("detection", classes=("car",), outputs=seen)
    trial = CameraVictim("scripted", victim, attack, victim, torch.device("cpu"))
    frames, coverage = torch.zeros(3, 1, 3, *SIZE, dtype=torch.uint8), torch.zeros(1, 1, 1, *SIZE)
    for score, expected in ((0.9, 1.0), (0.0, math.nan), (0.9, 1.0)):
        seen[2, 0, 4] = score
        found = trial.judge(frames, coverage, CORNERS).success[0]
        assert found == expected or (math.isnan(found) and math.isnan(expected))


def test_the_rule_is_said_in_words() -> None:
    flow = CameraVictim("f", Scripted("flow", 2), FlowAttack(), lambda _: None, torch.device("cpu"), 0.25)
    assert flow.rule == (
        "a frame is won where the cosine similarity to the clean flow outside the patch is more than 25 % below that "
        "of the same frame without the patch (more than 0.25 where that is 0)"
    )
    hide = CameraVictim(
        "d", Scripted("detection", classes=("car",)), DetectionAttack(), lambda _: None, torch.device("cpu")
    )
    assert hide.rule == "success is the success rate (an object lost, or one that appeared)"


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(InputError, match="expected a victim for flow, got x for depth"):
        CameraVictim("x", Scripted("depth"), FlowAttack(), lambda _: None, torch.device("cpu"))
    with pytest.raises(InputError, match="margin: expected a fraction of the primary metric of 0 or more, got -1"):
        CameraVictim("x", Scripted("flow", 2), FlowAttack(), lambda _: None, torch.device("cpu"), -1)


def test_an_ensemble_comes_member_by_member() -> None:
    one, other = Scripted("flow", 2), Scripted("flow", 2)
    ensemble = Ensemble({"a": one, "b": other})
    assert select_victims({}, ensemble) == {"a": one, "b": other}
    assert select_victims({}, one) == {"scripted": one}
    assert select_victims({"c": other}, ensemble) == {"c": other}

"""Victims behind defences."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchattack import seeding
from patchattack.defenses.bit_depth import BitDepth
from patchattack.defenses.defense import Preprocessing
from patchattack.defenses.jpeg import JpegDefense
from patchattack.defenses.patch_cleanser import PatchCleanser
from patchattack.defenses.resize_pad import ResizePad
from patchattack.defenses.smoothing import Gaussian, Median
from patchattack.errors import InputError
from patchattack.victims.compact.classification import CompactClassifier
from patchattack.victims.compact.depth import CompactDepth
from patchattack.victims.compact.detection import CompactDetector
from patchattack.victims.compact.flow import CompactFlow
from patchattack.victims.defended import Defended, defend
from patchattack.victims.ensemble import Ensemble
from patchattack.victims.victim import Victim


@pytest.fixture(scope="module")
def classifier() -> Victim:
    return CompactClassifier(weights="random")


def frames(count: int = 1, batch: int = 2) -> Tensor:
    return torch.rand(batch, count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Add(Preprocessing):
    name = "add"

    def clean(self, images: Tensor) -> Tensor:
        return images + 0.25


class Double(Preprocessing):
    name = "double"

    def clean(self, images: Tensor) -> Tensor:
        return images * 2


class Seen(Victim):
    """Answers with what it sees."""

    task, frames = "depth", 1

    def __init__(self) -> None:
        super().__init__(nn.Identity(), "seen")

    def forward(self, frames: Tensor) -> Tensor:
        return frames[:, 0, :1]


def test_without_defences_the_answer_is_the_same_to_the_bit(classifier: Victim) -> None:
    assert defend(classifier, {}) is classifier
    assert torch.equal(Defended(classifier, [])(frames()), classifier(frames()))
    assert Defended(classifier, []).certify(frames()) is None


def test_frames_meet_the_defences_in_their_order() -> None:
    half = torch.full((1, 1, 3, 4, 4), 0.5)
    first, second = Defended(Seen(), [Add(), Double()]), Defended(Seen(), [Double(), Add()])
    assert first.name == "seen behind add+double"
    assert first(half).unique().tolist() == [1.5]
    assert second(half).unique().tolist() == [1.25]
    assert Defended(Defended(Seen(), [Double()]), [Add()])(half).unique().tolist() == [1.5]


def test_it_says_of_itself_what_the_victim_says(classifier: Victim) -> None:
    victim = Defended(classifier, [JpegDefense()])
    assert (victim.task, victim.frames, victim.classes) == ("classification", 1, classifier.classes)
    assert victim.names == [f"{classifier.name} behind jpeg"]
    depth = CompactDepth(weights="random")
    behind = Defended(depth, [JpegDefense()])
    assert (behind.is_metric, behind.depth_range) == (depth.is_metric, depth.depth_range)
    only_answers = copy.copy(classifier)
    only_answers.differentiable = False
    assert not Defended(only_answers, [JpegDefense()]).differentiable
    with pytest.raises(AttributeError, match="nothing"):
        _ = victim.nothing
    copied = copy.deepcopy(victim)
    assert torch.equal(copied(frames()), victim(frames()))


@pytest.mark.parametrize(
    ("make", "count"),
    [(CompactClassifier, 1), (CompactDepth, 1), (CompactDetector, 1), (CompactFlow, 2)],
)
def test_every_task_keeps_its_shape_and_its_gradient(make: Any, count: int) -> None:
    victim = make(weights="random")
    behind = [BitDepth(), Gaussian(), JpegDefense(), Median()]
    given = frames(count).requires_grad_()
    found = Defended(victim, behind)(given)
    assert found.shape == victim(given).shape
    found.square().sum().backward()
    assert given.grad is not None
    assert given.grad.flatten(2).abs().sum(dim=2).min() > 0


def test_frames_of_another_kind_are_refused_by_name(classifier: Victim) -> None:
    with pytest.raises(InputError, match=r"victim .* behind jpeg: expected frames \[B, 1, 3, H, W\]"):
        Defended(classifier, [JpegDefense()])(frames(2))


def test_a_defence_that_does_not_fit_is_refused_with_its_task() -> None:
    with pytest.raises(InputError, match="expected a victim for classification, where patch_cleanser is defined"):
        Defended(CompactFlow(weights="random"), [JpegDefense(), PatchCleanser()])


def test_the_draw_reaches_what_is_random_and_none_ends_it(classifier: Victim) -> None:
    victim = Defended(classifier, [ResizePad()])
    fixed = victim(frames())
    with victim.randomised(seeding.generator(1)):
        one = victim(frames())
    with victim.randomised(seeding.generator(1)):
        assert torch.equal(victim(frames()), one)
    assert not torch.equal(one, fixed)
    with pytest.raises(ZeroDivisionError), victim.randomised(seeding.generator(1)):
        raise ZeroDivisionError
    assert torch.equal(victim(frames()), fixed)


def test_only_the_first_defence_proves_anything(classifier: Victim) -> None:
    cleanser = PatchCleanser(masks=2)
    labels = Defended(classifier, [cleanser, JpegDefense()]).certify(frames())
    assert labels is not None
    assert labels.shape == (2,)
    assert Defended(classifier, [JpegDefense(), cleanser]).certify(frames()) is None


def test_each_member_of_an_ensemble_is_defended() -> None:
    members: dict[str, Victim] = {name: CompactClassifier(name, "random") for name in ("residual", "transformer")}
    victim = defend(Ensemble(members, "worst"), {"double": Double()})
    assert isinstance(victim, Ensemble)
    assert victim.combine == "worst"
    assert victim.names == ["classifier_residual behind double", "classifier_transformer behind double"]
    dark = frames() / 2
    for answer, member in zip(victim(dark), members.values(), strict=True):
        assert torch.equal(answer, member(frames()))

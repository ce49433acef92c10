from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from patchattack import seeding
from patchattack.errors import InputError
from patchattack.victims.ensemble import Ensemble
from patchattack.victims.victim import ClassificationVictim, FlowVictim


class Constant(FlowVictim):
    def __init__(self, value: float) -> None:
        super().__init__(nn.Identity(), f"constant_{value:g}")
        self.value = value

    def flow(self, frames: Tensor) -> Tensor:
        return frames[:, 0, :2] * 0 + self.value


def pair(combine: str = "mean") -> Ensemble:
    return Ensemble({"a": Constant(1), "b": Constant(2)}, combine)


FRAMES = torch.rand(1, 2, 3, 8, 8)


def test_an_ensemble_answers_with_all_of_its_members() -> None:
    first, second = pair()(FRAMES)
    assert (first == 1).all()
    assert (second == 2).all()
    assert pair().name == "constant_1 + constant_2"
    assert (pair().task, pair().frames) == ("flow", 2)


def test_one_member_at_random_answers_where_a_generator_chooses() -> None:
    victim = pair("random")
    chosen = []
    for seed in range(20):
        victim.randomise(seeding.generator(seed))
        outputs = victim(FRAMES)
        (number,) = (number for number, output in enumerate(outputs) if output is not None)
        victim.randomise(seeding.generator(seed))
        assert victim(FRAMES)[number] is not None  # the same generator chooses the same member
        chosen.append(number)
    assert 4 < sum(chosen) < 16
    victim.randomise(None)
    assert all(output is not None for output in victim(FRAMES))


def test_only_a_random_ensemble_chooses() -> None:
    victim = pair("worst")
    victim.randomise(seeding.generator(0))
    assert all(output is not None for output in victim(FRAMES))


def test_members_stay_frozen_and_in_eval_mode() -> None:
    victim = Ensemble({"a": ClassificationVictim(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "net", "abcd")})
    victim.train()
    assert not any(module.training for module in victim.modules())
    assert not any(parameter.requires_grad for parameter in victim.parameters())


@pytest.mark.parametrize(
    ("members", "combine", "message"),
    [
        ({}, "mean", "expected an ensemble of victims for one task, got none"),
        (
            {"a": Constant(1), "b": ClassificationVictim(nn.Identity(), "net", "ab")},
            "mean",
            "got a for flow, b for class",
        ),
        ({"a": Constant(1)}, "median", r"victim\.combine: expected mean, worst or random, got median"),
    ],
)
def test_bad_ensembles_are_refused(members: dict, combine: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Ensemble(members, combine)


def test_what_is_random_in_a_member_is_drawn() -> None:
    class Noisy(Constant):
        drawn: object = None

        def randomise(self, generator: torch.Generator | None) -> None:
            self.drawn = generator

    members = {"a": Noisy(1), "b": Noisy(2)}
    generator = torch.Generator()
    ensemble = Ensemble(members)
    ensemble.randomise(generator)
    assert [member.drawn for member in members.values()] == [generator] * 2
    ensemble.randomise(None)
    assert [member.drawn for member in members.values()] == [None] * 2

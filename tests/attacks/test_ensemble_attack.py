from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from patchattack.attacks.classification import ClassificationAttack
from patchattack.attacks.ensemble import EnsembleAttack
from patchattack.scene import Scene, Source, View


class Labelled(Source):
    classes = ("cat", "dog", "cow")

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Scene:
        return Scene(frames=torch.zeros(1, 1, 3, 4, 4), index=torch.tensor([index]), label=torch.tensor([0]))


# The members count their classes in different orders.
VICTIMS = {
    "a": SimpleNamespace(name="a", classes=("cat", "dog", "cow")),
    "b": SimpleNamespace(name="b", classes=("cow", "cat", "dog")),
}
SCENE = Labelled().__getitems__([0, 1])
VIEW = View(SCENE.frames, SCENE.frames[:, :, :1], torch.zeros(2, 1, 4, 2))
A = torch.tensor([[3.0, 1.0, 0.0], [0.0, 5.0, 0.0]])
B = torch.tensor([[0.0, 1.0, 4.0], [0.0, 4.0, 1.0]])
CLEAN = (torch.tensor([[9.0, 0.0, 0.0]] * 2), torch.tensor([[0.0, 9.0, 0.0]] * 2))


def attack(combine: str = "mean") -> EnsembleAttack:
    made = EnsembleAttack(ClassificationAttack("targeted", "dog"), VICTIMS, combine)
    made.bind(None, Labelled())
    return made


def single(name: str, output: Tensor, clean: Tensor) -> Tensor:
    alone = ClassificationAttack("targeted", "dog")
    alone.bind(VICTIMS[name], Labelled())
    return alone.loss(output, clean, SCENE, VIEW)


@pytest.mark.parametrize("combine", ["mean", "worst", "random"])
def test_losses_are_combined_per_scene(combine: str) -> None:
    both = torch.stack([single("a", A, CLEAN[0]), single("b", B, CLEAN[1])])
    expected = both.amax(dim=0) if combine == "worst" else both.mean(dim=0)
    torch.testing.assert_close(attack(combine).loss((A, B), CLEAN, SCENE, VIEW), expected)


def test_a_member_that_did_not_answer_does_not_count() -> None:
    loss = attack("random").loss((None, B), CLEAN, SCENE, VIEW)
    torch.testing.assert_close(loss, single("b", B, CLEAN[1]))


def test_metrics_are_means_and_each_members_success() -> None:
    metrics = attack().metrics((A, B), CLEAN, SCENE, VIEW)
    assert metrics["success/a", "all"].tolist() == [0, 1]
    assert metrics["success/b", "all"].tolist() == [1, 0]
    assert metrics["success", "all"].tolist() == [0.5, 0.5]
    known = attack().metric_info
    assert {name for name, _ in metrics} <= known.keys()
    assert known["success/b"].label.endswith(", b")
    assert known["success/b"].rate


def test_pictures_stand_below_one_another() -> None:
    outputs: list[Any] = [(A[:1], B[:1]), CLEAN]
    pictures = attack().pictures([tuple(o[:1] for o in output) for output in outputs], [torch.zeros(1, 3, 80, 80)] * 2)
    assert [picture.shape for picture in pictures] == [(3, 320, 160)] * 2
    assert "a, b" in attack().legend()[1]
    output = (A[:1], B[:1])
    changes = attack().changes([output, output, output], output, [torch.zeros(1, 3, 80, 80)] * 3)
    assert [change.shape for change in changes] == [(3, 320, 160)] * 3
    assert attack().changes_legend() == attack().first.changes_legend()
    assert attack().size == attack().first.size

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from patchattack.defenses.saliency import SaliencyMasking
from patchattack.errors import InputError


class Victim:
    name, task, differentiable = "toy", "classification", True


def corner(frames: Tensor) -> Tensor:
    """Logits of which the second comes of a corner alone, and the first of the whole frame."""
    return torch.stack([frames.mean(dim=(1, 2, 3, 4)), 5 * frames[..., 4:12, 4:12].mean(dim=(1, 2, 3, 4))], dim=1)


def frames(loud: float) -> Tensor:
    result = torch.full((1, 1, 3, 40, 40), 0.5)
    result[..., 4:12, 4:12] = loud
    return result


def test_what_decides_by_itself_is_painted_over() -> None:
    assert corner(frames(1.0)).argmax() == 1
    logits = SaliencyMasking()(frames(1.0), corner)
    assert logits[0, 1] == pytest.approx(2.5, abs=0.1)  # as if it were as grey as its surroundings


def test_evidence_from_everywhere_stays() -> None:
    def everywhere(given: Tensor) -> Tensor:
        return torch.stack([given.mean(dim=(1, 2, 3, 4)), -given.mean(dim=(1, 2, 3, 4))], dim=1)

    assert torch.equal(SaliencyMasking()(frames(1.0), everywhere), everywhere(frames(1.0)))


def test_it_needs_no_graph_and_leaves_none() -> None:
    with torch.no_grad():
        assert not SaliencyMasking()(frames(1.0), corner).requires_grad


def test_the_gradient_of_an_attack_is_as_if_nothing_had_been_painted_over() -> None:
    leaf, bare = frames(1.0).requires_grad_(), frames(1.0).requires_grad_()
    SaliencyMasking()(leaf, corner).sum().backward()
    corner(bare).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, bare.grad)


def test_a_victim_without_gradient_or_of_another_task_is_refused() -> None:
    defense = SaliencyMasking()
    victim = Victim()
    defense.check(victim)
    victim.differentiable = False
    with pytest.raises(InputError, match=r"expected a victim with a gradient, which saliency asks for, got toy"):
        defense.check(victim)
    victim.task = "depth"
    with pytest.raises(InputError, match="expected a victim for classification, where saliency is defined"):
        defense.check(victim)


@pytest.mark.parametrize(("options", "key"), [({"threshold": 1.0}, "threshold"), ({"side": 4}, "side")])
def test_what_cannot_be_is_refused(options: dict[str, float], key: str) -> None:
    with pytest.raises(InputError, match=rf"defense\.saliency\.{key}"):
        SaliencyMasking(**options)  # type: ignore[arg-type]

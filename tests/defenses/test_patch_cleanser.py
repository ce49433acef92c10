from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from patchattack import seeding
from patchattack.data.world import World
from patchattack.defenses.patch_cleanser import PatchCleanser, mask_out, mask_set
from patchattack.errors import InputError
from patchattack.victims.compact.classification import CompactClassifier
from patchattack.victims.defended import Defended
from patchattack.victims.victim import Victim

SIZE = (8, 10)


def bright(frames: Tensor) -> Tensor:
    """Logits of dark and bright: whether more pixels are above or below grey."""
    signs = (frames.mean(dim=2) - 0.5).sign().flatten(1).sum(dim=1)
    return torch.stack([-signs, signs], dim=1)


def largest(frames: Tensor) -> Tensor:
    """Logits that a single pixel decides: the brightest red against the brightest green."""
    return frames.amax(dim=(1, 3, 4))[:, :2]


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("patch", [1, 2, 3, 5, 8])
def test_every_place_of_the_patch_is_hidden_by_a_mask(patch: int, count: int) -> None:
    masks = mask_set(SIZE, patch, count)
    assert masks.shape == (count**2, 1, 1, *SIZE)
    for top, left in itertools.product(range(SIZE[0] - patch + 1), range(SIZE[1] - patch + 1)):
        assert masks[..., top : top + patch, left : left + patch].flatten(1).all(dim=1).any(), (top, left)


def test_masks_are_as_small_as_can_be() -> None:
    """Three masks of a line of 10 for a patch of 2: stride 3, so 4 wide at 0, 3 and 6 (equation 2)."""
    masks = mask_set((10, 10), 2, 3)
    columns = masks[:3, 0, 0, 0]
    assert [row.nonzero().flatten().tolist() for row in columns] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]


def test_a_certified_class_survives_every_patch_everywhere() -> None:
    """Exhaustive: white and black squares of the certified size at all places, and what the frame would say."""
    defense = PatchCleanser(side=0.25, masks=3)
    frames = (torch.rand(40, 1, 3, *SIZE, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.4
    frames += torch.linspace(0.3, 0.7, 40).view(-1, 1, 1, 1, 1)
    labels = defense.certify(frames, bright)
    assert 0 < (labels >= 0).sum() < len(labels)  # otherwise this tests nothing
    for top, left, colour in itertools.product(range(SIZE[0] - 1), range(SIZE[1] - 1), (0.0, 1.0)):
        attacked = frames.clone()
        attacked[..., top : top + 2, left : left + 2] = colour
        answers = defense(attacked, bright).argmax(dim=1)
        assert torch.equal(answers[labels >= 0], labels[labels >= 0]), (top, left, colour)


def test_a_patch_that_wins_without_the_defence_loses_behind_it() -> None:
    frames = torch.full((1, 1, 3, *SIZE), 0.2)
    frames[:, :, 0] = 0.7  # class 0, and a grey mask leaves it so
    attacked = frames.clone()
    attacked[:, :, 1, 3:5, 3:5] = 1.0
    assert largest(attacked).argmax() == 1
    defense = PatchCleanser(side=0.25, masks=3)
    assert defense.certify(frames, largest).tolist() == [0]
    assert defense(attacked, largest).argmax(dim=1).tolist() == [0]


class Script:
    """Answers by which masks lie on the frame, as a table says; masks are told by their place."""

    def __init__(self, masks: Tensor, table: dict[frozenset[int], int], otherwise: int) -> None:
        self.masks, self.table, self.otherwise = masks, table, otherwise

    def __call__(self, frames: Tensor) -> Tensor:
        logits = torch.zeros(len(frames), 3)
        for row, frame in enumerate(frames):
            hidden = (frame[0, 0] == 0.5).flatten()
            on = frozenset(n for n, mask in enumerate(self.masks) if hidden[mask.flatten()].all())
            logits[row, self.table.get(on, self.otherwise)] = 1
        return logits


def script(table: dict[frozenset[int], int], otherwise: int) -> tuple[PatchCleanser, Tensor, Script]:
    masks = mask_set((8, 8), 2, 2)
    return PatchCleanser(side=0.25, masks=2), torch.zeros(1, 1, 3, 8, 8), Script(masks, table, otherwise)


ONE = [frozenset([n]) for n in range(4)]


def test_algorithm_1_case_1_all_agree() -> None:
    defense, frame, victim = script({}, otherwise=2)
    assert defense(frame, victim).argmax(dim=1).item() == 2


def test_algorithm_1_case_2_a_dissenter_whom_no_second_mask_changes_wins() -> None:
    pairs = {frozenset([1, n]): 2 for n in (0, 2, 3)}
    defense, frame, victim = script({ONE[1]: 2, **pairs}, otherwise=0)
    assert defense(frame, victim).argmax(dim=1).item() == 2


def test_algorithm_1_case_3_otherwise_the_majority() -> None:
    pairs = {frozenset([1, 0]): 2, frozenset([1, 2]): 2}  # but with mask 3 it is 0 again
    defense, frame, victim = script({ONE[1]: 2, **pairs}, otherwise=0)
    assert defense(frame, victim).argmax(dim=1).item() == 0


def test_one_pair_of_masks_that_changes_the_class_is_no_certificate() -> None:
    defense, frame, victim = script({frozenset([0, 3]): 1}, otherwise=0)
    assert defense.certify(frame, victim).tolist() == [-1]
    defense, frame, victim = script({}, otherwise=0)
    assert defense.certify(frame, victim).tolist() == [0]


def test_logits_are_the_mean_over_the_masks_that_vote_for_the_answer_with_a_gradient() -> None:
    frames = torch.full((1, 1, 3, *SIZE), 0.2)
    frames[:, :, 0] = 0.7
    leaf = frames.clone().requires_grad_()
    logits = PatchCleanser(side=0.25, masks=2)(leaf, largest)
    torch.testing.assert_close(logits.detach(), torch.tensor([[0.7, 0.5]]))
    logits[0, 0].backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0


def test_with_a_generator_each_scene_is_asked_once_with_a_mask_of_its_own() -> None:
    defense = PatchCleanser(side=0.25, masks=3)
    asked: list[Tensor] = []

    def note(frames: Tensor) -> Tensor:
        asked.append(frames)
        return bright(frames)

    for seed in (1, 1, 2):
        defense.randomise(seeding.generator(seed))
        defense(torch.zeros(6, 1, 3, *SIZE), note)
    assert len(asked) == 3
    assert torch.equal(asked[0], asked[1])
    assert not torch.equal(asked[0], asked[2])
    allowed = [mask_out(torch.zeros(1, 3, *SIZE), mask[0]) for mask in mask_set(SIZE, 2, 3)]
    for frame in asked[0]:
        assert any(torch.equal(frame, one) for one in allowed)
    assert len({frame.sum().item() for frame in asked[0]} | {len(asked[0].flatten(1).unique(dim=0))}) > 1


@pytest.mark.parametrize(("options", "message"), [({"side": 1.0}, "side"), ({"masks": 1}, "masks")])
def test_what_cannot_be_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=rf"defense\.patch_cleanser\.{message}"):
        PatchCleanser(**options)  # type: ignore[arg-type]


def test_no_attack_of_ours_changes_a_certified_class() -> None:
    """Sign gradient steps, on a compact classifier alone, which they fool, and through the defence."""
    world = World(scenes=7, size=(64, 64), frames=1, subject="sign", supersampling=1, seed=3, field_of_view=40.0)
    scene, victim = world.__getitems__([3, 6]).to("cpu"), CompactClassifier()
    defended = Defended(victim, [PatchCleanser(side=6 / 64, masks=5)])
    labels = defended.certify(scene.frames)
    assert scene.label is not None
    assert labels is not None
    assert torch.equal(labels, scene.label)

    def attacked(answer: Victim) -> Tensor:
        texture = torch.full((2, 1, 3, 6, 6), 0.5)
        for _ in range(10):
            frames = scene.frames.clone()
            frames[..., 26:32, 30:36] = texture.requires_grad_()
            with answer.randomised(generator):
                loss = F.cross_entropy(answer(frames), labels)
            (gradient,) = torch.autograd.grad(loss, texture)
            texture = (texture.detach() + 0.2 * gradient.sign()).clamp(0, 1)
        frames = scene.frames.clone()
        frames[..., 26:32, 30:36] = texture
        return frames

    generator = seeding.generator(0)
    for answer in (victim, defended):
        frames = attacked(answer)
        with torch.no_grad():
            assert torch.equal(defended(frames).argmax(dim=1), labels)
            assert not torch.equal(victim(frames).argmax(dim=1), labels)

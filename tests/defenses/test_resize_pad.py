from __future__ import annotations

import pytest
import torch
from torch import Tensor

from patchattack import seeding
from patchattack.defenses.resize_pad import ResizePad
from patchattack.errors import InputError


class Victim:
    name = "toy"
    differentiable = True

    def __init__(self, task: str) -> None:
        self.task = task


def made(task: str, **options: object) -> ResizePad:
    defense = ResizePad(**options)  # type: ignore[arg-type]
    defense.check(Victim(task))
    return defense


def pictures(batch: int = 3) -> Tensor:
    noise = torch.rand(batch, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.avg_pool2d(noise, 7, 1, 3, count_include_pad=False)[:, None]


def seen(frames: Tensor) -> Tensor:
    return frames.flatten(1)


def test_the_padded_frame_is_the_frame_reduced_on_black() -> None:
    defense = made("classification", scale=[0.5, 0.5], samples=1)
    (padded,) = defense(torch.ones(1, 1, 3, 32, 48), lambda frames: frames[:, 0]).unbind(0)
    assert padded.mean() == pytest.approx(0.25, abs=0.01)
    lit = (padded[0] > 0.5).nonzero()
    height, width = (lit.amax(dim=0) - lit.amin(dim=0) + 1).tolist()
    assert abs(height - 16) <= 1
    assert abs(width - 24) <= 1


def test_a_scale_of_one_changes_nothing() -> None:
    for task in ("classification", "depth"):
        defense = made(task, scale=[1.0, 1.0])
        out = defense(pictures(), lambda frames: frames[:, 0])
        torch.testing.assert_close(out, pictures()[:, 0], rtol=0, atol=1e-5)


def test_the_same_generator_gives_the_same_draws_and_each_scene_has_its_own() -> None:
    defense = made("classification")
    same = pictures(1).expand(3, -1, -1, -1, -1)
    answers = []
    for seed in (5, 5, 6):
        defense.randomise(seeding.generator(seed))
        answers.append(defense(same, seen))
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])
    assert not torch.equal(answers[0][0], answers[0][1])


def test_without_a_generator_a_scene_has_one_answer_in_any_batch_and_every_time() -> None:
    defense = made("classification")
    before = defense(pictures(), seen)
    defense.randomise(seeding.generator(1))
    defense(pictures(), seen)
    defense.randomise(None)
    assert torch.equal(defense(pictures(), seen), before)
    torch.testing.assert_close(defense(pictures()[1:2], seen), before[1:2], rtol=0, atol=1e-6)


def test_the_mean_over_many_draws_is_that_of_the_fixed_ones() -> None:
    frames = pictures(1)
    defense = made("classification", samples=400)
    fixed = defense(frames, seen)
    defense.randomise(seeding.generator(3))
    drawn = defense(frames.expand(400, -1, -1, -1, -1), seen).mean(dim=0, keepdim=True)
    assert (fixed - drawn).abs().max() < 0.1
    assert (fixed - drawn).abs().mean() < 0.02


def test_depth_comes_back_where_it_was() -> None:
    """A victim whose depth is the brightness sees the reduced frame and still answers in the frame's pixels."""
    defense = made("depth", scale=[0.7, 0.9])
    frames = pictures()
    depth = defense(frames, lambda given: given[:, 0].mean(dim=1, keepdim=True))
    truth = frames[:, 0].mean(dim=1, keepdim=True)
    assert (depth - truth)[..., 3:-3, 3:-3].abs().max() < 0.03


def test_flow_comes_back_in_the_frames_own_pixels() -> None:
    """A constant flow of the frame is shorter in the reduced one."""
    defense = made("flow", scale=[0.5, 0.5])
    true = torch.tensor([4.0, -2.0]).view(1, 2, 1, 1)
    flow = defense(torch.rand(2, 2, 3, 32, 48), lambda given: (0.5 * true).expand(len(given), 2, 32, 48))
    torch.testing.assert_close(flow[..., 1:-1, 1:-1], true.expand(2, 2, 30, 46), rtol=0, atol=1e-4)


def test_both_frames_of_a_pair_move_alike() -> None:
    defense = made("flow")
    pair = pictures().expand(-1, 2, -1, -1, -1)

    def same(given: Tensor) -> Tensor:
        assert torch.equal(given[:, 0], given[:, 1])
        return given[:, 0, :2]

    defense(pair, same)


def test_gradients_reach_the_frames() -> None:
    frames = pictures().requires_grad_()
    made("classification")(frames, seen).sum().backward()
    assert frames.grad is not None
    assert (frames.grad != 0).float().mean() > 0.95


def test_a_detector_has_no_mean() -> None:
    with pytest.raises(InputError, match=r"where resize_pad is defined, got toy for detection; leave resize_pad out"):
        made("detection")


@pytest.mark.parametrize("options", [{"scale": [0.0, 1.0]}, {"scale": [0.9, 1.1]}, {"scale": [0.9]}, {"samples": 0}])
def test_what_cannot_be_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"defense\.resize_pad\."):
        made("classification", **options)

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from patchattack.errors import InputError
from patchattack.regularizers.tv import TotalVariation, total_variation


def waves(side: int) -> tuple[Tensor, Tensor]:
    """A band-limited picture and a round mask at ``side × side``."""
    place = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(place, place, indexing="ij")
    turns = (2 * x + y, x - 3 * y, 2 * y)
    texture = torch.stack([0.5 + 0.5 * torch.sin(2 * math.pi * t) for t in turns])
    return texture, ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.2).float().unsqueeze(0)


def test_value_by_hand() -> None:
    texture = torch.zeros(3, 2, 3)
    texture[:, 0, 0] = torch.tensor([0.1, 0.2, 0.3])
    texture[0, 1, 2] = 0.5
    # Texel (0, 0) differs to the right and down, (0, 2) down and (1, 1) right; nothing wraps around.
    expected = (math.sqrt(2 * (0.01 + 0.04 + 0.09)) + 0.5 + 0.5) / 6 * math.sqrt(6)
    assert total_variation(texture, torch.ones(1, 2, 3)).item() == pytest.approx(expected)


def test_nothing_wraps_around() -> None:
    ramp = torch.linspace(0, 1, 5).expand(3, 5, 5)
    assert total_variation(ramp, torch.ones(1, 5, 5)).item() == pytest.approx(5 * 4 * math.sqrt(3) / 4 / 25 * 5)


@pytest.mark.parametrize("masked", [False, True])
def test_the_resolution_does_not_matter(masked: bool) -> None:
    values = []
    for side in (96, 192, 384):
        texture, mask = waves(side)
        values.append(total_variation(texture, mask if masked else torch.ones_like(mask)).item())
    assert values == pytest.approx([values[-1]] * 3, rel=0.02)


def test_bilinear_enlargement_does_not_matter() -> None:
    texture, _ = waves(96)
    larger = torch.nn.functional.interpolate(texture[None], scale_factor=3, mode="bilinear", align_corners=False)[0]
    small, large = (total_variation(t, torch.ones(1, *t.shape[1:])).item() for t in (texture, larger))
    assert large == pytest.approx(small, rel=0.03)


def test_what_lies_outside_the_mask_does_not_matter() -> None:
    texture, mask = waves(32)
    expected = total_variation(texture, mask)
    assert torch.equal(total_variation(torch.where(mask > 0, texture, 1 - texture), mask), expected)
    step = torch.cat([torch.zeros(3, 4, 2), torch.ones(3, 4, 2)], dim=2)
    assert total_variation(step, 1 - step[:1]).item() == 0


def test_gradient_of_a_flat_texture_is_zero() -> None:
    texture = torch.full((3, 8, 8), 0.5, requires_grad=True)
    total_variation(texture, torch.ones(1, 8, 8)).backward()
    assert torch.equal(texture.grad, torch.zeros(3, 8, 8))


def test_gradient_matches_finite_differences() -> None:
    texture, mask = (x.double() for x in waves(12))
    assert torch.autograd.gradcheck(lambda t: total_variation(t, mask), texture.requires_grad_())


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (4, 8, 8), (8, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"regularizer tv: expected one texture \[3, h, w\]"):
        total_variation(torch.zeros(shape), torch.ones(1, 8, 8))
    with pytest.raises(InputError, match=r"its mask \[1, h, w\]"):
        total_variation(torch.zeros(3, 8, 8), torch.ones(1, 8, 9))


def test_the_module_carries_its_weight_and_does_not_apply_it() -> None:
    regularizer = TotalVariation(weight=0.25)
    assert regularizer.weight == 0.25
    assert torch.equal(regularizer(*waves(16)), total_variation(*waves(16)))

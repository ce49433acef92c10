from __future__ import annotations

import torch

from patchattack.controls import CONDITIONS, controls
from patchattack.patch import Patch, random_texture


def patch(**options: object) -> Patch:
    return Patch.create(**{"resolution": 16, "size_mm": [100, 50], **options})


def test_plain_cards_are_plain() -> None:
    made = controls(patch())
    for name, value in {"grey": 0.5, "white": 1.0, "black": 0.0}.items():
        assert torch.equal(made[name](3), torch.full((3, 8, 16), value))
    assert made.keys() < CONDITIONS.keys()


def test_random_textures_change_with_the_repetition() -> None:
    made = controls(patch())["random"]
    assert torch.equal(made(3), random_texture(8, 16, 3))
    assert not torch.equal(made(3), made(7))


def test_the_mean_is_that_of_what_is_printed() -> None:
    """A disc that is red inside and blue in the corners, where nothing is printed."""
    disc = patch(shape="circle", size_mm=50)
    with torch.no_grad():
        disc.parameter.copy_(torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1))
        disc.parameter[:, disc.mask[0] > 0] = torch.tensor([[1.0], [0.5], [0.0]])
    card = controls(disc)["mean"](0)
    assert torch.allclose(card, torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1).expand_as(card))


def test_a_shuffle_moves_texels_within_the_mask() -> None:
    disc = patch(shape="circle", size_mm=50)
    inside = disc.mask[0] > 0
    first, second = (controls(disc)["shuffled"](n) for n in (0, 1))
    texture = disc().detach()
    assert torch.equal(first[:, ~inside], texture[:, ~inside])
    assert not torch.equal(first, texture)
    assert not torch.equal(first, second)

    def colours(image: torch.Tensor) -> set[tuple[float, ...]]:
        return {tuple(colour) for colour in image[:, inside].T.tolist()}

    assert colours(first) == colours(second) == colours(texture)

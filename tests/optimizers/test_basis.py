from __future__ import annotations

import pytest
import torch

from patchattack.errors import InputError
from patchattack.optimizers.basis import KINDS, Basis

SHAPE = torch.Size((3, 12, 24))


@pytest.mark.parametrize("kind", KINDS)
def test_coefficients_give_the_texture_and_are_found_again(kind: str) -> None:
    basis = Basis(kind, 8, SHAPE)
    assert basis.shape == (SHAPE if kind == "pixels" else (3, 4, 8))  # in the texture's proportions
    coefficients = torch.randn(basis.shape, generator=torch.Generator().manual_seed(0))
    texture = basis.texture(coefficients)
    assert texture.shape == SHAPE
    torch.testing.assert_close(basis.coefficients(texture), coefficients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_independent_coefficients_of_variance_one_give_a_texture_of_variance_one(kind: str) -> None:
    basis = Basis(kind, 5, SHAPE)
    columns = torch.stack([basis.texture(unit) for unit in torch.eye(basis.shape.numel()).view(-1, *basis.shape)])
    assert columns.square().sum(dim=0).mean() == pytest.approx(1, rel=1e-5)


def test_pixels_are_the_texture_itself() -> None:
    texture = torch.rand(SHAPE)
    assert torch.equal(Basis("pixels", 1, SHAPE).texture(texture), texture)


def test_a_cell_has_one_colour_and_no_texel_belongs_to_two() -> None:
    basis = Basis("grid", 5, SHAPE)  # no divisor of the sides
    numbers = torch.arange(3.0 * 2 * 5).view(3, 2, 5)
    texture = basis.texture(numbers)
    assert texture.unique().tolist() == numbers.flatten().tolist()
    assert texture[0, 0].tolist() == sorted(texture[0, 0].tolist())


def test_the_lowest_waves_are_a_flat_colour_and_a_half_period() -> None:
    basis = Basis("dct", 2, torch.Size((1, 8, 8)))
    flat, wave = torch.zeros(2, 1, 2, 2)
    flat[0, 0, 0] = wave[0, 0, 1] = 1
    assert basis.texture(flat).std() < 1e-6
    rows = basis.texture(wave)[0]
    assert torch.allclose(rows[0], rows[7])
    torch.testing.assert_close(rows[0], -rows[0].flip(0))
    assert (rows[0].diff() < 0).all()


def test_no_more_coefficients_than_texels() -> None:
    for kind in ("dct", "grid"):
        assert Basis(kind, 100, SHAPE).shape == SHAPE
    assert Basis("grid", 1, SHAPE).shape == (3, 1, 1)


@pytest.mark.parametrize(("kind", "resolution"), [("wavelet", 8), ("dct", 0)])
def test_what_cannot_be_is_refused(kind: str, resolution: int) -> None:
    with pytest.raises(InputError, match="optimizer: expected basis of pixels, dct, grid and resolution >= 1, got"):
        Basis(kind, resolution, SHAPE)

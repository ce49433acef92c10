from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from patchattack.errors import InputError
from patchattack.regularizers.content import Content, content


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def write(path: Path, pixels: Tensor) -> Path:
    Image.fromarray((pixels.permute(1, 2, 0) * 255).round().byte().numpy()).save(path)
    return path


def test_value_by_hand() -> None:
    image = torch.full((3, 2, 2), 0.5)
    texture = image.clone()
    texture[0, 0, 0] = 0.9
    texture[:, 1, 1] = 0.0
    mask = torch.ones(1, 2, 2)
    assert content(texture, image, mask).item() == pytest.approx((0.16 + 3 * 0.25) / 12)
    mask[0, 0, 0] = 0
    assert content(texture, image, mask).item() == pytest.approx(3 * 0.25 / 9)
    assert content(image, image, mask).item() == 0


def test_half_a_mask_counts_half() -> None:
    texture, image = torch.zeros(3, 1, 2), torch.zeros(3, 1, 2)
    texture[:, 0, 0] = 1
    assert content(texture, image, torch.tensor([[[0.5, 1.0]]])).item() == pytest.approx(1 / 3)


def test_gradient_matches_finite_differences() -> None:
    image, mask = random(0, 3, 4, 5).double(), random(1, 1, 4, 5).double()
    texture = random(2, 3, 4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: content(t, image, mask), texture)


@pytest.mark.parametrize("side", [8, 16, 64])
def test_the_resolution_does_not_matter(tmp_path: Path, side: int) -> None:
    """Black against an image of grey and white halves: (0.2² + 1) / 2 at every resolution."""
    halves = torch.cat([torch.full((3, 32, 16), 0.2), torch.ones(3, 32, 16)], dim=2)
    regularizer = Content(1.0, write(tmp_path / "poster.png", halves))
    value = regularizer(torch.zeros(3, side, side), torch.ones(1, side, side))
    assert value.item() == pytest.approx(0.52, abs=0.02)


def test_the_image_itself_costs_nothing_and_is_where_descent_ends(tmp_path: Path) -> None:
    image = (random(0, 3, 6, 9) * 255).round() / 255
    regularizer = Content(weight=0.25, image=str(write(tmp_path / "poster.png", image)))
    mask = torch.ones(1, 6, 9)
    assert regularizer.weight == 0.25
    assert regularizer(image, mask).item() == pytest.approx(0, abs=1e-10)
    texture = random(1, 3, 6, 9).requires_grad_()
    (gradient,) = torch.autograd.grad(regularizer(texture, mask), texture)
    torch.testing.assert_close(texture.detach() - gradient * (3 * 6 * 9) / 2, image)


def test_another_resolution_starts_from_the_whole_image(tmp_path: Path) -> None:
    path = write(tmp_path / "poster.png", random(0, 3, 16, 16))
    regularizer = Content(1.0, path)
    regularizer(torch.zeros(3, 2, 2), torch.ones(1, 2, 2))
    texture, mask = random(1, 3, 16, 16), torch.ones(1, 16, 16)
    assert torch.equal(regularizer(texture, mask), Content(1.0, path)(texture, mask))


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    stripes = (torch.arange(64) % 2).float().expand(3, 64, 64)
    regularizer = Content(1.0, write(tmp_path / "stripes.png", stripes))
    assert regularizer(torch.full((3, 8, 8), 0.5), torch.ones(1, 8, 8)).item() < 1e-3


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (4, 8, 8), (8, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"regularizer content: expected one texture \[3, h, w\]"):
        content(torch.zeros(shape), torch.zeros(3, 8, 8), torch.ones(1, 8, 8))
    with pytest.raises(InputError, match=r"its mask \[1, h, w\]"):
        content(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), torch.ones(1, 8, 9))
    with pytest.raises(InputError, match=r"its image \[3, h, w\]"):
        content(torch.zeros(3, 8, 8), torch.zeros(3, 8, 9), torch.ones(1, 8, 8))


@pytest.mark.parametrize("text", [None, "no image"])
def test_an_image_that_cannot_be_used_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "poster.png"
    if text is not None:
        path.write_text(text)
    with pytest.raises(
        InputError, match=r"content\.image: expected a readable image file, got .*poster\.png"
    ) as caught:
        Content(1.0, path)
    assert "\n" not in str(caught.value)

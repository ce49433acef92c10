"""Defences that change the frames: what they do to pixels, and what an adaptive attack sees of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from patchattack.defenses.bit_depth import BitDepth
from patchattack.defenses.defense import Preprocessing, straight_through
from patchattack.defenses.gradient_smoothing import GradientSmoothing, steepness
from patchattack.defenses.inpainting import EdgeInpainting, EntropyMasking, inpaint
from patchattack.defenses.jpeg import JpegDefense
from patchattack.defenses.smoothing import Gaussian, Median
from patchattack.errors import InputError

ALL = [BitDepth, EdgeInpainting, EntropyMasking, Gaussian, GradientSmoothing, JpegDefense, Median]


def ramp(side: int = 40) -> Tensor:
    """``[1, 3, side, side]`` a smooth picture."""
    along = torch.linspace(0.2, 0.8, side)
    return torch.stack([along.expand(side, side), along.flip(0)[:, None].expand(side, side), along.expand(side, side)])[
        None
    ]


def with_noise(images: Tensor, place: slice = slice(12, 26)) -> Tensor:
    """The same with a square of loud noise."""
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).round()
    result = images.clone()
    result[..., place, place] = noise[..., place, place]
    return result


def gradient(defense: Preprocessing, images: Tensor, weights: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    (defense.clean(leaf) * weights).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def weights_for(images: Tensor) -> Tensor:
    return torch.rand(images.shape, generator=torch.Generator().manual_seed(1)) - 0.5


@pytest.mark.parametrize("make", ALL)
def test_each_image_depends_on_itself_alone_and_stays_in_range(make: Callable[[], Preprocessing]) -> None:
    images = torch.cat([ramp(), with_noise(ramp()), torch.rand(1, 3, 40, 40)])
    cleaned = make().clean(images)
    assert cleaned.shape == images.shape
    assert cleaned.dtype == images.dtype
    assert cleaned.min() >= -1e-5
    assert cleaned.max() <= 1 + 1e-5
    for one, expected in zip(images.split(1), cleaned.split(1), strict=True):
        torch.testing.assert_close(make().clean(one), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("size", [(33, 47), (20, 64)])
def test_gradients_reach_every_loud_pixel_and_are_finite(
    make: Callable[[], Preprocessing], size: tuple[int, int]
) -> None:
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(2))
    found = gradient(make(), images, weights_for(images))
    assert found.isfinite().all()
    assert (found.abs().sum(dim=1) > 0).float().mean() > 0.5
    flat = gradient(make(), torch.full_like(images, 0.5), weights_for(images))
    assert flat.isfinite().all()  # no infinite slope of a length of zero


@pytest.mark.parametrize("make", [EdgeInpainting, EntropyMasking, Gaussian, JpegDefense, Median])
def test_a_smooth_picture_passes(make: Callable[[], Preprocessing]) -> None:
    cleaned = make().clean(ramp())
    assert (cleaned - ramp()).abs().max() < 0.03


def test_straight_through_is_the_value_with_another_gradient() -> None:
    x = torch.tensor([0.3, 0.7], requires_grad=True)
    y = straight_through(x.round(), 3 * x)
    assert y.tolist() == pytest.approx([0.0, 1.0])
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3, 3]


def test_bit_depth_has_the_nearest_of_its_levels() -> None:
    images = torch.tensor([0.0, 0.1, 0.2, 0.5001, 0.9, 1.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert BitDepth(1).clean(images)[0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    expected = torch.tensor([0, 0, 1, 2, 3, 3]) / 3
    torch.testing.assert_close(BitDepth(2).clean(images)[0, 2, 0], expected)
    assert len(BitDepth(3).clean(torch.rand(1, 3, 32, 32)).unique()) == 8


def test_the_gradient_of_bit_depth_is_the_identitys() -> None:
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(gradient(BitDepth(), images, weights_for(images)), weights_for(images))


def test_the_median_of_a_window() -> None:
    image = torch.zeros(1, 3, 5, 5)
    image[..., 2, 2] = 1  # one loud pixel
    assert Median(3).clean(image).max() == 0
    image[..., 2, :] = torch.tensor([0.1, 0.2, 0.9, 0.3, 0.4])
    image[..., 1, :] = 1.0
    # Around the middle: 1, 1, 1, 0.2, 0.9, 0.3, 0, 0, 0.
    assert Median(3).clean(image)[0, 0, 2, 2] == pytest.approx(0.3)
    # In the corner the edge repeats: 0, 0, 1 above and in the row, then 1 below.
    assert Median(3).clean(image)[0, 0, 0, 0] == 0


def test_the_gradient_of_the_median_goes_to_the_median() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3).expand(1, 3, 3, 3) / 9
    weights = torch.zeros(1, 3, 3, 3)
    weights[..., 1, 1] = 1
    found = gradient(Median(3), image, weights)
    assert found[0, 0].nonzero().tolist() == [[1, 1]]


def test_a_gaussian_keeps_the_mean_and_halves_a_checkerboard() -> None:
    board = (torch.arange(32)[:, None] + torch.arange(32)).remainder(2).float().expand(1, 3, 32, 32)
    blurred = Gaussian(0.8).clean(board)
    assert blurred.mean() == pytest.approx(0.5, abs=1e-3)
    assert blurred[..., 8:-8, 8:-8].std() < 0.05


def test_jpeg_is_that_of_a_file_and_changes_little_the_second_time() -> None:
    images = with_noise(ramp())
    once = JpegDefense(50).clean(images)
    assert torch.equal((once * 255).round() / 255, once)
    assert (once - images).abs().mean() > 0.01
    assert (JpegDefense(50).clean(once) - once).abs().mean() < 0.3 * (once - images).abs().mean()
    assert (JpegDefense(95).clean(images) - images).abs().mean() < (once - images).abs().mean()


def test_jpeg_has_the_value_of_the_file_with_and_without_gradient() -> None:
    images = with_noise(ramp())
    torch.testing.assert_close(
        JpegDefense().clean(images.clone().requires_grad_()).detach(), JpegDefense().clean(images)
    )


def test_jpeg_keeps_red_red() -> None:
    red = torch.zeros(1, 3, 16, 16)
    red[:, 0] = 1
    assert (JpegDefense(90).clean(red) - red).abs().max() < 0.05


def test_a_step_along_the_gradient_of_jpeg_raises_the_result() -> None:
    images = with_noise(ramp()) * 0.8 + 0.1
    weights = weights_for(images)
    along = gradient(JpegDefense(75), images, weights)
    after = JpegDefense(75).clean((images + 0.05 * along.sign()).clamp(0, 1))
    assert (after * weights).sum() > (JpegDefense(75).clean(images) * weights).sum()


def test_gradient_smoothing_darkens_a_checkerboard_and_leaves_a_ramp() -> None:
    images = ramp()
    board = (torch.arange(40)[:, None] + torch.arange(40)).remainder(2).float()
    images[..., 10:30, 10:30] = board[10:30, 10:30]
    cleaned = GradientSmoothing(side=9).clean(images)
    assert cleaned[..., 12:28, 12:28].max() < 0.01
    torch.testing.assert_close(cleaned[..., :4, :], images[..., :4, :])
    torch.testing.assert_close(cleaned[..., -4:, :], images[..., -4:, :])


def test_steepness_is_that_of_a_plane() -> None:
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    plane = torch.stack([0.03 * x, 0.04 * y, torch.zeros(6, 6)])[None]
    torch.testing.assert_close(steepness(plane)[0, 0, :-1, :-1], torch.full((5, 5), 0.05))


def test_an_attack_on_black_pixels_learns_that_smoother_ones_come_through() -> None:
    """Where everything is darkened to black, smoothing the pixels still raises the promise of the gradient."""
    images = with_noise(torch.full((1, 3, 40, 40), 0.5))
    found = gradient(GradientSmoothing(side=9), images, torch.ones_like(images))
    smoother = torch.nn.functional.avg_pool2d(images, 3, 1, 1) - images
    inside = (slice(None), slice(None), slice(14, 24), slice(14, 24))
    assert (found[inside] * smoother[inside]).sum() > 0


@pytest.mark.parametrize("defense", [EdgeInpainting(), EntropyMasking(threshold=0.3, side=9, levels=4)])
def test_a_noisy_square_in_a_smooth_picture_is_painted_over(defense: Preprocessing) -> None:
    if isinstance(defense, EntropyMasking):  # black and white have few levels: noise of all greys is what is looked for
        images, loud = torch.full((1, 3, 40, 40), 0.3), torch.rand(14, 14, generator=torch.Generator().manual_seed(0))
        expected = images.clone()
        images[..., 12:26, 12:26] = loud
    else:
        expected, images = ramp(), with_noise(ramp())
    cleaned = defense.clean(images)
    assert (images - expected)[..., 12:26, 12:26].abs().mean() > 0.25
    assert (cleaned - expected)[..., 12:26, 12:26].abs().mean() < 0.1
    assert torch.equal(cleaned[..., :2, :2], images[..., :2, :2])


def test_painting_follows_the_rim_and_leaves_what_is_not_hidden() -> None:
    images = ramp()
    hidden = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    hidden[..., 15:23, 15:23] = True
    spoilt = torch.where(hidden, 5.0, images)
    painted = inpaint(spoilt, hidden)
    assert torch.equal(painted[~hidden.expand_as(images)], images[~hidden.expand_as(images)])
    assert (painted - images).abs().max() < 0.12
    assert torch.equal(inpaint(images, torch.ones_like(hidden)), torch.full_like(images, 0.5))


def test_a_step_along_the_gradient_lowers_the_suspicion_of_a_painted_window() -> None:
    """What is painted over can come back: the gradient of the blend falls with the suspicion."""
    defense = EdgeInpainting()
    images = with_noise(torch.full((1, 3, 40, 40), 0.5))
    noise = images - defense.clean(images)
    found = gradient(defense, images, noise)  # let the noise come through
    before = defense.suspicion(images)[..., 19, 19]
    after = defense.suspicion(images + 0.1 * found / found.abs().max())[..., 19, 19]
    assert before > 1
    assert after < before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JpegDefense(0), "defense.jpeg.quality: expected percent from 1 to 100, got 0"),
        (lambda: BitDepth(9), "defense.bit_depth.bits: expected bits from 1 to 8, got 9"),
        (lambda: Median(4), "defense.median.side: expected an odd number of pixels from 3 on, got 4"),
        (lambda: Gaussian(0), "defense.gaussian.sigma: expected pixels above 0, got 0"),
        (lambda: GradientSmoothing(strength=0), "defense.gradient_smoothing.strength: expected a number above 0"),
        (lambda: GradientSmoothing(threshold=1), "threshold: expected a number between 0 and 1, got 1"),
        (lambda: EdgeInpainting(threshold=0), "defense.inpainting.threshold: expected a number above 0, got 0"),
        (lambda: EdgeInpainting(side=2), "defense.inpainting.side: expected an odd number"),
        (lambda: EntropyMasking(levels=1), "defense.entropy: expected threshold between 0 and 1 and at least 2 levels"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as refused:
        make()
    assert message in str(refused.value)

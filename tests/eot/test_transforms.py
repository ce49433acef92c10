from __future__ import annotations

import inspect

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from patchattack import seeding
from patchattack.eot import appearance, camera
from patchattack.eot.appearance import Brightness, Contrast, Hue, Illumination, PrintNoise, Shadow, WhiteBalance
from patchattack.eot.camera import Defocus, Gamma, Jpeg, MotionBlur, SensorNoise
from patchattack.eot.transform import Transform, check_range, saturate
from patchattack.errors import InputError

NOWHERE = torch.zeros(1, 2, dtype=torch.long)
EVERY: list[Transform] = [
    *(Contrast(), Brightness(), Hue(), WhiteBalance(), Illumination(), Shadow(), PrintNoise()),
    *(Defocus(), MotionBlur(), Gamma(), SensorNoise(), Jpeg()),
]
NEUTRAL: list[tuple[Transform, Tensor]] = [
    (Contrast(), torch.tensor([1.0])),
    (Brightness(), torch.tensor([0.0])),
    (Hue(), torch.tensor([0.0, 1.0])),
    (WhiteBalance(), torch.tensor([1.0, 1.0])),
    (Illumination(), torch.tensor([40.0, 0.0])),
    (Shadow(), torch.tensor([40.0, 0.3, 0.0])),
    (PrintNoise(), torch.zeros(3, 64, 64)),
    (Defocus((0.05, 1.2)), torch.tensor([0.05])),
    (MotionBlur(), torch.tensor([30.0, 0.0])),
    (Gamma(), torch.tensor([1.0])),
    (SensorNoise(), torch.zeros(3, 64, 64)),
]


def numbers(seed: int, count: int) -> seeding.Numbers:
    return seeding.numbers([(seed, row) for row in range(count)])


def name(value: object) -> str:
    return type(value).__name__ if isinstance(value, Transform) else ""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def apply(transform: Transform, image: Tensor, parameters: list[float]) -> Tensor:
    return transform.apply(image, torch.tensor([parameters]).to(image.dtype), NOWHERE)


def test_every_transform_is_tested() -> None:
    known = {
        member
        for module in (appearance, camera)
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Transform) and member is not Transform
    }
    assert known == {type(transform) for transform in EVERY}
    assert known == {type(transform) for transform, _ in NEUTRAL} | {Jpeg}


@pytest.mark.parametrize(("transform", "parameters"), NEUTRAL, ids=name)
def test_neutral_parameters_change_nothing(transform: Transform, parameters: Tensor) -> None:
    for image in (random(1, 3, 24, 40), torch.zeros(1, 3, 24, 40), torch.ones(1, 3, 24, 40)):
        torch.testing.assert_close(transform.apply(image, parameters[None], NOWHERE), image, rtol=0, atol=1e-6)


def test_jpeg_at_full_quality_changes_hardly_anything() -> None:
    """Chroma is stored at half the resolution, so the picture is grey."""
    ramp = torch.linspace(0, 1, 48).expand(1, 3, 32, 48)
    torch.testing.assert_close(apply(Jpeg(), ramp, [100.0]), ramp, rtol=0, atol=2 / 255)


@pytest.mark.parametrize("transform", EVERY, ids=name)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0], ids=["black", "grey", "white"])
def test_gradients_are_finite_and_alive_everywhere(transform: Transform, value: float) -> None:
    """Texels are often exactly black or white: a gradient that dies there would leave them so for ever.

    JPEG is excepted: its rounding is flat where a coefficient is whole, as those of one plain colour may be.
    """
    image = torch.full((4, 3, 32, 32), value, requires_grad=True)
    parameters = transform.draw(numbers(0, 4))
    result = transform.apply(image, parameters, torch.zeros(4, 2, dtype=torch.long))
    weights = random(4, 3, 32, 32)
    (gradient,) = torch.autograd.grad((result * weights).sum(), image)
    assert gradient.isfinite().all()
    assert isinstance(transform, Jpeg) or (gradient != 0).all()


@pytest.mark.parametrize("transform", EVERY, ids=name)
def test_gradients_are_right(transform: Transform) -> None:
    image = (0.3 + 0.4 * random(2, 3, 16, 32)).double().requires_grad_()
    parameters = transform.draw(numbers(0, 2)).double()
    origin = torch.tensor([[0, 0], [16, 32]])
    weights, direction = (random(2, 3, 16, 32, seed=seed).double() - 0.5 for seed in (1, 2))

    def value(image: Tensor) -> Tensor:
        return (transform.apply(image, parameters, origin) * weights).sum()

    (gradient,) = torch.autograd.grad(value(image), image)
    step = 1e-7
    with torch.no_grad():
        difference = (value(image + step * direction) - value(image - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transform", EVERY, ids=name)
def test_a_draw_is_its_row_of_numbers_whatever_the_others_are(transform: Transform) -> None:
    draws = transform.draw(numbers(1, 5))
    assert draws.dtype == torch.float32
    assert torch.equal(draws[:1], transform.draw(numbers(1, 1)))
    assert not torch.equal(draws[0], draws[1])


@pytest.mark.parametrize("transform", EVERY, ids=name)
def test_an_image_does_not_depend_on_its_neighbours_in_the_batch(transform: Transform) -> None:
    images = random(3, 3, 32, 48)
    parameters = transform.draw(numbers(2, 3))
    origin = torch.tensor([[0, 0], [16, 0], [32, 48]])
    together = transform.apply(images, parameters, origin)
    assert together.shape == images.shape
    for i in range(3):
        alone = transform.apply(images[i : i + 1], parameters[i : i + 1], origin[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)


def test_saturate_cuts_off_and_keeps_the_gradient_at_the_bounds() -> None:
    image = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5], requires_grad=True)
    cut = saturate(image)
    assert cut.tolist() == [0, 0, 0.5, 1, 1]
    assert torch.autograd.grad(cut.sum(), image)[0].tolist() == [0, 1, 1, 1, 0]


def test_contrast_scales_about_the_mean_luminance() -> None:
    image = random(1, 3, 8, 8) * 0.4 + 0.3
    result = apply(Contrast(), image, [1.2])
    torch.testing.assert_close(result - result.mean(), (image - image.mean()) * 1.2, rtol=0, atol=2e-3)
    grey = torch.full((1, 3, 4, 4), 0.4)
    torch.testing.assert_close(apply(Contrast(), grey, [0.5]), grey)
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(apply(Contrast(), red, [0.0]), torch.full_like(red, 0.299))


def test_brightness_adds() -> None:
    image = random(1, 3, 4, 4)
    torch.testing.assert_close(apply(Brightness(), image, [0.1]), image + 0.1)


def test_hue_turns_the_chroma_and_keeps_the_luminance() -> None:
    image = random(1, 3, 4, 4)
    luminance = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    turned = apply(Hue(), image, [120.0, 0.7])
    torch.testing.assert_close((turned * luminance).sum(1), (image * luminance).sum(1), rtol=0, atol=2e-3)
    assert (turned - image).abs().max() > 0.1
    around = image
    for _ in range(3):
        around = apply(Hue(), around, [120.0, 1.0])
    torch.testing.assert_close(around, image, rtol=0, atol=1e-3)
    grey = apply(Hue(), image, [50.0, 0.0])
    torch.testing.assert_close(grey, grey.mean(dim=1, keepdim=True).expand_as(grey), rtol=0, atol=1e-5)


def test_white_balance_gains_red_and_blue() -> None:
    result = apply(WhiteBalance(), torch.full((1, 3, 2, 2), 0.5), [0.9, 1.1])
    assert result[0, :, 0, 0].tolist() == pytest.approx([0.45, 0.5, 0.55])


def test_a_shadow_takes_its_share_on_one_side() -> None:
    """Direction 0 is to the right; the edge lies at place 0, the middle."""
    result = apply(Shadow(), torch.ones(1, 3, 20, 40), [0.0, 0.0, 0.4])[0, 0]
    torch.testing.assert_close(result[:, :15], torch.ones(20, 15), rtol=0, atol=0.01)
    torch.testing.assert_close(result[:, 25:], torch.full((20, 15), 0.6), rtol=0, atol=0.01)


def test_noise_has_the_deviation_that_was_drawn() -> None:
    for transform in (PrintNoise(0.03), SensorNoise((0.0, 0.03))):
        deviations = transform.draw(numbers(3, 100)).flatten(1).std(dim=1)
        assert deviations.max() < 0.031
        assert deviations.mean().item() == pytest.approx(0.015, rel=0.15)


def test_sensor_noise_is_fixed_to_the_frame() -> None:
    """A part of the frame has the noise of its place, over the tile's edge as well."""
    tile = SensorNoise().draw(numbers(0, 1))
    whole = SensorNoise().apply(torch.zeros(1, 3, 100, 150), tile, NOWHERE)
    part = SensorNoise().apply(torch.zeros(1, 3, 40, 50), tile, torch.tensor([[70, 45]]))
    assert torch.equal(part, whole[..., 45:85, 70:120])
    assert SensorNoise.per_frame
    assert not any(transform.per_frame for transform in EVERY if not isinstance(transform, SensorNoise))


def test_gamma_is_a_power_that_keeps_black_and_white() -> None:
    image = torch.linspace(0, 1, 52).expand(1, 3, 1, 52)
    for exponent in (0.5, 0.8, 1.25, 2.0):
        result = apply(Gamma(), image, [exponent])
        torch.testing.assert_close(result[..., [0, -1]], image[..., [0, -1]], rtol=0, atol=1e-6)
        torch.testing.assert_close(result[..., 5:], image[..., 5:] ** exponent, rtol=0, atol=0.07)
        assert (result.diff() > 0).all()


@pytest.mark.parametrize("exponent", [0.01, 0.5, 3.0])
def test_gamma_has_a_finite_gradient_at_black(exponent: float) -> None:
    image = torch.zeros(1, 3, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(apply(Gamma(), image, [exponent]).sum(), image)
    assert gradient.isfinite().all()
    assert (gradient > 0).all()


@pytest.mark.parametrize("sigma", [0.6, 1.2])
def test_defocus_is_opencvs_gaussian(sigma: float) -> None:
    image = random(1, 3, 20, 30)
    reference = cv2.GaussianBlur(
        image[0].permute(1, 2, 0).numpy(), (9, 9), sigma, borderType=cv2.BORDER_REPLICATE, sigmaY=sigma
    )
    found = apply(Defocus((0.1, 1.2)), image, [sigma])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, reference, atol=2e-5)


@pytest.mark.parametrize(("angle", "step"), [(0, (0, 1)), (90, (1, 0)), (45, (-1, 1)), (135, (1, 1))])
def test_motion_blur_is_a_line_counter_clockwise_from_the_right(angle: float, step: tuple[int, int]) -> None:
    image = torch.zeros(1, 3, 11, 11)
    image[..., 5, 5] = 1
    blurred = apply(MotionBlur(5), image, [angle, 1.0])[0, 0]
    assert blurred.sum().item() == pytest.approx(1, abs=1e-5)
    y, x = step
    along = sum(blurred[5 + k * y, 5 + k * x] for k in range(-2, 3))
    across = sum(blurred[5 + k * x, 5 - k * y] for k in (-2, -1, 1, 2))
    assert along > 0.5
    assert across < 0.02
    torch.testing.assert_close(apply(MotionBlur(5), image, [angle, 0.5])[0, 0], (blurred + image[0, 0]) / 2)


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_jpeg_is_near_a_real_one(quality: int) -> None:
    image = torch.nn.functional.interpolate(random(1, 3, 8, 12), size=(64, 96), mode="bilinear", align_corners=False)
    bgr = (image[0].flip(0).permute(1, 2, 0) * 255).round().byte().numpy()
    _, coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    real = torch.from_numpy(cv2.imdecode(coded, cv2.IMREAD_COLOR)).permute(2, 0, 1).flip(0).float() / 255
    error = (apply(Jpeg(), image, [float(quality)])[0] - real).square().mean().sqrt()
    lost = (image[0] - real).square().mean().sqrt()
    assert error < 0.015
    assert lost > 0.004  # it does do something


@pytest.mark.parametrize("size", [(32, 48), (33, 41)])
def test_jpeg_has_the_numbers_and_the_gradient_of_kornias(size: tuple[int, int]) -> None:
    from kornia.enhance import jpeg_codec_differentiable

    image = random(8, 3, *size).double().requires_grad_()
    quality = torch.tensor([1.0, 5, 30, 49.5, 50, 75, 97, 100], dtype=torch.float64)
    results = [
        saturate(coded)
        for coded in (Jpeg().apply(image, quality[:, None], NOWHERE), jpeg_codec_differentiable(image, quality))
    ]
    weights = random(8, 3, *size, seed=1).double()
    gradients = [torch.autograd.grad((result * weights).sum(), image)[0] for result in results]
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-8)


@pytest.mark.parametrize("length", [3, 5, 9])
def test_motion_blur_has_the_numbers_of_kornias(length: int) -> None:
    from kornia.filters import motion_blur

    image, angle = random(64, 3, 11, 13).double(), 360 * random(64).double()
    expected = motion_blur(image, length, angle, torch.zeros_like(angle), border_type="replicate")
    found = MotionBlur(length).apply(image, torch.stack([angle, torch.ones_like(angle)], dim=1), NOWHERE)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("transform", "parameters"),
    [
        (Defocus(), torch.tensor([[1.2]])),
        (MotionBlur(), torch.tensor([[0.0, 1.0]])),
        (Gamma(), torch.tensor([[1.2]])),
        (SensorNoise(), torch.zeros(1, 3, 64, 64)),
        (Jpeg(), torch.tensor([[90.0]])),
    ],
    ids=name,
)
def test_the_margin_is_how_far_a_change_spreads(transform: Transform, parameters: Tensor) -> None:
    """A pixel changes nothing farther away than ``margin``, wherever it lies in its JPEG block."""
    image = random(1, 3, 96, 96)
    before = transform.apply(image, parameters, NOWHERE)
    grid = torch.arange(96)
    spread = 0
    for y, x in ((47, 47), (48, 48), (40, 55), (63, 32)):
        changed = image.clone()
        changed[..., y, x] = 1 - changed[..., y, x].round()
        touched = (transform.apply(changed, parameters, NOWHERE) - before)[0].abs().amax(0) > 1e-5
        distance = torch.maximum((grid - y).abs()[:, None], (grid - x).abs()[None])
        spread = max(spread, int(distance[touched].max()))
    assert spread == transform.margin


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Contrast((1.2, 0.8)), "appearance.contrast.range"),
        (lambda: Brightness((-2, 0)), "appearance.brightness.range"),
        (lambda: Hue((-200, 0)), "appearance.hue.range"),
        (lambda: Hue(saturation=(-1, 1)), "appearance.hue.saturation"),
        (lambda: WhiteBalance((-0.1, 1)), "appearance.white_balance.range"),
        (lambda: Illumination(-0.1), "appearance.illumination.strength"),
        (lambda: Shadow(1.5), "appearance.shadow.strength"),
        (lambda: PrintNoise(-0.1), "appearance.print_noise.sigma"),
        (lambda: Defocus((0.0, 1.0)), "camera.defocus.range"),
        (lambda: Gamma((0, 1)), "camera.gamma.range"),
        (lambda: SensorNoise((-0.1, 0.1)), "camera.sensor_noise.range"),
        (lambda: Jpeg((0, 90)), "camera.jpeg.range"),
        (lambda: Jpeg((50, 101)), "camera.jpeg.range"),
        (lambda: MotionBlur(4), "camera.motion_blur.length"),
        (lambda: MotionBlur(1), "camera.motion_blur.length"),
        (lambda: check_range("a.b", (1, 2, 3)), "a.b"),
        (lambda: check_range("a.b", (float("nan"), 1)), "a.b"),
    ],
)
def test_bad_ranges_are_refused(make: object, key: str) -> None:
    with pytest.raises(InputError, match=rf"^{key.replace('.', r'[.]')}: expected .*, got") as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)

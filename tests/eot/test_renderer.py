from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from patchattack import geometry, seeding
from patchattack.eot import appearance, camera
from patchattack.eot.placement import Uniform
from patchattack.eot.renderer import Draw, Renderer
from patchattack.eot.transform import Transform
from patchattack.patch import Patch
from patchattack.scene import Scene, View

SIZE = (112, 144)
PATCH = Patch.create(resolution=32, size_mm=100)
Cameras = dict[str, Transform]


def looks() -> dict[str, Transform]:
    """Every transform of the texture."""
    return {
        "contrast": appearance.Contrast(),
        "brightness": appearance.Brightness(),
        "hue": appearance.Hue(),
        "white_balance": appearance.WhiteBalance(),
        "illumination": appearance.Illumination(),
        "shadow": appearance.Shadow(),
        "print_noise": appearance.PrintNoise(0.01),
    }


def cameras() -> Cameras:
    """Every transform of the frame."""
    return {
        "defocus": camera.Defocus(),
        "motion_blur": camera.MotionBlur(),
        "gamma": camera.Gamma(),
        "sensor_noise": camera.SensorNoise((0.0, 0.01)),
        "jpeg": camera.Jpeg(),
    }


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform in [0.3, 0.7]: far from black and white, where colours are cut off."""
    return 0.3 + 0.4 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scenes(count: int = 2, frames: int = 2, size: tuple[int, int] = SIZE, dtype: torch.dtype = torch.float32) -> Scene:
    """The frames of a scene are one picture."""
    pictures = F.interpolate(random(count, 3, 14, 18, dtype=dtype), size=size, mode="bilinear", align_corners=False)
    return Scene(frames=pictures.unsqueeze(1).repeat(1, frames, 1, 1, 1), index=torch.arange(count))


def draw(renderer: Renderer, scene: Scene, seed: int = 0) -> Draw:
    return renderer.draw(scene, PATCH, seeding.numbers([(seed, i) for i in range(len(scene))]))


def render(renderer: Renderer, texture: Tensor, scene: Scene, seed: int = 0, mask: Tensor | None = None) -> View:
    mask = torch.ones_like(texture[:1]) if mask is None else mask
    return renderer(texture, mask, scene, draw(renderer, scene, seed))


def with_whole_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the renderer works on whole frames."""

    def whole(corners: Tensor, frame: tuple[int, int], margin: int = 0, block: int = 1) -> geometry.Window:  # noqa: ARG001
        return geometry.Window(torch.zeros(len(corners), 2, dtype=torch.long), frame, frame)

    monkeypatch.setattr(geometry.Window, "around", whole)


def both_ways(
    renderer: Renderer, size: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[View, Tensor]]:
    """The view and the gradient of a random functional of it, by crops and on whole frames."""
    scene, texture = scenes(size=size, dtype=dtype), random(3, 32, 32, seed=1, dtype=dtype).requires_grad_()
    one = draw(renderer, scene)
    weights = torch.randn(scene.frames.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    results = []
    for whole in (False, True):
        if whole:
            with_whole_windows(monkeypatch)
        view = renderer(texture, torch.ones_like(texture[:1]), scene, one)
        (gradient,) = torch.autograd.grad((view.frames * weights).sum(), texture)
        results.append((view, gradient))
    return results


@pytest.mark.parametrize("whole_frame", [False, True])
@pytest.mark.parametrize("place", [(0.5, 0.5), (0.0, 1.0), (1.0, 0.0)], ids=["middle", "bottom left", "top right"])
@pytest.mark.parametrize("only", ["defocus", "jpeg", None])
def test_a_crop_is_the_same_as_the_whole_frame(
    only: str | None, place: tuple[float, float], whole_frame: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All transforms on, and those that spread alone: in float64, so that JPEG's rounding cannot fall otherwise."""
    x, y = place
    placement = Uniform(side=0.25, x=(x, x), y=(y, y), tilt=20, motion="random")
    used = {name: transform for name, transform in cameras().items() if only in (name, None)}
    renderer = Renderer(placement, looks(), used, whole_frame)
    (crop, crop_gradient), (whole, gradient) = both_ways(renderer, SIZE, torch.float64, monkeypatch)
    torch.testing.assert_close(crop.frames, whole.frames, rtol=0, atol=1e-10)
    torch.testing.assert_close(crop.coverage, whole.coverage, rtol=0, atol=1e-10)
    torch.testing.assert_close(crop_gradient, gradient, rtol=0, atol=1e-9 * gradient.abs().max().item())
    assert gradient.abs().max() > 0


def test_a_crop_is_the_same_as_the_whole_frame_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of JPEG apart, no size is special."""
    used = {name: transform for name, transform in cameras().items() if name != "jpeg"}
    renderer = Renderer(Uniform(side=0.3, x=(1, 1), y=(1, 1)), looks(), used, whole_frame=True)
    (crop, crop_gradient), (whole, gradient) = both_ways(renderer, (83, 131), torch.float64, monkeypatch)
    torch.testing.assert_close(crop.frames, whole.frames, rtol=0, atol=1e-10)
    torch.testing.assert_close(crop_gradient, gradient, rtol=0, atol=1e-9 * gradient.abs().max().item())


def test_a_crop_is_the_same_as_the_whole_frame_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer(Uniform(side=0.25, motion="random"), looks(), cameras(), whole_frame=True)
    (crop, crop_gradient), (whole, gradient) = both_ways(renderer, SIZE, torch.float32, monkeypatch)
    # A coefficient that JPEG rounds the other way changes its block.
    assert ((crop.frames - whole.frames).abs() < 1e-4).float().mean() > 0.98
    assert (crop_gradient - gradient).norm() < 1e-3 * gradient.norm()


@pytest.mark.parametrize("whole_frame", [False, True])
def test_the_gradient_is_the_slope(whole_frame: bool) -> None:
    """All transforms on, against central differences along a random direction."""
    renderer = Renderer(Uniform(side=0.4, tilt=15, motion="random"), looks(), cameras(), whole_frame)
    scene, texture = scenes(dtype=torch.float64), random(3, 32, 32, seed=1, dtype=torch.float64).requires_grad_()
    one, mask = draw(renderer, scene), Patch.create(shape="circle", resolution=32).mask.double()
    normal = torch.Generator().manual_seed(2)
    weights = torch.randn(scene.frames.shape, generator=normal, dtype=torch.float64)
    direction = torch.randn(texture.shape, generator=normal, dtype=torch.float64)

    def value(texture: Tensor) -> Tensor:
        return (renderer(texture, mask, scene, one).frames * weights).sum()

    (gradient,) = torch.autograd.grad(value(texture), texture)
    step = 1e-8
    with torch.no_grad():
        slope = (value(texture + step * direction) - value(texture - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=0)


def test_colour_mask_and_coverage_share_one_draw() -> None:
    """A white patch in a black scene is its own coverage; a red half begins where the blue half ends."""
    renderer = Renderer(Uniform(side=0.5, rotation=(-40, 40), tilt=30, motion="random"))
    black = dataclasses.replace(scenes(4), frames=torch.zeros(4, 2, 3, *SIZE))
    view = render(renderer, torch.ones(3, 32, 32), black)
    torch.testing.assert_close(view.frames, view.coverage.expand_as(view.frames), rtol=0, atol=1e-6)
    assert not view.coverage.requires_grad

    mask = Patch.create(shape="circle", resolution=32).mask
    round_view = render(renderer, torch.ones(3, 32, 32), black, mask=mask)
    torch.testing.assert_close(round_view.frames, round_view.coverage.expand_as(view.frames), rtol=0, atol=1e-6)
    assert torch.equal(round_view.corners, view.corners)


def test_coverage_lies_within_the_corners() -> None:
    """Its weighted middle and its area are those of the corners' quadrilateral."""
    renderer = Renderer(Uniform(side=0.5, rotation=(-40, 40), motion="random"))
    view = render(renderer, torch.ones(3, 32, 32), scenes(4))
    x, y = view.corners.unbind(-1)
    area = (x * y.roll(-1, -1) - y * x.roll(-1, -1)).sum(-1) / 2
    coverage = view.coverage[:, :, 0].double()
    torch.testing.assert_close(coverage.sum(dim=(2, 3)), area, rtol=0.01, atol=0)
    middle = (coverage[..., None] * geometry.pixel_grid(SIZE).double()).sum(dim=(2, 3)) / area[..., None]
    torch.testing.assert_close(middle, view.corners.mean(dim=2), rtol=0, atol=0.5)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0], ids=["black", "grey", "white"])
def test_any_colour_is_opaque(value: float) -> None:
    view = render(Renderer(Uniform(side=0.5)), torch.full((3, 32, 32), value), scenes())
    covered = (view.coverage > 1 - 1e-6).expand_as(view.frames)
    assert covered.float().mean() > 0.1
    torch.testing.assert_close(view.frames[covered], torch.full_like(view.frames[covered], value))
    expected = scenes().frames * (1 - view.coverage) + value * view.coverage
    torch.testing.assert_close(view.frames, expected)


def test_what_the_mask_hides_is_not_seen_and_has_no_gradient() -> None:
    mask = torch.ones(1, 32, 32)
    mask[..., :16] = 0
    texture = random(3, 32, 32).requires_grad_()
    renderer = Renderer(Uniform(side=0.5, rotation=(0, 0)))
    view = render(renderer, texture, scenes(), mask=mask)
    (gradient,) = torch.autograd.grad(view.frames.sum(), texture)
    assert gradient[..., :16].abs().max() == 0
    assert gradient[..., 16:].min() > 0
    full = render(renderer, texture, scenes())
    torch.testing.assert_close(view.coverage.mean(), full.coverage.mean() / 2, rtol=0.01, atol=0)


@pytest.mark.parametrize("used", [{}, cameras()], ids=["no camera", "camera"])
@pytest.mark.parametrize("motion", ["static", "random"])
def test_the_rest_of_the_frame_stays_bit_for_bit(used: Cameras, motion: str) -> None:
    renderer = Renderer(Uniform(side=0.2, tilt=20, motion=motion), looks(), used)
    scene = scenes(3)
    view = render(renderer, random(3, 32, 32, seed=1), scene)
    reach = renderer.margin
    near = F.max_pool2d(view.coverage.flatten(0, 1), 2 * reach + 1, 1, reach).view_as(view.coverage) > 0
    beside = ~near.expand_as(view.frames)
    assert beside.float().mean() > 0.2
    assert torch.equal(view.frames[beside], scene.frames[beside])
    assert not torch.equal(view.frames, scene.frames)


def test_a_whole_frame_camera_takes_the_rest_of_the_frame_too() -> None:
    renderer = Renderer(Uniform(side=0.2), looks(), cameras(), whole_frame=True)
    scene = scenes()
    one = draw(renderer, scene)
    view = renderer(random(3, 32, 32, seed=1), torch.ones(1, 32, 32), scene, one)
    expected = scene.frames.flatten(0, 1)
    for transform, parameters in zip(renderer.camera, one.camera, strict=True):
        expected = transform.apply(expected, parameters.flatten(0, 1), torch.zeros(4, 2, dtype=torch.long)).clamp(0, 1)
    reach = renderer.margin
    near = F.max_pool2d(view.coverage.flatten(0, 1), 2 * reach + 1, 1, reach) > 0
    beside = ~near.expand_as(expected)
    assert beside.float().mean() > 0.2
    torch.testing.assert_close(view.frames.flatten(0, 1)[beside], expected[beside], rtol=0, atol=1e-6)
    assert (view.frames != scene.frames).float().mean() > 0.9


@pytest.mark.parametrize("whole_frame", [False, True])
@pytest.mark.parametrize("offset", [(-500, 0), (500, 0), (0, -500), (-300, 900)])
def test_a_patch_beside_the_frame_leaves_it_alone(offset: tuple[int, int], whole_frame: bool) -> None:
    renderer = Renderer(Uniform(side=0.2), looks(), cameras(), whole_frame)
    scene = scenes()
    one = draw(renderer, scene)
    away = dataclasses.replace(one, corners=one.corners + torch.tensor(offset))
    texture = random(3, 32, 32, seed=1).requires_grad_()
    view = renderer(texture, torch.ones(1, 32, 32), scene, away)
    assert view.coverage.max() == 0
    other = renderer(1 - texture, torch.ones(1, 32, 32), scene, away)
    assert torch.equal(view.frames, other.frames)
    assert whole_frame or torch.equal(view.frames, scene.frames)


@pytest.mark.parametrize("whole_frame", [False, True])
def test_both_frames_share_appearance_and_camera_except_noise(whole_frame: bool) -> None:
    """One picture twice, and a patch that stands still: without noise both frames come out alike."""
    quiet = {name: transform for name, transform in cameras().items() if name != "sensor_noise"}
    placement = Uniform(side=0.3, tilt=10)
    texture = random(3, 32, 32, seed=1)
    first, second = render(Renderer(placement, looks(), quiet, whole_frame), texture, scenes()).frames.unbind(1)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)

    one = draw(renderer := Renderer(placement, looks(), cameras(), whole_frame), scenes())
    for (name, _), parameters in zip(cameras().items(), one.camera, strict=True):
        assert torch.equal(parameters[:, 0], parameters[:, 1]) == (name != "sensor_noise")
    first, second = render(renderer, texture, scenes()).frames.unbind(1)
    assert (first - second).abs().max() > 1e-3


def fields(one: Draw) -> list[Tensor]:
    return [one.corners, *one.appearance, *one.camera]


def test_a_draw_does_not_depend_on_the_batch() -> None:
    renderer = Renderer(Uniform(side=0.3, tilt=10, motion="random"), looks(), cameras())
    scene = scenes(4)
    together = draw(renderer, scene)
    for i in range(4):
        alone = renderer.draw(scene.select(slice(i, i + 1)), PATCH, seeding.numbers([(0, i)]))
        for one, all_of_them in zip(fields(alone), fields(together), strict=True):
            assert torch.equal(one[0], all_of_them[i])
    for column in fields(together):
        assert not torch.equal(column[0], column[1])


def test_another_transform_changes_no_number_of_the_others() -> None:
    placement = Uniform(side=0.3, motion="random")
    every = draw(Renderer(placement, looks(), cameras()), scenes())
    for left_out in (*looks(), *cameras()):
        appearance, camera = ({k: v for k, v in all_.items() if k != left_out} for all_ in (looks(), cameras()))
        fewer = draw(Renderer(placement, appearance, camera), scenes())
        assert torch.equal(fewer.corners, every.corners)
        for names, some, all_ in (
            ((appearance, looks()), fewer.appearance, every.appearance),
            ((camera, cameras()), fewer.camera, every.camera),
        ):
            whole = dict(zip(names[1], all_, strict=True))
            assert all(torch.equal(value, whole[name]) for name, value in zip(names[0], some, strict=True))


@pytest.mark.parametrize("texels", [32, 3])
def test_a_view_does_not_depend_on_the_batch(texels: int) -> None:
    """A texel that is many pixels wide reaches beyond the corners: the blur there must not see the window's edge."""
    renderer = Renderer(Uniform(side=0.3, tilt=10), looks(), {"defocus": camera.Defocus(), "gamma": camera.Gamma()})
    scene, texture, mask = scenes(4), random(3, texels, texels, seed=1), torch.ones(1, texels, texels)
    together = renderer(texture, mask, scene, draw(renderer, scene))
    for i in range(4):
        part = scene.select(slice(i, i + 1))
        one = renderer.draw(part, PATCH, seeding.numbers([(0, i)]))
        alone = renderer(texture, mask, part, one)
        torch.testing.assert_close(alone.frames[0], together.frames[i], rtol=0, atol=5e-5)


def test_the_same_keys_give_the_same_draw() -> None:
    renderer = Renderer(Uniform(side=0.3, motion="random"), looks(), cameras())
    first, again, other = (draw(renderer, scenes(), seed) for seed in (0, 0, 1))
    for a, b, c in zip(fields(first), fields(again), fields(other), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_a_draw_can_be_replayed_with_another_texture() -> None:
    renderer = Renderer(Uniform(side=0.3, motion="random"), looks(), cameras())
    scene, mask = scenes(), torch.ones(1, 32, 32)
    one = draw(renderer, scene)
    first, other, again = (renderer(random(3, 32, 32, seed=seed), mask, scene, one) for seed in (1, 2, 1))
    assert torch.equal(first.frames, again.frames)
    assert not torch.equal(first.frames, other.frames)
    assert torch.equal(first.coverage, other.coverage)
    assert torch.equal(first.corners, other.corners)


def test_views_leave_the_patch_and_the_scene_as_they_are() -> None:
    """Neither jitter nor gradients pile up from view to view."""
    patch = Patch.create(resolution=32)
    renderer = Renderer(Uniform(side=0.3), looks(), cameras())
    scene = scenes()
    before, frames = patch().detach().clone(), scene.frames.clone()

    def gradient(seed: int) -> Tensor:
        return torch.autograd.grad(render(renderer, patch(), scene, seed).frames.square().sum(), patch.parameter)[0]

    first = gradient(0)
    gradient(1)
    assert torch.equal(gradient(0), first)
    assert torch.equal(patch(), before)
    assert torch.equal(scene.frames, frames)


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["black", "white"])
def test_a_black_or_white_texel_can_still_move(value: float) -> None:
    """Through every transform of the camera, and in a scene of the same colour."""
    scene = dataclasses.replace(scenes(), frames=torch.full((2, 2, 3, *SIZE), value))
    used = {"defocus": camera.Defocus(), "motion_blur": camera.MotionBlur(), "gamma": camera.Gamma()}
    texture = torch.full((3, 32, 32), value, requires_grad=True)
    view = render(Renderer(Uniform(side=0.5), {"white_balance": appearance.WhiteBalance((1, 1))}, used), texture, scene)
    (gradient,) = torch.autograd.grad(view.frames.sum(), texture)
    assert gradient.isfinite().all()
    assert (gradient > 0).float().mean() > 0.95


@pytest.mark.parametrize("whole_frame", [False, True])
def test_a_view_is_a_picture(whole_frame: bool) -> None:
    """Whatever is drawn, colours and coverage stay in [0, 1]; a frame keeps its size and type."""
    wild: dict[str, Transform] = {"contrast": appearance.Contrast((3, 3)), "brightness": appearance.Brightness((0, 1))}
    renderer = Renderer(Uniform(side=0.5, tilt=60), looks() | wild, cameras(), whole_frame)
    scene = dataclasses.replace(scenes(), frames=torch.rand(2, 2, 3, *SIZE, generator=seeding.generator(0)).round())
    view = render(renderer, torch.rand(3, 32, 32, generator=seeding.generator(1)).round(), scene)
    assert view.frames.shape == scene.frames.shape
    assert view.frames.dtype == torch.float32
    assert view.corners.shape == (2, 2, 4, 2)
    assert view.coverage.shape == (2, 2, 1, *SIZE)
    assert -1e-6 <= view.coverage.min() <= view.coverage.max() <= 1 + 1e-6
    assert view.frames.min() >= 0
    assert view.frames.max() <= 1


def on_a_board(motion: str) -> tuple[Scene, View]:
    """A patch on an upright board whose left half, and in frame 1 all of it, stands behind something."""
    board = torch.tensor([[40.0, 30], [90, 30], [90, 80], [40, 80]]).expand(1, 2, 4, 2)
    occluder = torch.zeros(1, 2, 1, *SIZE, dtype=torch.bool)
    occluder[:, 0, :, :, :65] = True
    occluder[:, 1] = True
    scene = dataclasses.replace(scenes(1), surface=board, occluder=occluder)
    renderer = Renderer(Uniform(side=0.4, motion=motion, rotation=(0, 0), x=(0.4, 0.4)))
    return scene, render(renderer, random(3, 32, 32, seed=1), scene)


def test_what_stands_before_the_surface_hides_the_patch() -> None:
    scene, view = on_a_board("scene")
    assert scene.occluder is not None
    assert view.coverage[scene.occluder].max() == 0
    assert view.coverage[0, 0, 0, 35:75, 66:85].min() > 0.99
    hidden = scene.occluder.expand_as(view.frames)
    assert torch.equal(view.frames[hidden], scene.frames[hidden])


def test_a_patch_that_is_not_on_the_surface_is_before_everything() -> None:
    scene, view = on_a_board("static")
    assert scene.occluder is not None
    assert view.coverage[scene.occluder].max() == 1


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("make", [dict, cameras], ids=["no camera", "camera"])
def test_every_scene_gets_its_own_place(frames: int, make: Callable[[], Cameras]) -> None:
    """In a batch the crops go back to where they were taken from."""
    renderer = Renderer(Uniform(side=0.2), {}, make())
    scene = dataclasses.replace(scenes(3, frames), frames=torch.zeros(3, frames, 3, *SIZE))
    view = render(renderer, torch.ones(3, 32, 32), scene)
    for i in range(3):
        for t in range(frames):
            x, y = view.corners[i, t].mean(dim=0).round().long().tolist()
            assert view.frames[i, t, :, y, x].min() > 0.9
            assert view.coverage[i, t, 0, y, x] > 0.99

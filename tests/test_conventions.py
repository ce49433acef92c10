"""The conventions that the docstring of ``patchattack.scene`` states, one test each."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from patchattack import geometry, seeding
from patchattack.attacks.flow import FlowAttack
from patchattack.data.world import World
from patchattack.eot.appearance import Illumination
from patchattack.eot.placement import Uniform
from patchattack.eot.renderer import Draw, Renderer
from patchattack.patch import Patch
from patchattack.scene import Scene, View

SIZE = (24, 32)
WHOLE = torch.tensor([[-0.5, -0.5], [31.5, -0.5], [31.5, 23.5], [-0.5, 23.5]], dtype=torch.float64)
SMOOTH = torch.tensor([1.0, 6.0, 1.0]) / 8  # what 2×2 bilinear samples per pixel do to a texture at 1:1


def black(frames: int = 1, size: tuple[int, int] = SIZE) -> Scene:
    return Scene(frames=torch.zeros(1, frames, 3, *size), index=torch.zeros(1, dtype=torch.long))


def render(texture: Tensor, scene: Scene, corners: Tensor) -> View:
    draw = Draw(corners.expand(1, scene.frames.shape[1], 4, 2), on_surface=False, appearance=(), camera=())
    return Renderer(Uniform(side=0.5))(texture, torch.ones(1, *texture.shape[1:]), scene, draw)


def upright(left: float, top: float, right: float, bottom: float) -> Tensor:
    return torch.tensor([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=torch.float64)


def test_an_integer_is_the_centre_of_a_pixel() -> None:
    """A texture as large as the frame, from -0.5 to W - 0.5, lands texel on pixel."""
    texture = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    window = geometry.Window.around(WHOLE[None], SIZE)
    assert window.size == SIZE
    assert window.origin.tolist() == [[0, 0]]
    out = geometry.warp_texture(texture, geometry.homography_from_corners(WHOLE[None]), window, supersampling=1)
    torch.testing.assert_close(out, texture, rtol=0, atol=1e-10)


def test_the_renderer_is_centred() -> None:
    """At 1:1 it smoothes symmetrically, and a ramp comes back as it is."""
    texture = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    seen = render(texture, black(), WHOLE).frames[0, 0]
    kernel = (SMOOTH[:, None] * SMOOTH).expand(3, 1, 3, 3)
    expected = torch.nn.functional.conv2d(texture[None], kernel, groups=3)[0]
    torch.testing.assert_close(seen[:, 1:-1, 1:-1], expected, rtol=0, atol=2e-6)

    ramp = geometry.pixel_grid(SIZE).permute(2, 0, 1).sum(dim=0, keepdim=True).expand(3, -1, -1) / 64
    seen = render(ramp, black(), WHOLE).frames[0, 0]
    torch.testing.assert_close(seen[:, 1:-1, 1:-1], ramp[:, 1:-1, 1:-1], rtol=0, atol=2e-6)


def test_the_frame_spans_half_a_pixel_more_on_every_side() -> None:
    """A white patch over the whole frame covers every pixel, and one that ends at 3.5 covers pixel 3 but not 4."""
    white = torch.ones(3, 64, 64)
    assert render(white, black(), WHOLE).coverage.min() > 0.85  # its own edge is as soft as a texel
    narrow = render(white, black(), upright(-0.5, -0.5, 3.5, 3.5)).coverage[0, 0, 0]
    assert narrow[:3, :3].min() == 1
    assert min(narrow[3, 1], narrow[1, 3]) > 0.9
    assert narrow[:, 4:].max() < 0.1


def test_corners_are_top_left_top_right_bottom_right_bottom_left() -> None:
    texture = torch.zeros(3, 16, 16)
    texture[0, :8, :8] = 1  # red top-left
    texture[1, :8, 8:] = 1  # green top-right
    texture[2, 8:, 8:] = 1  # blue bottom-right
    seen = render(texture, black(), upright(2, 2, 22, 22)).frames[0, 0]
    places = {"top-left": (6, 6), "top-right": (6, 17), "bottom-right": (17, 17), "bottom-left": (17, 6)}
    colours = {name: seen[:, y, x].round().tolist() for name, (y, x) in places.items()}
    assert colours == {
        "top-left": [1, 0, 0],
        "top-right": [0, 1, 0],
        "bottom-right": [0, 0, 1],
        "bottom-left": [0, 0, 0],
    }


@pytest.mark.parametrize("motion", ["static", "scene"])
def test_a_positive_rotation_is_counter_clockwise_on_the_screen(motion: str) -> None:
    """Turned by 90°, the patch's top-left corner is at the bottom left: on its own and on a surface."""
    scene = dataclasses.replace(black(), surface=upright(6, 2, 26, 22)[None, None]) if motion == "scene" else black()
    placement = Uniform(side=0.5, rotation=(90, 90), scale=(1, 1), x=(0.5, 0.5), y=(0.5, 0.5), motion=motion)
    numbers = torch.rand(1, 16, generator=seeding.generator(0))
    corners = placement.draw(scene, Patch.create(resolution=8, size_mm=100), numbers)[0, 0]
    left, top = corners.amin(0).tolist()
    right, bottom = corners.amax(0).tolist()
    expected = torch.tensor([[left, bottom], [left, top], [right, top], [right, bottom]], dtype=torch.float64)
    torch.testing.assert_close(corners, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("angle", "brightest"), [(0, (8, 15)), (90, (0, 8)), (180, (8, 0)), (270, (15, 8))])
def test_a_direction_of_light_is_counter_clockwise_from_the_right(angle: float, brightest: tuple[int, int]) -> None:
    lit = Illumination().apply(torch.full((1, 3, 17, 17), 0.5), torch.tensor([[angle, 0.3]]), torch.zeros(1, 2))[0, 0]
    y, x = brightest
    assert lit[y, x] > 0.5 * 1.12
    assert lit[16 - y, 16 - x] < 0.5 * 0.88


def test_flow_is_x_right_y_down_from_frame_0_to_frame_1() -> None:
    """Where nothing hides it, the flow at a surface's centre is how its corners move."""
    scenes = World(scenes=6, size=(64, 64)).__getitems__(list(range(6)))
    assert scenes.flow is not None
    assert scenes.surface is not None
    moved = (scenes.surface[:, 1] - scenes.surface[:, 0]).mean(dim=1)
    centre = scenes.surface[:, 0].mean(dim=1).round().long().clamp(0, 63)
    flow = torch.stack([scenes.flow[i, :, y, x] for i, (x, y) in enumerate(centre.tolist())])
    visible = torch.tensor([not scenes.occluder[i, 0, 0, y, x] for i, (x, y) in enumerate(centre.tolist())])  # type: ignore[index]
    assert visible.sum() >= 3
    torch.testing.assert_close(flow[visible], moved[visible], rtol=0.1, atol=0.3)


def test_a_flow_to_the_right_moves_the_patch_to_the_right() -> None:
    corners = torch.stack([upright(4, 4, 12, 12), upright(7, 5, 15, 13)])[None]
    draw = Draw(corners, on_surface=False, appearance=(), camera=())
    scene = black(frames=2)
    view = Renderer(Uniform(side=0.5))(torch.ones(3, 8, 8), torch.ones(1, 8, 8), scene, draw)
    torch.testing.assert_close(view.coverage[0, 0, 0, 2:20, 2:20], view.coverage[0, 1, 0, 3:21, 5:23])
    shown = torch.tensor([3.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, *SIZE)
    metrics = FlowAttack().metrics(shown, shown, dataclasses.replace(scene, flow=shown), view)
    assert metrics["epe_truth", "all"].item() == 0


def test_a_scene_becomes_float_rgb_on_the_device() -> None:
    frames = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 16, 16).repeat(1, 1, 3, 1, 1)
    frames[0, 0, 0], frames[0, 0, 2] = 255, 0
    scene = Scene(frames=frames, index=torch.tensor([7]), flow=torch.ones(1, 2, 16, 16)).to("cpu")
    assert scene.frames.dtype == torch.float32
    assert torch.equal(scene.frames[0, 0, 1], torch.arange(256).view(16, 16) / 255)
    assert scene.frames[0, 0, :, 3, 3].tolist() == [1.0, pytest.approx(51 / 255), 0.0]  # red stays first
    assert torch.equal(scene.to("cpu").frames, scene.frames)  # once is enough
    assert scene.index.tolist() == [7]
    assert scene.size == (16, 16)


def test_a_loss_is_lower_when_the_attack_is_stronger_and_comes_per_scene() -> None:
    clean = torch.ones(3, 2, 8, 8)
    output = clean * torch.tensor([1.0, 0.0, -1.0]).view(3, 1, 1, 1)
    view = View(torch.zeros(3, 2, 3, 8, 8), torch.zeros(3, 2, 1, 8, 8), torch.zeros(3, 2, 4, 2))
    scene = Scene(frames=view.frames, index=torch.arange(3))
    loss = FlowAttack().loss(output, clean, scene, view)
    assert loss.shape == (3,)
    assert loss[0] > loss[1] > loss[2]

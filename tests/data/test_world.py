from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from patchattack import geometry, seeding
from patchattack.data.world import LAYOUT, World, _cast
from patchattack.errors import InputError
from patchattack.scene import Scene

SIZE = (64, 128)
SCENES = 16


@pytest.fixture(scope="module")
def world() -> World:
    return World(scenes=SCENES, size=SIZE)


@pytest.fixture(scope="module")
def scenes(world: World) -> Scene:
    return world.__getitems__(list(range(SCENES)))


def known(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def targets(scenes: Scene) -> Tensor:
    """Where the flow says that each pixel of frame 0 is in frame 1, ``[B, H, W, 2]``."""
    return geometry.pixel_grid(SIZE) + known(scenes.flow).permute(0, 2, 3, 1)


def flow_if_nothing_moves(scenes: Scene) -> Tensor:
    """``[B, 2, H, W]`` float64 from depth, camera matrix and motion alone."""
    grid = geometry.pixel_grid(SIZE).double()
    rays = torch.cat([grid, torch.ones(*SIZE, 1)], dim=-1) @ torch.linalg.inv(
        known(scenes.intrinsics).double()
    ).mT.unsqueeze(1)
    points = rays * known(scenes.depth).double().permute(0, 2, 3, 1)  # [B, H, W, 3]
    motion = known(scenes.motion).double()[:, None]
    there = (points @ motion[..., :3, :3].mT + motion[..., None, :3, 3]) @ known(scenes.intrinsics).double()[:, None].mT
    return (there[..., :2] / there[..., 2:] - grid).permute(0, 3, 1, 2)


def seen_speed(world: World, indices: range) -> Tensor:
    """Metres that what each pixel of frame 0 shows moves by itself, ``[B, H, W]``."""
    draws = torch.stack([torch.rand(320, generator=seeding.generator(world.seed, LAYOUT, i)) for i in indices])
    planes, _, rotations, centres = world._lay_out(draws)
    to_planes = torch.linalg.inv(world._to_pixels(planes, 0, rotations[:, 0], centres[:, 0])).float()
    grid = geometry.pixel_grid(SIZE)
    hit = _cast(to_planes, grid[:1, :, 0], grid[:, :1, 1])
    return planes.velocity.norm(dim=-1)[torch.arange(len(draws))[:, None, None], hit.plane]


def test_a_batch_has_the_shapes_and_types_of_a_scene(scenes: Scene) -> None:
    height, width = SIZE
    shapes = {
        "frames": (2, 3, height, width),
        "index": (),
        "flow": (2, height, width),
        "occluded": (1, height, width),
        "depth": (1, height, width),
        "intrinsics": (3, 3),
        "motion": (4, 4),
        "surface": (2, 4, 2),
        "occluder": (2, 1, height, width),
    }
    assert {field.name: tuple(getattr(scenes, field.name).shape[1:]) for field in fields(scenes)} == shapes
    assert len(scenes) == SCENES
    assert scenes.frames.dtype == torch.uint8
    assert scenes.index.tolist() == list(range(SCENES))
    assert known(scenes.occluded).dtype == known(scenes.occluder).dtype == torch.bool
    assert known(scenes.flow).isfinite().all()
    assert known(scenes.depth).isfinite().all()
    assert (known(scenes.depth) > 0).all()


def test_frame_1_warped_by_the_flow_is_frame_0(scenes: Scene) -> None:
    first, second = scenes.frames.float().unbind(1)
    warped = geometry.sample(second, targets(scenes))
    visible = ~known(scenes.occluded)[:, 0]
    for i in range(SCENES):
        with_flow = (warped - first)[i].abs().mean(0)[visible[i]].mean()
        without = (second - first)[i].abs().mean(0)[visible[i]].mean()
        assert with_flow < 6  # of 255: bilinear sampling of fine texture
        assert with_flow < 0.5 * without


def test_flow_is_from_frame_0_to_frame_1(scenes: Scene) -> None:
    """The reverse reading, frame 0 warped onto frame 1, must fit much worse."""
    first, second = scenes.frames.float().unbind(1)
    forward = (geometry.sample(second, targets(scenes)) - first).abs().mean()
    reverse = (geometry.sample(first, targets(scenes)) - second).abs().mean()
    assert forward < 0.6 * reverse


def test_flow_of_what_stands_still_follows_from_depth_and_motion(world: World, scenes: Scene) -> None:
    error = (flow_if_nothing_moves(scenes) - known(scenes.flow)).norm(dim=1)
    assert ((error < 0.01).float().mean(dim=(1, 2)) > 0.8).all()
    speed = seen_speed(world, range(SCENES))
    assert error[speed == 0].max() < 0.01
    assert (speed[error >= 0.01] > 0).all()
    assert (error >= 0.01).any()  # vehicles do move


def test_the_surface_moves_as_the_flow_says(scenes: Scene) -> None:
    surface = known(scenes.surface)
    before, after = (geometry.homography_from_corners(surface[:, t]) for t in range(2))
    pixels = geometry.pixel_grid(SIZE).double().view(1, -1, 2).expand(SCENES, -1, -1)
    place = geometry.project(torch.linalg.inv(before), pixels)
    on_surface = ((place > 0) & (place < 1)).all(-1).view(SCENES, *SIZE) & ~known(scenes.occluder)[:, 0, 0]
    assert (on_surface.sum(dim=(1, 2)) > 50).all()
    moved = geometry.project(after, place).view(SCENES, *SIZE, 2)
    assert (moved - targets(scenes))[on_surface].norm(dim=-1).max() < 0.01


def test_the_surface_is_flat_in_depth(scenes: Scene) -> None:
    """A plane's inverse depth is affine in the pixel."""
    surface = known(scenes.surface)[:, 0]
    pixels = geometry.pixel_grid(SIZE).double()
    place = geometry.project(
        torch.linalg.inv(geometry.homography_from_corners(surface)), pixels.view(1, -1, 2).expand(SCENES, -1, -1)
    )
    on_surface = ((place > 0) & (place < 1)).all(-1).view(SCENES, *SIZE) & ~known(scenes.occluder)[:, 0, 0]
    for i in range(SCENES):
        system = torch.cat([pixels[on_surface[i]], torch.ones(int(on_surface[i].sum()), 1)], dim=1)
        inverse_depth = 1 / known(scenes.depth)[i, 0][on_surface[i]].double()
        fit = system @ torch.linalg.lstsq(system, inverse_depth.unsqueeze(1)).solution.squeeze(1)
        torch.testing.assert_close(fit, inverse_depth, rtol=1e-4, atol=0)
        assert inverse_depth.min() > 1 / 30  # the billboard stands 5 to 14 metres away, not on the horizon


def test_what_leaves_the_frame_is_occluded(scenes: Scene) -> None:
    there = targets(scenes)
    edge = torch.tensor([SIZE[1] - 0.5, SIZE[0] - 0.5])
    left = ((there < -0.5) | (there > edge)).any(-1)
    assert left.any()
    assert known(scenes.occluded)[:, 0][left].all()


def test_what_is_hidden_in_frame_1_is_occluded(scenes: Scene) -> None:
    """Within the frame, few pixels are occluded, and there frame 1 shows something else."""
    there = targets(scenes)
    inside = ((there >= -0.5) & (there <= torch.tensor([SIZE[1] - 0.5, SIZE[0] - 0.5]))).all(-1)
    hidden, visible = inside & known(scenes.occluded)[:, 0], inside & ~known(scenes.occluded)[:, 0]
    assert 0 < hidden.sum() < 0.15 * inside.sum()
    first, second = scenes.frames.float().unbind(1)
    error = (geometry.sample(second, there) - first).abs().mean(1)
    assert error[hidden].mean() > 5 * error[visible].mean()


def test_a_scene_is_the_same_in_any_batch(world: World, scenes: Scene) -> None:
    shuffled = world.__getitems__([5, 0, 5, 11])
    alone = world[11]
    for field in fields(Scene):
        column = getattr(scenes, field.name)
        assert torch.equal(getattr(shuffled, field.name), column[[5, 0, 5, 11]]), field.name
        assert torch.equal(getattr(alone, field.name), column[[11]]), field.name


def test_rendering_a_batch_at_once_changes_nothing(world: World, scenes: Scene) -> None:
    """On a device scenes are rendered together, on the host one by one."""
    together = world._scenes([2, 7, 9])
    for field in fields(Scene):
        expected = getattr(scenes, field.name)[[2, 7, 9]]
        torch.testing.assert_close(
            getattr(together, field.name), expected, msg=lambda text, n=field.name: f"{n}: {text}"
        )


def test_a_world_is_its_seed(scenes: Scene) -> None:
    again, other = World(scenes=2, size=SIZE), World(scenes=2, size=SIZE, seed=1)
    assert torch.equal(again[1].frames, scenes.frames[1:2])
    assert not torch.equal(other[1].frames, scenes.frames[1:2])
    assert not torch.equal(known(other[1].flow), known(scenes.flow)[1:2])
    assert not torch.equal(scenes.frames[0], scenes.frames[1])


def test_the_field_of_view_spans_the_width() -> None:
    intrinsics = known(World(scenes=1, size=SIZE, field_of_view=60.0)[0].intrinsics)[0]
    edge = torch.tensor([-0.5, SIZE[0] / 2 - 0.5, 1.0])
    ray = torch.linalg.inv(intrinsics) @ edge
    assert torch.rad2deg(torch.atan2(ray[0], ray[2])).item() == pytest.approx(-30, abs=1e-4)


def test_the_number_of_scenes() -> None:
    assert len(World(scenes=3, size=(16, 16))) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenes": 0}, "expected scenes >= 1"),
        ({"size": (8, 64)}, r"size \[h, w\] >= \[16, 16\]"),
        ({"size": (64,)}, r"size \[h, w\]"),
        ({"seed": -1}, "seed >= 0"),
        ({"supersampling": 0}, "supersampling >= 1"),
        ({"field_of_view": 0.0}, r"data.field_of_view: expected degrees in \(0, 110\], got 0"),
        ({"field_of_view": 180.0}, "got 180"),
        ({"size": (256, 128)}, "data.size: expected frames at most 110° high, got 127°"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        World(**arguments)


def test_the_scenes_come_to_an_end() -> None:
    assert len(list(World(scenes=2, size=(16, 16)))) == 2


def test_rays_at_the_widest_angles_meet_something() -> None:
    scene = World(scenes=8, size=(110, 110), field_of_view=110.0).__getitems__(list(range(8)))
    assert known(scene.depth).isfinite().all()
    assert known(scene.flow).isfinite().all()

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from patchattack import geometry, seeding
from patchattack.data.world import World
from patchattack.eot.placement import DRAWS, OnSurface, Placement, Uniform
from patchattack.eot.renderer import Renderer
from patchattack.errors import InputError
from patchattack.patch import Patch
from patchattack.scene import Scene, View

SIZE = (96, 160)
EXACT: dict[str, Any] = {"scale": (1, 1), "rotation": (0, 0)}


def scenes(count: int = 1, frames: int = 2, size: tuple[int, int] = SIZE) -> Scene:
    return Scene(frames=torch.zeros(count, frames, 3, *size), index=torch.arange(count))


def numbers(count: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(count, DRAWS, generator=seeding.generator(seed))


def place(placement: Placement, scene: Scene, size_mm: tuple[float, float] = (100.0, 100.0), seed: int = 0) -> Tensor:
    """Corners ``[B, T, 4, 2]`` of a square mask."""
    return placement.draw(scene, Patch.create(resolution=8, size_mm=size_mm), numbers(len(scene), seed))


def render(placement: Placement, scene: Scene, patch: Patch) -> View:
    renderer = Renderer(placement)
    draw = renderer.draw(scene, patch, seeding.numbers([(0, i) for i in range(len(scene))]))
    return renderer(patch(), patch.mask, scene, draw)


def area(corners: Tensor) -> Tensor:
    """Of quadrilaterals ``[..., 4, 2]`` in px²; positive when their order is clockwise on the screen."""
    x, y = corners.unbind(-1)
    return (x * y.roll(-1, -1) - y * x.roll(-1, -1)).sum(-1) / 2


def inside(corners: Tensor, size: tuple[int, int] = SIZE) -> bool:
    last = torch.tensor([size[1] - 0.5, size[0] - 0.5], dtype=corners.dtype)
    return bool(((corners >= -0.5 - 1e-9) & (corners <= last + 1e-9)).all())


@pytest.mark.parametrize("size_mm", [[100, 100], [200, 100], [60, 90]])
@pytest.mark.parametrize("shape", ["square", "circle"])
@pytest.mark.parametrize("share", [0.03, 0.1, 0.25])
def test_the_mask_takes_its_share_of_the_frame(share: float, shape: str, size_mm: list[float]) -> None:
    patch = Patch.create(shape=shape, resolution=64, size_mm=size_mm)
    placement = Uniform(area=share, scale=(1, 1))
    view = render(placement, scenes(3), patch)
    torch.testing.assert_close(view.coverage.mean(dim=(2, 3, 4)), torch.full((3, 2), share), rtol=0.01, atol=0)


def test_the_side_is_a_share_of_the_frames_shorter_side() -> None:
    for size_mm, expected in (((100.0, 100.0), (48, 48)), ((200.0, 100.0), (48, 24)), ((50.0, 100.0), (24, 48))):
        corners = place(Uniform(side=0.5, **EXACT), scenes(), size_mm)[0, 0]
        torch.testing.assert_close(corners[2] - corners[0], torch.tensor(expected).double())


def test_scale_and_rotation_stay_in_their_ranges_and_fill_them() -> None:
    corners = place(Uniform(side=0.4, scale=(0.8, 1.25), rotation=(-30, 50)), scenes(400))[:, 0]
    top = corners[:, 1] - corners[:, 0]
    angle = torch.rad2deg(torch.atan2(-top[:, 1], top[:, 0]))  # counter-clockwise: y is down
    scale = top.norm(dim=-1) / (0.4 * 96)
    assert -30 <= angle.min() < -27
    assert 47 < angle.max() <= 50
    assert 0.8 <= scale.min() < 0.82
    assert 1.23 < scale.max() <= 1.25
    torch.testing.assert_close(area(corners), (scale * 0.4 * 96).square())


@pytest.mark.parametrize("x", [0.0, 1.0])
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_extreme_places_touch_the_frames_edges(x: float, y: float) -> None:
    placement = Uniform(side=0.5, rotation=(-40, 40), tilt=30, x=(x, x), y=(y, y))
    corners = place(placement, scenes(20))
    assert inside(corners)
    low, high = corners.amin(dim=(1, 2)), corners.amax(dim=(1, 2))
    edge = torch.stack([low[:, 0] if x == 0 else high[:, 0], low[:, 1] if y == 0 else high[:, 1]], dim=-1)
    expected = torch.tensor([159.5 if x else -0.5, 95.5 if y else -0.5], dtype=torch.float64).expand(20, 2)
    torch.testing.assert_close(edge, expected)


def test_a_patch_stays_inside_the_frame_and_unmirrored() -> None:
    placement = Uniform(side=0.6, scale=(0.7, 1.0), rotation=(-180, 180), tilt=45)
    corners = place(placement, scenes(300))
    assert inside(corners)
    assert (area(corners) > 0).all()
    centre = corners[:, 0].mean(dim=1)
    spread = centre.amax(0) - centre.amin(0)
    assert (spread > torch.tensor([80, 30])).all()


def test_a_patch_that_scale_makes_larger_than_the_frame_is_centred() -> None:
    corners = place(Uniform(side=1.0, scale=(1.5, 1.5), rotation=(0, 0)), scenes(4))[:, 0]
    torch.testing.assert_close(corners.mean(dim=1)[:, 1], torch.full((4,), 47.5, dtype=torch.float64))


def test_tilt_shortens_one_side_as_perspective_does() -> None:
    """Turned out of the plane, the near edge is longer than the far one, by both angles up to ``tilt``."""
    flat = place(Uniform(side=0.5, **EXACT), scenes(200))[:, 0]
    tilted = place(Uniform(side=0.5, tilt=40, **EXACT), scenes(200))[:, 0]
    assert (area(tilted) < area(flat) * 1.05).all()
    assert area(tilted).min() < area(flat)[0] * 0.75
    left, right = ((tilted[:, i] - tilted[:, j]).norm(dim=-1) for i, j in ((0, 3), (1, 2)))
    assert (left / right).min() < 0.9
    assert (left / right).max() > 1.1
    torch.testing.assert_close(place(Uniform(side=0.5, tilt=0.0, **EXACT), scenes(200))[:, 0], flat)


def sides(corners: Tensor) -> Tensor:
    """``[B, 4]`` lengths of the top, right, bottom and left of ``corners [B, 4, 2]``."""
    return (corners.roll(-1, dims=1) - corners).norm(dim=-1)


def test_yaw_and_pitch_each_turn_about_their_own_axis() -> None:
    """Brought nearer, an edge is longer than the one opposite, as much as the camera's distance says."""
    top, right, bottom, left = sides(place(Uniform(side=0.5, yaw=(40, 40), **EXACT), scenes(20))[:, 0]).unbind(-1)
    reach = 24 * math.sin(math.radians(40))  # half a side, towards the camera 160 px away
    torch.testing.assert_close(right, torch.full_like(right, 48 * 160 / (160 - reach)))
    torch.testing.assert_close(left, torch.full_like(left, 48 * 160 / (160 + reach)))
    torch.testing.assert_close(top, bottom)
    top, right, bottom, left = sides(place(Uniform(side=0.5, pitch=(40, 40), **EXACT), scenes(20))[:, 0]).unbind(-1)
    torch.testing.assert_close(top, torch.full_like(top, 48 * 160 / (160 - reach)))
    torch.testing.assert_close(bottom, torch.full_like(bottom, 48 * 160 / (160 + reach)))
    torch.testing.assert_close(left, right)


def test_yaw_and_pitch_take_the_place_of_the_tilt_and_of_nothing_else() -> None:
    tilted = place(Uniform(side=0.3, tilt=20), scenes(20))
    assert torch.equal(place(Uniform(side=0.3, yaw=(-20, 20), pitch=(-20, 20)), scenes(20)), tilted)
    assert torch.equal(place(Uniform(side=0.3, tilt=20, yaw=(-20, 20)), scenes(20)), tilted)
    upright = place(Uniform(side=0.3, tilt=20, pitch=(0, 0), yaw=(0, 0)), scenes(20))
    assert torch.equal(upright, place(Uniform(side=0.3), scenes(20)))


def test_at_a_distance_a_patch_is_as_large_as_its_paper() -> None:
    """150 mm × 100 mm at 2 m, seen with a focal length of 80 px (90° over 160 px), are 6 px × 4 px."""
    scene = dataclasses.replace(scenes(3), intrinsics=geometry.camera_matrix(SIZE, 90.0).repeat(3, 1, 1))
    assert scene.intrinsics is not None
    scene.intrinsics[1, 0, 0] *= 2  # each scene has a camera of its own
    corners = place(Uniform(distance=2, **EXACT), scene, size_mm=(150.0, 100.0))[:, 0]
    expected = torch.tensor([[6.0, 4.0], [12.0, 4.0], [6.0, 4.0]]).double()
    torch.testing.assert_close(sides(corners)[:, :2], expected)
    with pytest.raises(InputError, match=r"placement\.distance: expected data with the camera's intrinsics, got none"):
        place(Uniform(distance=2), scenes())
    with pytest.raises(InputError, match=r"expected a patch that fits .* raise placement\.distance"):
        place(Uniform(distance=0.05), scene)


def test_static_motion_leaves_the_corners_alone() -> None:
    corners = place(Uniform(side=0.4, tilt=20), scenes(5))
    assert torch.equal(corners[:, 0], corners[:, 1])


def test_a_scene_of_one_frame_has_one_set_of_corners() -> None:
    for motion in ("static", "random", "scene"):
        assert place(Uniform(side=0.4, motion=motion), scenes(2, frames=1)).shape == (2, 1, 4, 2)


def test_random_motion_is_a_small_homography() -> None:
    still = place(Uniform(side=0.4), scenes(300))
    moved = place(Uniform(side=0.4, motion="random", speed=0.1), scenes(300))
    assert torch.equal(moved[:, 0], still[:, 0])  # the place does not depend on the motion
    shift = (moved[:, 1] - moved[:, 0]).mean(dim=1)
    assert shift.abs().max() < 0.1 * 96 + 0.5  # a bent patch's corners have another mean
    assert (shift.amax(0) > 8).all()
    assert (shift.amin(0) < -8).all()
    ratio = area(moved[:, 1]) / area(moved[:, 0])
    assert ratio.min() > 0.96**2 * 0.97
    assert ratio.max() < 1.04**2 * 1.03
    homography = geometry.homography_from_corners(moved)
    texels = torch.linalg.inv(homography[:, 0])
    between = homography[:, 1] @ texels
    torch.testing.assert_close(geometry.project(between, moved[:, 0]), moved[:, 1])
    bend = (between[:, 2, :2] / between[:, 2, 2:]).norm(dim=-1)
    assert 0 < bend.max() < 2e-3


@pytest.fixture(scope="module")
def world() -> Scene:
    return World(scenes=12, size=SIZE).__getitems__(list(range(12)))


def test_on_a_surface_the_patch_follows_the_true_flow(world: Scene) -> None:
    """Pixels that show the patch in frame 0 go where the scene's flow says, within 0.05 px."""
    assert world.flow is not None
    assert world.occluder is not None
    corners = place(Uniform(side=0.5, motion="scene", scale=(0.3, 0.8), rotation=(-30, 30)), world, (100.0, 60.0))
    before, after = (geometry.homography_from_corners(corners[:, t]) for t in range(2))
    pixels = geometry.pixel_grid(SIZE).double().view(1, -1, 2).expand(len(world), -1, -1)
    uv = geometry.project(torch.linalg.inv(before), pixels)
    moved = geometry.project(after, uv) - pixels
    shows = ((uv > 0) & (uv < 1)).all(-1) & ~world.occluder[:, 0].flatten(1)
    assert (shows.sum(dim=1) > 20).sum() > 8
    error = (moved - world.flow.flatten(2).mT).norm(dim=-1)[shows]
    assert error.max() < 0.05
    assert moved[shows].norm(dim=-1).max() > 1  # and it does move


def test_on_a_surface_proportions_are_the_patchs(world: Scene) -> None:
    assert world.surface is not None
    corners = place(Uniform(side=0.5, motion="scene", **EXACT), world, (100.0, 50.0))
    to_plane = torch.linalg.inv(geometry.homography_from_corners(world.surface))
    on_plane = geometry.project(to_plane, corners)
    expected = torch.tensor([[0, 0.25], [1, 0.25], [1, 0.75], [0, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(on_plane, expected.expand_as(on_plane), rtol=0, atol=1e-5)


def test_without_a_surface_the_patch_moves_as_a_wall_in_the_scene(world: Scene) -> None:
    """A wall at depth d moves by the homography K (R + t nᵀ / d) K⁻¹ (Hartley & Zisserman 2004, section 13.1)."""
    assert world.intrinsics is not None
    assert world.motion is not None
    wall = dataclasses.replace(world, surface=None, depth=torch.full((12, 1, *SIZE), 7.0))
    corners = place(Uniform(side=0.3, motion="scene", tilt=10), wall)
    assert torch.equal(corners[:, 0], place(Uniform(side=0.3, tilt=10), wall)[:, 0])
    camera, motion = world.intrinsics.double(), world.motion.double()
    plane = motion[:, :3, :3] + torch.nn.functional.pad(motion[:, :3, 3:], (2, 0)) / 7.0
    expected = geometry.project(camera @ plane @ torch.linalg.inv(camera), corners[:, 0])
    torch.testing.assert_close(corners[:, 1], expected)
    assert (corners[:, 1] - corners[:, 0]).norm(dim=-1).max() > 1


def test_a_board_moves_as_the_median_depth_around_it() -> None:
    scene = scenes(1)
    depth = torch.full((1, 1, *SIZE), math.nan)
    depth[..., 40:57, 60:100] = 4.0
    depth[..., 46:50, 60:100] = 40.0
    motion = torch.eye(4)[None].clone()
    motion[:, :3, 3] = torch.tensor([-0.2, 0.1, -0.5])
    camera = geometry.camera_matrix(SIZE, 90.0)[None]
    scene = dataclasses.replace(scene, depth=depth, motion=motion, intrinsics=camera)
    placement = Uniform(side=0.2, motion="scene", x=(0.5, 0.5), y=(0.5, 0.5), **EXACT)
    corners = place(placement, scene)[0]
    half = 0.1 * 96
    focal = 80.0
    expected = torch.tensor([[-half, -half], [half, -half], [half, half], [-half, half]]) * 4.0 / 3.5
    expected = expected + torch.tensor([79.5, 47.5]) + torch.tensor([-0.2, 0.1]) * focal / 3.5
    torch.testing.assert_close(corners[1], expected.double(), rtol=0, atol=1e-4)


def test_where_no_depth_is_known_only_the_cameras_turn_moves_the_board() -> None:
    motion = torch.eye(4)[None].clone()
    motion[:, :3, 3] = 0.5
    bare = dataclasses.replace(
        scenes(1),
        depth=torch.full((1, 1, *SIZE), math.nan),
        motion=motion,
        intrinsics=geometry.camera_matrix(SIZE, 90.0)[None],
    )
    corners = place(Uniform(side=0.2, motion="scene"), bare)
    assert (corners[:, 1] - corners[:, 0]).abs().max() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "placement: expected one of area, side and distance, the others null, got area=None, side=None and"),
        (
            {"area": 0.1, "side": 0.2},
            "placement: expected one of area, side and distance, .* got area=0.1, side=0.2 and",
        ),
        ({"area": 0.1, "distance": 2}, "placement: expected one of area, side and distance, .* and distance=2"),
        ({"distance": 0}, r"placement\.distance: expected metres above 0, got 0"),
        ({"distance": math.inf}, r"placement\.distance: expected metres above 0, got inf"),
        ({"side": 0.5, "yaw": (-85, 0)}, r"placement\.yaw: expected"),
        ({"side": 0.5, "pitch": (20, 10)}, r"placement\.pitch: expected"),
        ({"area": 0}, r"placement\.area: expected a fraction of the frame in \(0, 1\], got 0"),
        ({"side": 1.2}, r"placement\.side: expected a fraction of the frame in \(0, 1\], got 1.2"),
        ({"side": 0.5, "scale": (1.1, 0.9)}, r"placement\.scale: expected \[low, high\] with .* got \[1.1, 0.9\]"),
        ({"side": 0.5, "scale": (0, 1)}, r"placement\.scale: expected \[low, high\] with 0.01 <= low"),
        ({"side": 0.5, "rotation": (10, -10)}, r"placement\.rotation: expected \[low, high\]"),
        ({"side": 0.5, "rotation": (0, 1, 2)}, r"placement\.rotation: expected \[low, high\]"),
        ({"side": 0.5, "x": (-0.1, 1)}, r"placement\.x: expected \[low, high\] with 0 <= low <= high <= 1"),
        ({"side": 0.5, "y": (0, math.nan)}, r"placement\.y: expected \[low, high\]"),
        ({"side": 0.5, "tilt": 85}, r"placement\.tilt: expected"),
        ({"side": 0.5, "tilt": -5}, r"placement\.tilt: expected"),
        ({"side": 0.5, "speed": 2}, r"placement\.speed: expected"),
        ({"side": 0.5, "motion": "fast"}, r"placement\.motion: expected one of static, scene, random, got fast"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Uniform(**options)


@pytest.mark.parametrize(
    ("options", "size_mm"), [({"area": 0.9}, (100.0, 100.0)), ({"area": 0.6}, (400.0, 100.0)), ({"area": 0.5}, (1, 2))]
)
def test_a_patch_too_large_for_the_frame_is_refused(options: dict, size_mm: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=r"expected a patch that fits into the frame of 160×96 px.*placement\.area"):
        place(Uniform(**options), scenes(), size_mm)


@pytest.mark.parametrize("known", [(), ("depth",), ("depth", "motion")])
def test_scene_motion_needs_a_scene_that_has_it(world: Scene, known: tuple[str, ...]) -> None:
    absent: dict[str, Any] = {name: None for name in ("surface", "depth", "motion", "intrinsics") if name not in known}
    with pytest.raises(InputError, match=r"placement\.motion=scene: expected data with a surface, or with depth"):
        place(Uniform(side=0.3, motion="scene"), dataclasses.replace(world, **absent))


SQUARE = torch.tensor([[40.0, 20.0], [80.0, 20.0], [80.0, 60.0], [40.0, 60.0]])


def on_a_square(count: int = 1) -> Scene:
    return dataclasses.replace(scenes(count), surface=SQUARE.expand(count, 2, 4, 2))


def test_a_patch_on_a_surface_takes_its_share_of_the_side_at_its_place() -> None:
    corners = place(OnSurface(size=0.5, x=(0.25, 0.25), y=(0.75, 0.75), **EXACT), on_a_square())
    expected = torch.tensor([[40.0, 40.0], [60.0, 40.0], [60.0, 60.0], [40.0, 60.0]]).double()
    torch.testing.assert_close(corners, expected.expand(1, 2, 4, 2))


def test_a_patch_on_a_surface_keeps_its_proportions_and_turns_counter_clockwise() -> None:
    corners = place(OnSurface(size=0.5, scale=(1, 1), rotation=(90, 90)), on_a_square(), size_mm=(100, 50))
    expected = torch.tensor([[55.0, 50.0], [55.0, 30.0], [65.0, 30.0], [65.0, 50.0]]).double()
    torch.testing.assert_close(corners, expected.expand(1, 2, 4, 2))


def test_the_whole_surface_is_what_the_motion_of_the_scene_takes() -> None:
    scene = World(scenes=2, size=(64, 128), supersampling=1).__getitems__([0, 1])
    whole = place(OnSurface(size=1, **EXACT), scene)
    torch.testing.assert_close(whole, place(Uniform(side=0.2, motion="scene", **EXACT), scene))
    assert scene.surface is not None
    torch.testing.assert_close(whole, scene.surface.double(), rtol=0, atol=1e-3)


def test_a_surface_is_needed_where_the_patch_lies_on_one() -> None:
    with pytest.raises(InputError, match=r"placement=surface: expected data whose scenes have a surface"):
        place(OnSurface(), scenes())
    with pytest.raises(InputError, match=r"placement\.size: expected"):
        OnSurface(size=0)

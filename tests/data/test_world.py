from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from patchattack import geometry, seeding
from patchattack.data.signs import bank
from patchattack.data.world import LAYOUT, World, _cast
from patchattack.data.world_layout import Planes
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


@pytest.fixture(scope="module")
def signs() -> Scene:
    world = World(scenes=32, size=(64, 64), field_of_view=40.0, frames=1, subject="sign", supersampling=1)
    return world.__getitems__(range(32))


@pytest.fixture(scope="module")
def traffic() -> Scene:
    return traffic_world().__getitems__(range(SCENES))


def traffic_world() -> World:
    return World(scenes=SCENES, size=(96, 192), frames=1, subject="vehicle", supersampling=1)


def known(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def given(scenes: Scene) -> dict[str, Tensor]:
    """What ``scenes`` have, by name."""
    return {field.name: value for field in fields(scenes) if (value := getattr(scenes, field.name)) is not None}


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
    planes, rotations, centres = world._lay_out(draws, None)
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
    assert {name: tuple(value.shape[1:]) for name, value in given(scenes).items()} == shapes
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
    for name, column in given(scenes).items():
        assert torch.equal(getattr(shuffled, name), column[[5, 0, 5, 11]]), name
        assert torch.equal(getattr(alone, name), column[[11]]), name


def assert_rendered_together(world: World, indices: list[int], scenes: Scene) -> None:
    """On a device scenes are rendered together, on the host one by one."""
    together = given(world._scenes(indices))
    for name, column in given(scenes).items():
        torch.testing.assert_close(
            together[name], column[indices], equal_nan=True, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_rendering_a_batch_at_once_changes_nothing(world: World, scenes: Scene) -> None:
    assert_rendered_together(world, [2, 7, 9], scenes)


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
        ({"subject": "tree"}, "subject of billboard, sign, vehicle, none and frames 1 or 2, got tree and 2"),
        ({"frames": 3}, "frames 1 or 2, got billboard and 3"),
        ({"subject": "sign"}, "data.frames: expected 1 with data.subject=sign, got 2"),
        ({"subject": "vehicle", "field_of_view": 60.0}, "expected at least 75° with data.subject=vehicle, got 60"),
        ({"camera_height": [1.5]}, r"data.camera_height: expected \[low, high\] .* got \[1.5\]"),
        ({"camera_height": [2.0, 1.0]}, r"within \[0.5, 3\], got \[2.0, 1.0\]"),
        ({"camera_height": [1.0, 9.0]}, r"got \[1.0, 9.0\]"),
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


def test_the_default_world_is_the_one_that_published_numbers_were_measured_on(scenes: Scene) -> None:
    """Pixels (x, y) of scene 0 with their flow and depth: a change here makes old and new results incomparable."""
    recorded = {
        (5, 5): ([70, 89, 106], [67, 87, 103], [0.86981, -0.58036], 559.633),
        (64, 40): ([105, 106, 107], [117, 118, 120], [-0.80720, 0.87495], 7.85775),
        (100, 60): ([128, 128, 131], [142, 143, 146], [8.05148, 11.32411], 2.65486),
        (30, 30): ([50, 105, 90], [53, 147, 78], [0.60293, -0.53717], 538.132),
    }
    for (x, y), (first, second, flow, depth) in recorded.items():
        colours = torch.tensor([first, second], dtype=torch.float32)
        torch.testing.assert_close(scenes.frames[0, :, :, y, x].float(), colours, atol=1, rtol=0)
        torch.testing.assert_close(known(scenes.flow)[0, :, y, x], torch.tensor(flow), atol=1e-3, rtol=0)
        assert known(scenes.depth)[0, 0, y, x].item() == pytest.approx(depth, rel=1e-4)
    corner = torch.tensor([[33.87314, 8.55971], [31.99622, 6.98748]])
    torch.testing.assert_close(known(scenes.surface)[0, :, 0], corner, atol=1e-3, rtol=0)


def test_one_frame_is_the_first_of_two(scenes: Scene) -> None:
    single = given(World(scenes=SCENES, size=SIZE, frames=1).__getitems__(range(4)))
    assert single.keys() == given(scenes).keys() - {"flow", "occluded", "motion"}
    for name, value in single.items():
        column = getattr(scenes, name)[:4]
        assert torch.equal(value, column[:, :1] if name in ("frames", "surface", "occluder") else column), name


def test_vehicles_are_also_seen_in_two_frames() -> None:
    options = {"scenes": 4, "size": SIZE, "subject": "vehicle", "supersampling": 1}
    pair, single = (World(frames=frames, **options).__getitems__(range(4)) for frames in (2, 1))
    assert torch.equal(pair.frames[:, :1], single.frames)
    assert torch.equal(known(pair.boxes).nan_to_num(), known(single.boxes).nan_to_num())
    before, after = (geometry.homography_from_corners(known(pair.surface)[:, t]) for t in range(2))
    middle = geometry.project(before, torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    x, y = middle[:, 0].round().long().unbind(-1)
    place = geometry.project(torch.linalg.inv(before), torch.stack([x, y], dim=-1).double().unsqueeze(1))
    torch.testing.assert_close(
        geometry.project(after, place)[:, 0].float(), targets(pair)[torch.arange(4), y, x], atol=0.01, rtol=0
    )


def test_without_a_subject_there_is_no_surface() -> None:
    world = World(scenes=2, size=SIZE, frames=1, subject="none", supersampling=1)
    assert given(world[1]).keys() == {"frames", "index", "depth", "intrinsics"}
    assert world.classes == ()


def test_the_camera_height_scales_the_ground() -> None:
    """The lowest row sees the road: its distance is the height above it, whatever else is in the scene."""
    low, high = (
        World(scenes=6, size=SIZE, frames=1, subject="none", supersampling=1, camera_height=[h, h]).__getitems__(
            range(6)
        )
        for h in (1.03, 2.03)  # the road lies 3 cm above the ground
    )
    rows = [known(scene.depth)[:, 0, -1, 48:80] for scene in (low, high)]
    torch.testing.assert_close(rows[1] / rows[0], torch.full_like(rows[0], 2), rtol=1e-4, atol=0)


def test_labels_are_balanced_and_in_no_fixed_order(signs: Scene) -> None:
    rounds = known(signs.label).view(2, 16)
    assert torch.equal(rounds.sort(dim=1).values, torch.arange(16).expand(2, -1))
    assert not torch.equal(rounds[0], rounds[1])
    assert not torch.equal(rounds[0], torch.arange(16))


def test_the_label_is_the_sign_that_is_seen(signs: Scene) -> None:
    """The frame, looked at through the surface's corners, is most like the mean of its own kind's textures."""
    patterns = torch.stack(
        [textures_of(kind).mean(dim=0) for kind in World(scenes=1, subject="sign", frames=1).classes]
    )  # [K, 3, 32, 32]
    unit = (geometry.pixel_grid((32, 32)).double() + 0.5) / 32
    corners = geometry.homography_from_corners(known(signs.surface)[:, 0])
    points = geometry.project(corners, unit.view(1, -1, 2)).view(-1, 32, 32, 2).float()
    seen = geometry.sample(signs.frames[:, 0].float(), points)

    def standard(images: Tensor) -> Tensor:
        flat = images[..., 4:-4, 4:-4].flatten(1)
        flat = flat - flat.mean(dim=1, keepdim=True)
        return flat / flat.norm(dim=1, keepdim=True)

    likeness = standard(seen) @ standard(patterns).mT
    assert (likeness.argmax(dim=1) == known(signs.label)).float().mean() > 0.9


def textures_of(kind: str) -> Tensor:
    return torch.nn.functional.avg_pool2d(bank(kind, 8, 96, seeding.generator(1)), 3)


def test_the_box_of_a_sign_bounds_its_surface(signs: Scene) -> None:
    boxes, surface = known(signs.boxes), known(signs.surface)[:, 0]
    assert boxes.shape == (32, 1, 5)
    assert torch.equal(boxes[:, 0, 4].long(), known(signs.label))
    assert not known(signs.occluder).any()
    bounds = torch.cat([surface.amin(dim=1), surface.amax(dim=1)], dim=1).clamp(-0.5, 63.5)
    assert (boxes[:, 0, :4] - bounds).abs().max() <= 1
    span = (boxes[:, 0, 2:4] - boxes[:, 0, :2]).amax(dim=1)
    assert span.min() >= 0.4 * 64
    assert span.max() > 0.75 * 64


def test_the_subject_is_the_first_box_and_carries_the_surface(traffic: Scene) -> None:
    boxes, surface = known(traffic.boxes), known(traffic.surface)[:, 0]
    assert boxes.shape == (SCENES, 6, 5)
    assert (boxes[:, 0, 4] == 0).all()
    first = boxes[:, 0].unsqueeze(1)
    assert (surface > first[..., :2] - 1).all()
    assert (surface < first[..., 2:4] + 1).all()
    assert (first[..., 2] - first[..., 0] > 10).all()
    assert not known(traffic.occluder).flatten(1).float().mean(dim=1).gt(0.01).any()


def test_boxes_are_whole_rows_with_what_is_missing_at_the_end(traffic: Scene) -> None:
    boxes = known(traffic.boxes)
    there = boxes.isfinite()
    assert torch.equal(there.all(dim=2), there.any(dim=2))
    there = there[..., 0]
    assert (there[:, :-1] >= there[:, 1:]).all()
    kept = boxes[there]
    assert (kept[:, :2] >= -0.5).all()
    assert (kept[:, 2:4] <= torch.tensor([191.5, 95.5])).all()
    assert {0.0, 1.0} == set(kept[:, 4].tolist())
    others = boxes[:, 1:][there[:, 1:]]
    assert (others[:, 2:4] - others[:, :2] >= 6).all()


def test_boxes_bound_what_is_seen_of_objects_in_sight(monkeypatch: pytest.MonkeyPatch, traffic: Scene) -> None:
    """Every object is found by painting it black and white, in its scene and with nothing but the ground around it."""
    world, count = traffic_world(), 4
    lay_out = world._lay_out
    objects = lay_out(torch.rand(1, 320), None)[0].objects
    found: list[list[list[float]]] = [[] for _ in range(count)]
    refused = 0
    for number, own in enumerate(objects):

        def painted(light: float, alone: bool, own: range = own) -> Tensor:
            def change(draws: Tensor, label: Tensor | None) -> tuple[Planes, Tensor, Tensor]:
                planes, *camera = lay_out(draws, label)
                gain, origin = planes.gain.clone(), planes.origin.clone()
                gain[:, own] = light
                if alone:
                    others = [row for row in range(3, gain.shape[1]) if row not in own]
                    origin[:, others, 2] -= 1000  # behind the camera
                return replace(planes, gain=gain, origin=origin), *camera

            with monkeypatch.context() as patched:
                patched.setattr(world, "_lay_out", change)
                return world.__getitems__(range(count)).frames[:, 0].int()

        seen, whole = (
            (painted(1000.0, alone) - painted(0.0, alone)).sum(dim=1) > 0 for alone in (False, True)
        )  # [B, H, W]
        for i in range(count):
            y, x = seen[i].nonzero(as_tuple=True)
            share = len(x) / max(1, int(whole[i].sum()))
            assert abs(share - 0.4) > 0.02, "choose another seed: rounding decides here"
            extent = (int(x.max() - x.min()) + 1, int(y.max() - y.min()) + 1) if len(x) else (0, 0)
            if share > 0.4 and min(extent) >= 6:
                box = [x.min() - 0.5, y.min() - 0.5, x.max() + 0.5, y.max() + 0.5, float(number > 2)]
                found[i].append([float(side) for side in box])
            else:
                refused += 1
    boxes = known(traffic.boxes)[:count]
    assert [scene[scene[:, 0].isfinite()].tolist() for scene in boxes] == found
    assert 0 < refused < 5 * count


def test_other_subjects_are_the_same_in_any_batch(signs: Scene, traffic: Scene) -> None:
    world = traffic_world()
    alone, column = known(world[3].boxes), known(traffic.boxes)[3:4]
    torch.testing.assert_close(alone, column, atol=0, rtol=0, equal_nan=True)
    assert_rendered_together(world, [1, 3], traffic)
    world = World(scenes=32, size=(64, 64), field_of_view=40.0, frames=1, subject="sign", supersampling=1)
    assert_rendered_together(world, [17, 3], signs)

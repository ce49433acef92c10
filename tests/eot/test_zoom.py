"""Enlarged scenes: everything that is known of one says the same of its part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from patchattack import geometry, seeding
from patchattack.data.world import World
from patchattack.eot.zoom import zoom_in
from patchattack.scene import Scene

HEIGHT, WIDTH = 48, 80
CPU = torch.device("cpu")


def numbers(count: int) -> seeding.Numbers:
    return seeding.numbers([(0, number) for number in range(count)])


def ramps(count: int = 6) -> Scene:
    """Frames whose red and green say where a pixel is; an object, and a row of NaN below it."""
    x, y = geometry.pixel_grid((HEIGHT, WIDTH)).unbind(-1)
    frames = torch.stack([x, y, torch.zeros_like(x)]).byte().expand(count, 2, 3, -1, -1)
    box = torch.tensor([[29.5, 9.5, 44.5, 19.5, 3.0], [69.5, 29.5, 79.5, 47.5, 1.0], [torch.nan] * 5])
    surface = torch.tensor([[31.0, 8.0], [43.0, 8.0], [43.0, 20.0], [31.0, 20.0]])
    return Scene(
        frames=frames,
        index=torch.arange(count),
        boxes=box.expand(count, -1, -1),
        surface=surface.expand(count, 2, -1, -1),
    )


def places(scene: Scene) -> Tensor:
    """``[B, H, W, 2]`` pixels of the ramps that the frames of an enlarged scene show."""
    return (scene.frames[:, 0, :2] * 255).permute(0, 2, 3, 1)


def test_a_factor_of_one_changes_nothing() -> None:
    scene = World(scenes=2, size=(HEIGHT, WIDTH), supersampling=1).__getitems__([0, 1])
    same = zoom_in(scene, 1.0, numbers(2), CPU)
    for name in ("frames", "flow", "depth", "intrinsics", "surface", "occluder"):
        expected, found = getattr(scene.to(CPU), name), getattr(same, name)
        assert (expected is None) == (found is None)
        if expected is not None:
            torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_a_part_is_enlarged_about_pixel_centres_and_holds_the_object() -> None:
    scene = ramps(40)
    found = zoom_in(scene, 3.0, numbers(40), CPU)
    shown = places(found)
    factors = 1 / (shown[:, 20, 41, 0] - shown[:, 20, 40, 0])
    assert factors.min() >= 1
    assert 2.5 < factors.max() < 3.001
    assert factors.unique().numel() > 30
    assert found.surface is not None
    assert found.boxes is not None
    for row in range(len(scene)):
        # Where corners and boxes say that they are, the frames show the pixels that were there.
        for points, before in (
            (found.surface[row, 0], scene.surface[row, 0]),  # type: ignore[index]
            (found.boxes[row, 0, :4].view(2, 2), scene.boxes[row, 0, :4].view(2, 2)),  # type: ignore[index]
        ):
            assert points.min() >= -0.5
            assert bool((points <= torch.tensor([WIDTH, HEIGHT]) - 0.5 + 1e-4).all())
            seen = (points - 1) / factors[row] + shown[row, 1, 1]
            torch.testing.assert_close(seen, before, rtol=0, atol=0.02)
    assert bool(found.boxes[:, 2].isnan().all())
    assert bool((found.boxes[:, 0, 4] == 3).all())


def test_boxes_end_at_the_frame_and_those_outside_are_none() -> None:
    found = zoom_in(ramps(60), 3.0, numbers(60), CPU).boxes
    assert found is not None
    other = found[:, 1]
    gone = other.isnan()
    assert bool((gone.any(dim=1) == gone.all(dim=1)).all())
    assert 0 < gone.all(dim=1).sum() < 60
    left = other[~gone.any(dim=1)]
    assert left[:, 2].max() <= WIDTH - 0.5
    assert left[:, 3].max() <= HEIGHT - 0.5


def test_an_object_as_large_as_the_frame_stays_whole() -> None:
    scene = replace(ramps(8), surface=None, boxes=torch.tensor([[[-9.0, 2, 90, 60, 0]]]).expand(8, -1, -1))
    found = zoom_in(scene, 3.0, numbers(8), CPU)
    torch.testing.assert_close(found.frames, scene.to(CPU).frames, rtol=0, atol=1e-4)


def test_without_an_object_a_part_lies_anywhere() -> None:
    shown = places(zoom_in(replace(ramps(200), surface=None, boxes=None), 2.0, numbers(200), CPU))
    assert shown[:, 0, 0].min() >= 0
    assert shown[:, -1, -1, 0].max() <= WIDTH - 1
    assert shown[:, 0, 0, 0].max() > 0.4 * WIDTH
    assert shown[:, 0, 0, 1].max() > 0.4 * HEIGHT


def test_flow_depth_and_camera_stay_true_of_each_other() -> None:
    scene = World(scenes=3, size=(HEIGHT, WIDTH), supersampling=1).__getitems__([0, 1, 2])
    found = zoom_in(scene, 2.0, numbers(3), CPU)
    assert found.flow is not None
    assert found.depth is not None
    assert found.intrinsics is not None
    assert scene.intrinsics is not None
    assert found.motion is scene.motion
    factor = (found.intrinsics[:, 0, 0] / scene.intrinsics[:, 0, 0]).view(-1, 1, 1)
    assert factor.max() > 1.2
    # The point that a pixel shows moves with the camera to where the flow says, through the new matrix.
    pixels = geometry.pixel_grid((HEIGHT, WIDTH)).view(1, -1, 2).double()
    rays = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1) @ found.intrinsics.double().inverse().mT
    points = rays * found.depth.flatten(1).unsqueeze(-1)
    assert found.motion is not None
    there = points @ found.motion[:, :3, :3].double().mT + found.motion[:, None, :3, 3].double()
    landed = there @ found.intrinsics.double().mT
    flow = landed[..., :2] / landed[..., 2:] - pixels
    error = (flow - found.flow.flatten(2).mT).norm(dim=-1)
    # Depth and flow are those of the nearest pixel, up to half a pixel away.
    assert error.nanmedian() < 0.1


@pytest.mark.parametrize("count", [1, 3])
def test_a_scene_is_enlarged_the_same_in_any_batch(count: int) -> None:
    scene = ramps(4)
    whole = zoom_in(scene, 2.0, numbers(4), CPU)
    part = zoom_in(scene.select(slice(0, count)), 2.0, numbers(count), CPU)
    assert torch.equal(part.frames, whole.frames[:count])

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from patchattack import geometry
from patchattack.data.flying_shapes import FlyingShapes
from patchattack.errors import InputError
from patchattack.scene import Scene

SIZE = (64, 96)
SCENES = 12


@pytest.fixture(scope="module")
def shapes() -> FlyingShapes:
    return FlyingShapes(scenes=SCENES, size=SIZE, speed=(1, 6))


@pytest.fixture(scope="module")
def scenes(shapes: FlyingShapes) -> Scene:
    return shapes.__getitems__(list(range(SCENES)))


def truth(scenes: Scene) -> tuple[Tensor, Tensor]:
    """Flow and what is occluded, ``[B, H, W]``."""
    assert scenes.flow is not None
    assert scenes.occluded is not None
    return scenes.flow, scenes.occluded[:, 0]


def targets(scenes: Scene) -> Tensor:
    """Where the flow says that each pixel of frame 0 is in frame 1, ``[B, H, W, 2]``."""
    return geometry.pixel_grid(SIZE) + truth(scenes)[0].permute(0, 2, 3, 1)


def test_a_batch_has_the_shapes_and_types_of_a_scene(scenes: Scene) -> None:
    assert scenes.frames.shape == (SCENES, 2, 3, *SIZE)
    assert scenes.frames.dtype == torch.uint8
    assert scenes.index.tolist() == list(range(SCENES))
    flow, occluded = truth(scenes)
    assert flow.shape == (SCENES, 2, *SIZE)
    assert flow.isfinite().all()
    assert occluded.shape == (SCENES, *SIZE)
    assert occluded.dtype == torch.bool


def test_frame_1_warped_by_the_flow_is_frame_0(scenes: Scene) -> None:
    first, second = scenes.frames.float().unbind(1)
    warped = geometry.sample(second, targets(scenes))
    visible = ~truth(scenes)[1]
    with_flow, without = ((one - first).abs().mean(dim=1) for one in (warped, second))
    for i in range(SCENES):
        assert with_flow[i][visible[i]].mean() < 4  # of 255: bilinear sampling of fine texture
    assert with_flow[visible].mean() < 0.3 * without[visible].mean()


def test_what_leaves_the_frame_is_occluded(scenes: Scene) -> None:
    target, (_, occluded) = targets(scenes), truth(scenes)
    last = torch.tensor([SIZE[1] - 0.5, SIZE[0] - 0.5])
    outside = ((target < -0.5) | (target > last)).any(-1)
    assert outside.any()
    assert occluded[outside].all()


def test_what_a_shape_hides_in_frame_1_is_occluded(scenes: Scene) -> None:
    """There the warped frame 1 shows something else."""
    first, second = scenes.frames.float().unbind(1)
    target, (_, occluded) = targets(scenes), truth(scenes)
    inside = ((target >= 0) & (target <= torch.tensor([SIZE[1] - 1, SIZE[0] - 1]))).all(-1)
    error = (geometry.sample(second, target) - first).abs().mean(dim=1)
    assert (occluded & inside).sum() > 100
    assert error[occluded & inside].mean() > 5 * error[~occluded].mean()


def test_a_scene_is_the_same_in_any_batch_and_another_of_another_seed(shapes: FlyingShapes, scenes: Scene) -> None:
    alone, again = shapes[5], FlyingShapes(scenes=SCENES, size=SIZE, speed=(1, 6))[5]
    for one in (alone, again):
        assert torch.equal(one.frames[0], scenes.frames[5])
        assert torch.equal(truth(one)[0][0], truth(scenes)[0][5])
        assert torch.equal(truth(one)[1][0], truth(scenes)[1][5])
    assert not torch.equal(FlyingShapes(size=SIZE, speed=(1, 6), seed=1)[5].frames, alone.frames)


def test_the_speed_is_the_mean_shift_of_a_background() -> None:
    """Without shapes, in the middle of the frame, where turning and growing move little."""
    flow = truth(FlyingShapes(scenes=100, size=(32, 32), shapes=(0, 0), speed=(4, 4)).__getitems__(list(range(100))))[0]
    assert flow[:, :, 15:17, 15:17].norm(dim=1).mean().item() == pytest.approx(4, rel=0.2)


def test_nothing_moves_at_no_speed() -> None:
    scene = FlyingShapes(size=SIZE, speed=(0, 0))[0]
    flow, occluded = truth(scene)
    assert flow.abs().max() < 1e-3
    assert not occluded.any()
    assert torch.equal(scene.frames[:, 0], scene.frames[:, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenes": 0}, "scenes=0"),
        ({"size": (8, 64)}, r"size=\[8, 64\]"),
        ({"seed": -1}, "seed=-1"),
        ({"supersampling": 0}, "supersampling=0"),
        ({"shapes": (4, 2)}, r"data.shapes: expected \[low, high\] within \[0, 30\], got \[4, 2\]"),
        ({"speed": (1, 50)}, r"data.speed: expected \[low, high\] in pixels .* got \[1, 50\]"),
        ({"speed": (-1, 5)}, r"got \[-1, 5\]"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FlyingShapes(**arguments)


def test_the_scenes_come_to_an_end(shapes: FlyingShapes) -> None:
    with pytest.raises(IndexError):
        shapes[SCENES]

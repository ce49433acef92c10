from __future__ import annotations

import pytest
import torch

from patchattack.data.one_scene import OneScene
from patchattack.data.world import World
from patchattack.errors import InputError


def test_every_scene_is_the_one_and_has_a_number_of_its_own() -> None:
    world = World(scenes=3, size=(32, 64), supersampling=1, subject="vehicle", frames=1)
    again = OneScene(world, number=2, scenes=4)
    batch = again.__getitems__([0, 3])
    assert len(again) == 4
    assert again.classes == world.classes
    assert batch.index.tolist() == [0, 3]
    for row in range(2):
        assert torch.equal(batch.frames[row], world[2].frames[0])
        assert batch.boxes is not None
        torch.testing.assert_close(batch.boxes[row], world[2].boxes[0], equal_nan=True)  # type: ignore[index]
    with pytest.raises(IndexError):
        again[4]


@pytest.mark.parametrize("options", [{"number": 3}, {"number": -1}, {"scenes": 0}])
def test_bad_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="data=one_scene: expected a number from 0 to 2"):
        OneScene(World(scenes=3, size=(32, 64), supersampling=1), **options)

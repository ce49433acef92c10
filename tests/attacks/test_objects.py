from __future__ import annotations

import dataclasses
import logging
import math

import pytest
import torch
from torch import Tensor

from patchattack.attacks.objects import Objects
from patchattack.scene import Scene, Source

NAN = (math.nan,) * 5
SIZE = (32, 48)
CLASSES = ("vehicle", "sign")
# left, top, right, bottom, class; by their class, 0 is what is attacked.
WIDE, TALL = (0.0, 4.0, 20.0, 14.0, 0.0), (30.0, 0.0, 36.0, 18.0, 0.0)
LARGE, SIGN = (10.0, 10.0, 40.0, 30.0, 0.0), (1.0, 1.0, 9.0, 9.0, 1.0)


class Toy(Source):
    """Scenes of two frames, as bright as their number, with the given boxes."""

    classes = CLASSES

    def __init__(self, *boxes: list[tuple[float, ...]], surface: bool = False) -> None:
        self.boxes, self.surface = boxes, surface

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> Scene:
        scene = Scene(
            frames=torch.full((1, 2, 3, *SIZE), index, dtype=torch.uint8),
            index=torch.tensor([index]),
            boxes=torch.tensor(self.boxes[index]).view(1, -1, 5),
            occluder=torch.ones(1, 2, 1, *SIZE, dtype=torch.bool),
        )
        return dataclasses.replace(scene, surface=torch.full((1, 2, 4, 2), index + 0.5)) if self.surface else scene


def vehicle(boxes: Tensor) -> Tensor:
    return boxes[:, 4] == 0


def first(scene: Scene) -> tuple[float, ...]:
    assert scene.boxes is not None
    return tuple(scene.boxes[0, 0].tolist())


def test_every_object_is_a_scene() -> None:
    """In the order of the scenes, with the object in front and the others behind it."""
    objects = Objects(Toy([WIDE, SIGN, NAN, TALL], [SIGN], [LARGE]), vehicle, CLASSES)
    assert len(objects) == 3
    assert [first(objects[i]) for i in range(3)] == [WIDE, TALL, LARGE]
    assert [int(objects[i].frames[0, 0, 0, 0, 0]) for i in range(3)] == [0, 0, 2]
    assert [objects[i].index.tolist() for i in range(3)] == [[0], [1], [2]]
    assert objects.classes == CLASSES
    others = objects[1].boxes[0, 1:]
    assert others[:2].tolist() == [list(WIDE), list(SIGN)]
    assert others[2].isnan().all()


def test_the_patch_gets_a_square_at_the_middle_of_the_object() -> None:
    objects = Objects(Toy([WIDE, TALL]), vehicle, CLASSES)
    wide, tall = objects[0].surface, objects[1].surface
    assert wide.shape == (1, 2, 4, 2)
    assert wide[0, 0].tolist() == [[2.5, 1.5], [17.5, 1.5], [17.5, 16.5], [2.5, 16.5]]
    assert tall[0, 1].tolist() == [[27, 3], [39, 3], [39, 15], [27, 15]]
    assert objects[0].occluder is None  # what stands in front of something else


def test_scenes_of_a_batch_are_padded() -> None:
    objects = Objects(Toy([WIDE], [TALL, SIGN, LARGE]), vehicle, CLASSES)
    batch = objects.__getitems__([2, 0])
    assert batch.boxes.shape == (2, 3, 5)
    assert batch.boxes[0, 0].tolist() == list(LARGE)
    assert batch.boxes[1, 1:].isnan().all()
    assert batch.surface.shape == (2, 2, 4, 2)
    assert batch.index.tolist() == [2, 0]


def test_all_objects_together_are_one_scene_with_the_largest_in_front() -> None:
    objects = Objects(Toy([WIDE, SIGN, LARGE, TALL], [SIGN], [TALL, NAN]), vehicle, CLASSES, together=True)
    assert len(objects) == 2
    assert objects[0].boxes[0].tolist() == [list(LARGE), list(WIDE), list(SIGN), list(TALL)]
    assert objects[0].surface[0, 0].mean(dim=0).tolist() == [25, 20]
    assert first(objects[1]) == TALL


def test_a_surface_belongs_to_the_first_object() -> None:
    """It stays with what stands in front of it, and no other object of the scene is attacked."""
    source = Toy([WIDE, TALL], [SIGN, LARGE], [NAN, LARGE], [TALL], surface=True)
    objects = Objects(source, vehicle, CLASSES)
    assert [first(objects[i]) for i in range(len(objects))] == [WIDE, TALL]
    assert [objects[i].surface.unique().item() for i in range(2)] == [0.5, 3.5]
    assert objects[0].occluder is not None
    together = Objects(source, vehicle, CLASSES, together=True)
    assert len(together) == 4
    assert first(together[1]) == SIGN
    assert together[1].surface.unique().item() == 1.5


def test_found_boxes_replace_those_of_the_source() -> None:
    """And they have nothing to do with its surface."""
    seen = []

    def find(scene: Scene) -> Tensor:
        seen.append(scene.index.item())
        return torch.tensor([SIGN, TALL])[: int(scene.index) + 1]

    objects = Objects(Toy([WIDE], [WIDE], surface=True), vehicle, ("a", "b"), find=find)
    assert len(objects) == 1
    assert first(objects[0]) == TALL
    assert objects[0].boxes.shape == (1, 2, 5)
    assert objects[0].surface[0, 0].tolist() == [[27, 3], [39, 3], [39, 15], [27, 15]]
    assert objects[0].occluder is None
    assert objects.classes == ("a", "b")
    assert seen == [0, 1]  # once per scene


def test_what_is_left_out_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Objects(Toy([WIDE, TALL], [SIGN], [NAN]), vehicle, CLASSES)
        Objects(Toy([WIDE], [TALL]), vehicle, CLASSES)
    assert caplog.messages == ["2 of 3 scenes show no object to attack and are left out"]


def test_without_objects_there_are_no_scenes() -> None:
    assert len(Objects(Toy([SIGN], [NAN]), vehicle, CLASSES)) == 0

"""The selection of scenes: every object that a patch can lie on is a scene of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from patchattack.scene import Scene, Source

SQUARE = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Item:
    """Number of the scene in the other source, its boxes ``[N, 5]``, and ``[4, 2]`` or None to keep its own surface."""

    scene: int
    boxes: Tensor
    surface: Tensor | None


class Objects(Source):
    """The scenes of another source, once for each of their objects, which is the first row of ``boxes`` then.

    The object gets a surface: the upright square at its box's centre whose side is the mean of the box's width and
    height. A scene that comes with a surface and boxes keeps both, and is there for its first box alone.

    Every scene is looked at once, here. Scenes without an object are left out, and the log says how many. Scenes are
    numbered anew, in their old order, so neighbours stay neighbours.

    Args:
        source: of the scenes.
        attacked: which rows (``[N]`` bool) of boxes ``[N, 5]`` are objects to be attacked; never one of NaN.
        classes: names of the classes that the boxes number.
        together: one scene for all of its objects, with the largest in front, instead of one for each.
        find: gives boxes ``[N, 5]`` to a scene (a batch of one, as its source gives it); None takes the scene's own.
    """

    def __init__(
        self,
        source: Source,
        attacked: Callable[[Tensor], Tensor],
        classes: Sequence[str],
        together: bool = False,
        find: Callable[[Scene], Tensor] | None = None,
    ) -> None:
        self.source, self.classes = source, tuple(classes)
        self._items: list[_Item] = []
        scenes = range(len(source))
        for number in tqdm(scenes, "Looking for objects", unit="scene", delay=2, disable=None):
            self._items += _items(source[number], number, attacked, together, find)
        missing = len(scenes) - len({item.scene for item in self._items})
        if missing and self._items:
            _log.warning("%d of %d scenes show no object to attack and are left out", missing, len(scenes))

    def __len__(self) -> int:
        return len(self._items)

    def original(self, index: int) -> int:
        """That of the scene which shows the object."""
        return self.source.original(self._items[index].scene)

    def files(self, index: int) -> tuple[Path, ...]:
        """Those of the scene which shows the object."""
        return self.source.files(self._items[index].scene)

    def __getitem__(self, index: int) -> Scene:
        """A batch of one with its object's box in front, frames as its source gives them."""
        item = self._items[index]
        scene = replace(self.source[item.scene], index=torch.tensor([index]), boxes=item.boxes.unsqueeze(0))
        if item.surface is None:
            return scene
        # What stood in front of another surface says nothing about this one.
        return replace(scene, surface=item.surface.expand(1, scene.frames.shape[1], 4, 2), occluder=None)


def _items(
    scene: Scene,
    number: int,
    attacked: Callable[[Tensor], Tensor],
    together: bool,
    find: Callable[[Scene], Tensor] | None,
) -> list[_Item]:
    if find is None:
        assert scene.boxes is not None  # all scenes of a source are of one kind
        boxes, surface = scene.boxes[0], scene.surface
    else:
        boxes, surface = find(scene), None
    rows = attacked(boxes).nonzero().flatten().tolist()
    if surface is not None:  # it belongs to the first row, which may be empty
        return [_Item(number, boxes, None)] if (rows if together else rows[:1] == [0]) else []
    if together and rows:
        size = boxes[rows, 2:4] - boxes[rows, :2]
        rows = [rows[int(size.prod(dim=-1).argmax())]]
    return [_Item(number, _in_front(boxes, row), _square(boxes[row])) for row in rows]


def _in_front(boxes: Tensor, row: int) -> Tensor:
    """``boxes [N, 5]`` with one row before all others, which keep their order."""
    return torch.cat([boxes[row : row + 1], boxes[:row], boxes[row + 1 :]])


def _square(box: Tensor) -> Tensor:
    """``[4, 2]`` corners of the upright square at the centre of ``box [5]``, as large as its sides are on average."""
    low, high = box[:2], box[2:4]
    return (low + high) / 2 + (high - low).mean() * SQUARE

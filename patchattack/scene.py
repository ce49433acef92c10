"""The nouns that every module speaks of, and the conventions they share.

Images
    float32 RGB in [0, 1], channels first. Frames are ``[B, T, 3, H, W]``; ``T`` is 2 for flow and 1 otherwise.
    A scene may carry its frames as uint8 until :meth:`Scene.to` moves them to the device, which makes them float32.
    BGR uint8 exists only where OpenCV reads a camera or a file.
Coordinates
    Sizes are ``(h, w)``. Points are ``(x, y)`` in pixels, and an integer is the centre of a pixel, as in OpenCV:
    the frame spans ``[-0.5, W - 0.5] × [-0.5, H - 0.5]``. ``align_corners`` is always written out.
    Corners are ``[B, T, 4, 2]``: top-left, top-right, bottom-right, bottom-left of the patch as printed.
Ground truth
    Flow is ``[B, 2, H, W]`` in pixels, x right and y down, from frame 0 to frame 1. Depth is ``[B, 1, H, W]``.
    NaN means "not known here" in both.
World
    Cameras look along +z with x right and y down; distances are metres. Angles are degrees, counter-clockwise on
    the screen. Lengths on paper are millimetres.
Losses and metrics
    A loss is lower when the attack is stronger. Losses and metrics come back per scene, ``[B]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from patchattack.devices import transfer


@dataclass(frozen=True)
class Scene:
    """A batch of what cameras see, with whatever ground truth its source has.

    Attributes:
        frames: ``[B, T, 3, H, W]``, uint8 in [0, 255] from a source, float32 in [0, 1] after :meth:`to`.
        index: ``[B]`` int64, each scene's number in its source: the same number is always the same scene.
        flow: ``[B, 2, H, W]`` pixels from frame 0 to frame 1, NaN where unknown.
        occluded: ``[B, 1, H, W]`` bool: the point seen in frame 0 is hidden in, or has left, frame 1.
        depth: ``[B, 1, H, W]`` metres in frame 0, NaN where unknown.
        intrinsics: ``[B, 3, 3]`` camera matrix in pixels, shared by the scene's frames.
        motion: ``[B, 4, 4]`` rigid transform that takes a point from frame 0's camera to frame 1's, metres.
        label: ``[B]`` int64, the class of the image in the source's ``classes``; -1 where unknown.
        boxes: ``[B, N, 5]`` objects in frame 0: left, top, right and bottom in pixels (the whole frame is
            ``-0.5, -0.5, W - 0.5, H - 0.5``) and the class in the source's ``classes``; rows of NaN fill up. The
            first row is the object that the scene is about, the one that carries the surface if any does.
        surface: ``[B, T, 4, 2]`` corners of a square on a plane that may carry the patch.
        occluder: ``[B, T, 1, H, W]`` bool: something stands in front of the surface here.
    """

    frames: Tensor
    index: Tensor
    flow: Tensor | None = None
    occluded: Tensor | None = None
    depth: Tensor | None = None
    intrinsics: Tensor | None = None
    motion: Tensor | None = None
    label: Tensor | None = None
    boxes: Tensor | None = None
    surface: Tensor | None = None
    occluder: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames in pixels."""
        return self.frames.shape[-2], self.frames.shape[-1]

    def __len__(self) -> int:
        return self.frames.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        values = (getattr(self, field.name) for field in fields(self))
        return sum(value.nbytes for value in values if value is not None)

    def to(self, device: torch.device | str) -> Scene:
        """The scene on ``device``, with its frames as float32 in [0, 1].

        Integer frames travel as they are and become float32 there. ``surface``, ``motion`` and ``intrinsics`` stay
        on the host: placements are drawn there, so that no step waits for the device.
        """
        host = {"surface", "motion", "intrinsics", "index"}
        moved = {
            field.name: transfer(value, device)
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None and field.name not in host
        }
        if moved["frames"].dtype == torch.uint8:
            moved["frames"] = moved["frames"].float() / 255
        return replace(self, **moved)

    @classmethod
    def concatenate(cls, scenes: list[Scene]) -> Scene:
        """One batch of all ``scenes``, which have the same size and the same ground truth."""
        columns = {
            field.name: [getattr(scene, field.name) for scene in scenes]
            for field in fields(cls)
            if getattr(scenes[0], field.name) is not None
        }
        if "boxes" in columns:
            most = max(boxes.shape[1] for boxes in columns["boxes"])
            columns["boxes"] = [
                F.pad(boxes, (0, 0, 0, most - boxes.shape[1]), value=torch.nan) for boxes in columns["boxes"]
            ]
        return cls(**{name: torch.cat(column) for name, column in columns.items()})

    def select(self, rows: Tensor | slice) -> Scene:
        """The scenes at ``rows`` (a slice, or int64 ``[n]`` on the host; a row may come more than once)."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        known = {name: value for name, value in values.items() if value is not None}
        places: dict[torch.device, Tensor | slice] = {value.device: rows for value in known.values()}
        if isinstance(rows, Tensor):
            places = {device: transfer(rows, device) for device in places}
        return replace(self, **{name: value[places[value.device]] for name, value in known.items()})


class Source(Dataset[Scene], ABC):
    """Where scenes come from: the same index is always the same scene, and all scenes have one size and one kind.

    Attributes:
        classes: names of the classes that labels and boxes number; empty without either.
    """

    classes: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Scene:
        """A batch of one; frames as uint8."""

    def original(self, index: int) -> int:
        """The number that the scene has in the source that this one was made of, itself where it is of none."""
        return index

    def files(self, index: int) -> tuple[Path, ...]:
        """The picture files that show the scene; none where it is of no files."""
        return ()

    def __getitems__(self, indices: list[int]) -> Scene:
        """The scenes at ``indices`` as one batch; to be overridden where a batch is faster than its scenes."""
        return Scene.concatenate([self[index] for index in indices])


@dataclass(frozen=True)
class View:
    """What the camera sees once the patch is in the scene.

    Attributes:
        frames: ``[B, T, 3, H, W]`` float32 in [0, 1], with gradient to the patch.
        coverage: ``[B, T, 1, H, W]`` in [0, 1], how much of a pixel shows the patch; no gradient.
        corners: ``[B, T, 4, 2]`` pixels, on the host.
    """

    frames: Tensor
    coverage: Tensor
    corners: Tensor

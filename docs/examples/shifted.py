"""A data source: pairs of frames, the second of which is the first moved by a few pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from patchattack.errors import InputError
from patchattack.scene import Scene, Source


class Shifted(Source):
    """Noise that moves: the same index is always the same scene.

    Args:
        scenes: how many.
        size: height and width.
        most: pixels that it moves by at most.

    Raises:
        InputError: a number that cannot be.
    """

    def __init__(self, scenes: int = 16, size: Sequence[int] = (32, 64), most: int = 3) -> None:
        if scenes < 1 or most < 0:
            raise InputError(f"data: expected scenes >= 1 and most >= 0, got scenes={scenes} and most={most}")
        self.scenes, self.size, self.most = scenes, (size[0], size[1]), most

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, index: int) -> Scene:
        """A batch of one. Fields that are not known stay None; truth that is unknown at a pixel is NaN."""
        generator = torch.Generator().manual_seed(index)
        first = torch.randint(256, (3, *self.size), dtype=torch.uint8, generator=generator)
        x, y = torch.randint(-self.most, self.most + 1, (2,), generator=generator).tolist()
        flow = torch.tensor([float(x), float(y)]).view(1, 2, 1, 1).expand(1, 2, *self.size)
        frames = torch.stack([first, first.roll((y, x), dims=(1, 2))])
        return Scene(frames=frames[None], index=torch.tensor([index]), flow=flow)

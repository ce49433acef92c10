"""Random resizing and padding (Xie et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patchattack import geometry, seeding
from patchattack.defenses.defense import Defense, Predict
from patchattack.errors import InputError


class ResizePad(Defense):
    """The frames are reduced at random and lie somewhere in a black frame of the old size; both frames of a pair alike.

    Flow and depth come back in the frames' own pixels: maps are enlarged again, vectors with them; depth keeps its
    values. What a detector finds in several draws has no mean, so detectors are left out.

    With a generator each scene has a draw of its own, so that the mean over training's steps is the expectation that
    an adaptive attack needs (Athalye et al. 2018, section 4.2). Without one the answer is the mean output over the
    same ``samples`` draws, of seed 0, for every scene. The gradient is its own.

    Args:
        scale: range of the reduction, in (0, 1].
        samples: draws of the answer without a generator.

    Raises:
        InputError: a range or a number that cannot be.
    """

    name = "resize_pad"
    tasks = ("classification", "depth", "flow")

    def __init__(self, scale: Sequence[float] = (0.85, 1.0), samples: int = 4) -> None:
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise InputError(f"defense.resize_pad.scale: expected [low, high] with 0 < low <= high <= 1, got {scale}")
        if samples < 1:
            raise InputError(f"defense.resize_pad.samples: expected at least 1, got {samples}")
        self.scale, self.samples = (float(scale[0]), float(scale[1])), samples
        self._generator: torch.Generator | None = None
        self._task = ""

    def check(self, victim: Any) -> None:
        """See :meth:`Defense.check`."""
        super().check(victim)
        self._task = victim.task

    def randomise(self, generator: torch.Generator | None) -> None:
        """See :meth:`Defense.randomise`."""
        self._generator = generator

    def __call__(self, frames: Tensor, predict: Predict) -> Any:
        """See :meth:`Defense.__call__`."""
        if self._generator is not None:
            return self._answer(frames, torch.rand(len(frames), 3, generator=self._generator), predict)
        draws = torch.rand(self.samples, 3, generator=seeding.generator(0))
        return torch.stack([self._answer(frames, one.expand(len(frames), 3), predict) for one in draws]).mean(dim=0)

    def _answer(self, frames: Tensor, numbers: Tensor, predict: Predict) -> Tensor:
        """For ``numbers [B, 3]`` in [0, 1]: how large, how far to the right and how far down."""
        count, _, height, width = frames.shape[1:]
        numbers = numbers.to(frames)
        low, high = self.scale
        scale = (low + (high - low) * numbers[:, 0]).view(-1, 1, 1, 1)
        corner = numbers[:, None, None, 1:] * (1 - scale) * frames.new_tensor([width, height])  # from the frame's edge
        grid = geometry.pixel_grid((height, width), frames.device).to(frames)
        there = (grid + 0.5 - corner) / scale - 0.5  # [B, H, W, 2] in the whole frame, for each pixel of the padded one
        padded = geometry.sample(frames.flatten(1, 2), there).unflatten(1, (count, 3))
        output = predict(padded)
        if self._task == "classification":
            return output
        back = geometry.sample(output, (grid + 0.5) * scale + corner - 0.5)
        return back / scale if self._task == "flow" else back

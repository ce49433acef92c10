"""A defence: the victim sees a few levels of each colour."""

from __future__ import annotations

from torch import Tensor

from patchattack.defenses.defense import Preprocessing, straight_through


class Rounded(Preprocessing):
    """Round every value to one of ``levels``; an adaptive attack gets the identity's gradient (BPDA)."""

    name = "rounded"

    def __init__(self, levels: int = 8) -> None:
        self.steps = levels - 1

    def clean(self, images: Tensor) -> Tensor:
        """``[N, 3, H, W]`` in [0, 1], each image for itself."""
        return straight_through((images * self.steps).round() / self.steps, images)

"""A transform: ink has a few levels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from patchattack.eot.transform import Transform, check_range, per_image
from patchattack.seeding import Numbers


class Posterise(Transform):
    """Round the texture's colours to so many levels.

    Args:
        range: of the number of levels.
    """

    def __init__(self, range: Sequence[float] = (4, 8)) -> None:
        self.range = check_range("appearance.posterise.range", range, 2)

    def draw(self, numbers: Numbers) -> Tensor:
        """``[N, 1]`` parameters of N images: drawing is apart from applying, so that a draw can be replayed."""
        return numbers.uniform(self.range)

    def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
        """``[N, 3, h, w]`` and draws ``[N, ...]`` to ``[N, 3, h, w]``, with a gradient."""
        steps = per_image(parameters[:, 0]) - 1
        return image + ((image * steps).round() / steps - image).detach()

"""Smoothing by a median or a Gaussian (Xu et al. 2018, feature squeezing); both have gradients of their own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from patchattack.defenses.defense import Preprocessing, check_odd
from patchattack.errors import InputError


class Median(Preprocessing):
    """Each channel becomes its median over a square window; borders repeat.

    The gradient goes to the pixel that is the median.

    Args:
        side: of the window in pixels, odd.

    Raises:
        InputError: no such window.
    """

    name = "median"

    def __init__(self, side: int = 3) -> None:
        self.side = check_odd("defense.median.side", side)

    def clean(self, images: Tensor) -> Tensor:
        """See :meth:`Preprocessing.clean`."""
        padded = F.pad(images, (self.side // 2,) * 4, mode="replicate")
        return padded.unfold(2, self.side, 1).unfold(3, self.side, 1).flatten(4).median(dim=-1).values


class Gaussian(Preprocessing):
    """Gaussian blur; borders repeat.

    Args:
        sigma: standard deviation in pixels.

    Raises:
        InputError: no such standard deviation.
    """

    name = "gaussian"

    def __init__(self, sigma: float = 0.8) -> None:
        if not 0 < sigma < float("inf"):
            raise InputError(f"defense.gaussian.sigma: expected pixels above 0, got {sigma}")
        self.sigma = float(sigma)

    def clean(self, images: Tensor) -> Tensor:
        """See :meth:`Preprocessing.clean`."""
        from kornia.filters import gaussian_blur2d

        side = 2 * round(3 * self.sigma + 0.5) + 1
        return gaussian_blur2d(images, (side, side), (self.sigma, self.sigma), border_type="replicate")

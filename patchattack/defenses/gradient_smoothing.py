"""Local gradient smoothing (Naseer et al. 2019)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from patchattack import geometry
from patchattack.defenses.defense import Preprocessing, check_odd, check_share, straight_through
from patchattack.errors import InputError


class GradientSmoothing(Preprocessing):
    """Pixels are darkened by the steepness around them, where a whole window is steep: 1 - clip(λ g) of each remains.

    ``g`` is the steepness scaled to [0, 1] over the frame (equations 3 to 6); here a window lies at every pixel.

    The gradient goes through the pixels and through ``g``; that of the clip is the identity's, so that an attack on a
    pixel that is black by now still learns that a smoother one would come through. Which windows count, and the frame's
    extremes, are given.

    Args:
        strength: λ.
        threshold: mean ``g`` from which a window counts.
        side: of a window in pixels, odd.

    Raises:
        InputError: a number that cannot be.
    """

    name = "gradient_smoothing"

    def __init__(self, strength: float = 2.3, threshold: float = 0.4, side: int = 15) -> None:
        if strength <= 0:
            raise InputError(f"defense.gradient_smoothing.strength: expected a number above 0, got {strength}")
        self.strength = strength
        self.threshold = check_share("defense.gradient_smoothing.threshold", threshold)
        self.side = check_odd("defense.gradient_smoothing.side", side)

    def clean(self, images: Tensor) -> Tensor:
        """See :meth:`Preprocessing.clean`."""
        steep = steepness(images)
        low, high = (end.detach() for end in (steep.amin((1, 2, 3), True), steep.amax((1, 2, 3), True)))
        steep = (steep - low) / (high - low).clamp(min=1e-6)
        counts = spread(window_mean(steep, self.side) > self.threshold, self.side)
        darkening = self.strength * steep * counts
        return images * (1 - straight_through(darkening.clamp(max=1), darkening))


def steepness(images: Tensor) -> Tensor:
    """``[N, 1, H, W]`` length of the forward differences of ``images [N, 3, H, W]`` in all colours; 0 at the end."""
    right = F.pad(images, (0, 1, 0, 0), mode="replicate").diff(dim=-1)
    down = F.pad(images, (0, 0, 0, 1), mode="replicate").diff(dim=-2)
    return (right.square() + down.square()).sum(dim=1, keepdim=True).add(1e-12).sqrt()


def window_mean(values: Tensor, side: int) -> Tensor:
    """The mean of ``values [N, C, H, W]`` over an odd window around each pixel, of what lies in the frame."""
    return F.avg_pool2d(values, side, 1, side // 2, count_include_pad=False)


def spread(hot: Tensor, side: int) -> Tensor:
    """``[N, 1, H, W]`` in {0, 1}: an odd window around any pixel of ``hot`` (bool) reaches here."""
    return geometry.highest(hot.float(), side)

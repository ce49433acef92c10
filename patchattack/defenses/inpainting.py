"""Find what looks like a patch and paint it over with what is around it."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from patchattack.defenses.defense import Preprocessing, check_odd, straight_through
from patchattack.defenses.gradient_smoothing import spread, steepness, window_mean
from patchattack.errors import InputError


class Inpainting(Preprocessing):
    """Every window that is suspect is painted over. One overrides :meth:`suspicion`.

    Painting over has no gradient to what was there. In its place stands that of a soft blend: a pixel of suspicion s,
    where a window counts from 1 on, is painted over by the share s / (1 + s), which an attack can lower (BPDA,
    Athalye et al. 2018). What is painted counts as given.

    Args:
        side: of a window in pixels, odd.
    """

    def __init__(self, side: int) -> None:
        self.side = check_odd(f"defense.{self.name}.side", side)

    @abstractmethod
    def suspicion(self, images: Tensor) -> Tensor:
        """``[N, 1, H, W]`` of the window around each pixel of ``images [N, 3, H, W]``; from 1 on it is a patch's."""

    def clean(self, images: Tensor) -> Tensor:
        """See :meth:`Preprocessing.clean`."""
        suspicion = self.suspicion(images)
        painted = inpaint(images.detach(), spread(suspicion > 1, self.side) > 0)
        return straight_through(painted, torch.lerp(images, painted, suspicion / (1 + suspicion)))


class EdgeInpainting(Inpainting):
    """A window is suspect where neighbouring pixels differ much everywhere, as those of optimised patches do.

    After Naseer et al. 2019, who darken such windows, and of what Chiang et al. 2021 find there.

    Args:
        threshold: mean difference of neighbours from which a window is suspect, in units of full scale.
        side: of a window in pixels, odd.

    Raises:
        InputError: a number that cannot be.
    """

    name = "inpainting"

    def __init__(self, threshold: float = 0.6, side: int = 9) -> None:
        super().__init__(side)
        if threshold <= 0:
            raise InputError(f"defense.inpainting.threshold: expected a number above 0, got {threshold}")
        self.threshold = threshold

    def suspicion(self, images: Tensor) -> Tensor:
        """See :meth:`Inpainting.suspicion`."""
        return window_mean(steepness(images), self.side) / self.threshold


class EntropyMasking(Inpainting):
    """A window is suspect where its grey levels are spread evenly: their entropy is high (Tarchoun et al. 2023, Jedi).

    A pixel counts for the two levels beside it, in proportion, so that the entropy has a gradient.

    Args:
        threshold: entropy from which a window is suspect, as a fraction of that of all levels alike.
        side: of a window in pixels, odd.
        levels: of grey.

    Raises:
        InputError: a number that cannot be.
    """

    name = "entropy"

    def __init__(self, threshold: float = 0.85, side: int = 9, levels: int = 16) -> None:
        super().__init__(side)
        if not 0 < threshold < 1 or levels < 2:
            raise InputError(
                "defense.entropy: expected threshold between 0 and 1 and at least 2 levels, "
                f"got {threshold} and {levels}"
            )
        self.threshold, self.levels = threshold, levels

    def suspicion(self, images: Tensor) -> Tensor:
        """See :meth:`Inpainting.suspicion`."""
        grey = images.mean(dim=1, keepdim=True) * (self.levels - 1)
        level = torch.arange(self.levels, device=images.device).view(1, -1, 1, 1)
        shares = window_mean((1 - (grey - level).abs()).clamp(min=0), self.side)
        entropy = torch.special.entr(shares.clamp(min=1e-6)).sum(dim=1, keepdim=True)
        return entropy / (math.log(self.levels) * self.threshold)


def inpaint(images: Tensor, hidden: Tensor) -> Tensor:
    """``images [N, 3, H, W]`` with the pixels ``hidden [N, 1, H, W]`` (bool) filled from around them.

    Push and pull over a pyramid of means (Gortler et al. 1996, section 3.4): near the rim as the rim is, smoother the
    deeper. Grey where everything is hidden.
    """
    weight = (~hidden).to(images)
    return torch.where(hidden, _fill(images * weight, weight), images)


def _fill(colour: Tensor, weight: Tensor) -> Tensor:
    """What ``colour [N, 3, h, w]``, times its ``weight [N, 1, h, w]`` in [0, 1], says of each pixel."""
    if weight.shape[-2:] == (1, 1):
        return torch.where(weight > 0, colour / weight.clamp(min=1e-6), 0.5)
    coarser = [F.avg_pool2d(part, 2, ceil_mode=True, count_include_pad=False) for part in (colour, weight)]
    below = F.interpolate(_fill(*coarser), size=weight.shape[-2:], mode="bilinear", align_corners=False)
    return colour + (1 - weight) * below

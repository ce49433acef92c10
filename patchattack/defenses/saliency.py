"""Paint over what decides the answer by itself (Hayes 2018, digital watermarking)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchattack.defenses.defense import Defense, Predict, check_odd, straight_through
from patchattack.defenses.gradient_smoothing import spread, window_mean
from patchattack.defenses.inpainting import inpaint
from patchattack.errors import InputError


class SaliencyMasking(Defense):
    """Windows on which the likeliest class depends much more than on the rest of the frame are painted over.

    How much, is the length of the gradient of the class's logit at a pixel, over its mean in the frame. The victim is
    asked twice and gives a gradient once more. That of an attack goes through the painting as if nothing had been
    painted over (BPDA, Athalye et al. 2018).

    Args:
        threshold: mean over a window, as a multiple of the frame's, from which it is painted over.
        side: of a window in pixels, odd.

    Raises:
        InputError: a number that cannot be.
    """

    name = "saliency"
    tasks = ("classification",)

    def __init__(self, threshold: float = 4.0, side: int = 9) -> None:
        if threshold <= 1:
            raise InputError(f"defense.saliency.threshold: expected a multiple above 1, got {threshold}")
        self.threshold, self.side = threshold, check_odd("defense.saliency.side", side)

    def check(self, victim: Any) -> None:
        """See :meth:`Defense.check`."""
        super().check(victim)
        if not victim.differentiable:
            raise InputError(
                f"defense: expected a victim with a gradient, which {self.name} asks for, got {victim.name}"
            )

    def __call__(self, frames: Tensor, predict: Predict) -> Any:
        """See :meth:`Defense.__call__`."""
        images = frames[:, 0]
        saliency = self._saliency(frames, predict)
        hidden = spread(window_mean(saliency, self.side) > self.threshold * saliency.mean((1, 2, 3), True), self.side)
        return predict(straight_through(inpaint(images.detach(), hidden > 0), images).unsqueeze(1))

    def _saliency(self, frames: Tensor, predict: Predict) -> Tensor:
        """``[B, 1, H, W]`` of ``frames [B, 1, 3, H, W]``."""
        with torch.enable_grad():
            leaf = frames.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(predict(leaf).amax(dim=1).sum(), leaf)
        return gradient[:, 0].square().sum(dim=1, keepdim=True).sqrt()

"""The update of Ranjan et al. 2019: a plain gradient step of bounded length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from patchattack.errors import InputError


class ClampedGradient(torch.optim.Optimizer):
    """p ← p − clamp(lr · ∇, −most, most), as in the authors' code, without momentum.

    Args:
        params: the parameters, or groups of them.
        lr: factor of the gradient; it depends on the loss and on the number of texels.
        most: that a value changes in a step, in the parameter's own unit. The authors' 2 is the whole range of their
            pixels, which is 1 here.

    Raises:
        InputError: ``lr`` is negative, or ``most`` is not above 0.
    """

    def __init__(self, params: ParamsT, lr: float, most: float = 1.0) -> None:
        if lr < 0 or not most > 0:
            raise InputError(f"optimizer clamped: expected lr >= 0 and most > 0, got lr={lr} and most={most}")
        super().__init__(params, {"lr": lr, "most": most})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step for every parameter that has a gradient; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_((group["lr"] * parameter.grad).clamp(-group["most"], group["most"]))
        return loss

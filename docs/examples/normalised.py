"""An optimiser: steps of one length along the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import ParamsT


class Normalised(torch.optim.Optimizer):
    """p ← p − lr · ∇/‖∇‖∞ for each image ``[c, h, w]``, so that patches side by side do not depend on one another."""

    def __init__(self, params: ParamsT, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    largest = parameter.grad.abs().amax(dim=(-3, -2, -1), keepdim=True)
                    parameter.sub_(group["lr"] * parameter.grad / largest.clamp(min=1e-30))
        return loss

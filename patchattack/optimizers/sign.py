"""Steps along the sign of the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from patchattack.errors import InputError


class SignMomentum(torch.optim.Optimizer):
    """Momentum iterative fast gradient sign method (Dong et al. 2018, equations 6 and 7), as a descent.

    g ← momentum · g + ∇/‖∇‖₁;  p ← p − lr · sign(g). Every value of a tensor moves by ``lr`` or not at all. The norm
    is that of one image ``[c, h, w]``, so that candidates ``[P, c, h, w]`` do not depend on one another.

    Args:
        params: the parameters, or groups of them.
        lr: length of a step in the parameter's own unit: for free pixels, of full-scale colour.
        momentum: fraction of the past in g; 1 in the paper, 0 for the basic iterative method.

    Raises:
        InputError: ``lr`` or ``momentum`` is negative.
    """

    def __init__(self, params: ParamsT, lr: float, momentum: float = 0.9) -> None:
        if lr < 0 or momentum < 0:
            raise InputError(f"optimizer sign: expected lr >= 0 and momentum >= 0, got lr={lr} and momentum={momentum}")
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step for every parameter that has a gradient; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["direction"] = torch.zeros_like(parameter)
                dims = tuple(range(-min(3, parameter.ndim), 0))
                # A gradient that is zero everywhere stays zero, instead of 0/0.
                length = parameter.grad.abs().sum(dim=dims, keepdim=True).clamp(min=torch.finfo(parameter.dtype).tiny)
                state["direction"].mul_(group["momentum"]).add_(parameter.grad / length)
                parameter.sub_(group["lr"] * state["direction"].sign())
        return loss

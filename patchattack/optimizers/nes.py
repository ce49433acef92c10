"""Natural evolution strategies."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from patchattack.errors import InputError
from patchattack.optimizers.gradient_free import Closure, GradientFree, check_population, check_positive


class NES(GradientFree):
    """Antithetic natural evolution strategies (Wierstra et al. 2014; against networks, Ilyas et al. 2018, section 3).

    g ← 1/n Σ_i [L(x + σBz_i) - L(x - σBz_i)] / 2σ · z_i of n pairs, every z normal, B the basis;
    m ← momentum · m + g;  x ← x - lr · Bm / rms(Bm). All steps are of one length, whatever the scale of the loss.

    Args:
        params: one parameter.
        lr: length of a step, root mean square over the parameter; for free pixels, of full-scale colour.
        population: losses that a step compares, an even number.
        sigma: how far from the parameter they are tried, root mean square too.
        momentum: fraction of the past in m.
        basis, resolution: of what is searched, as in :class:`patchattack.optimizers.basis.Basis`.

    Raises:
        InputError: an odd population, or a value out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        population: int = 20,
        sigma: float = 0.05,
        momentum: float = 0.9,
        basis: str = "dct",
        resolution: int = 8,
    ) -> None:
        check_positive("nes", lr=lr, sigma=sigma)
        if not 0 <= momentum < 1:
            raise InputError(f"optimizer nes: expected momentum in [0, 1), got {momentum}")
        super().__init__(params, {"lr": lr, "momentum": momentum}, basis, resolution)
        self.population, self.sigma = check_population("nes", population), sigma

    @property
    def evaluations(self) -> int:
        """Two for each pair."""
        return self.population

    def estimate(self, closure: Closure) -> tuple[Tensor, float]:
        """The loss's gradient in the coefficients, ``[c, k, l]``, and the mean of the losses met."""
        pairs = self.population // 2
        total, loss = self.slopes((self.normal() for _ in range(pairs)), self.sigma, closure)
        return total / pairs, loss

    @torch.no_grad()
    def step(self, closure: Closure) -> float:  # type: ignore[override]
        """One update; returns the mean of the losses met."""
        gradient, loss = self.estimate(closure)
        group, memory = self.param_groups[0], self.memory
        if not memory:
            memory["direction"] = torch.zeros_like(gradient)
        memory["direction"].mul_(group["momentum"]).add_(gradient)
        direction = self.basis.texture(memory["direction"])
        # Where every loss was the same nothing moves, instead of 0/0.
        length = direction.square().mean().sqrt().clamp(min=torch.finfo(direction.dtype).tiny)
        self.parameter.sub_(group["lr"] * direction / length)
        return loss

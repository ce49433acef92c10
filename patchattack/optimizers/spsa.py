"""Simultaneous perturbation stochastic approximation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from patchattack.optimizers.gradient_free import (
    Closure,
    GradientFree,
    check_betas,
    check_population,
    check_positive,
)


class SPSA(GradientFree):
    """Simultaneous perturbations (Spall 1992, equation 2.2), with Adam's steps (Uesato et al. 2018, algorithm 1).

    g ← 1/n Σ_i [L(x + δBs_i) - L(x - δBs_i)] / 2δ · s_i of n pairs, every s random signs, B the basis.

    Args:
        params: one parameter.
        lr: of Adam: about the root mean square of a step over the parameter, at most.
        population: losses that a step compares, an even number.
        delta: how far from the parameter they are tried, root mean square over the parameter.
        betas: of Adam.
        basis, resolution: of what is searched, as in :class:`patchattack.optimizers.basis.Basis`.

    Raises:
        InputError: an odd population, or a value out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        population: int = 20,
        delta: float = 0.1,
        betas: Sequence[float] = (0.9, 0.99),
        basis: str = "dct",
        resolution: int = 8,
    ) -> None:
        check_positive("spsa", lr=lr, delta=delta)
        super().__init__(params, {"lr": lr, "betas": check_betas("spsa", betas)}, basis, resolution)
        self.population, self.delta = check_population("spsa", population), delta

    @property
    def evaluations(self) -> int:
        """Two for each pair."""
        return self.population

    def estimate(self, closure: Closure) -> tuple[Tensor, float]:
        """The loss's gradient in the coefficients, ``[c, k, l]``, and the mean of the losses met."""
        pairs = self.population // 2
        # A sign is its own inverse: to multiply by it is Spall's division.
        total, loss = self.slopes((self._signs() for _ in range(pairs)), self.delta, closure)
        return total / pairs, loss

    def _signs(self) -> Tensor:
        signs = torch.randint(2, self.basis.shape, generator=self._generator) * 2 - 1
        return signs.to(self.parameter)

    @torch.no_grad()
    def step(self, closure: Closure) -> float:  # type: ignore[override]
        """One update; returns the mean of the losses met."""
        gradient, loss = self.estimate(closure)
        self.descend(gradient)
        return loss

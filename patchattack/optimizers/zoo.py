"""Zeroth-order optimisation, coordinate by coordinate."""

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


class ZOO(GradientFree):
    """Symmetric differences of a few random coordinates at a time, with Adam (Chen et al. 2017, algorithm 2).

    A coordinate is a coefficient of the basis: a value of a texel, of a cell, or of a wave.

    Args:
        params: one parameter.
        lr: of Adam: about what a coordinate changes by in a step, at most.
        population: losses that a step compares, two for each coordinate; no more than all coordinates are taken.
        delta: how far a coordinate is changed to try.
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
        delta: float = 0.2,
        betas: Sequence[float] = (0.9, 0.999),
        basis: str = "grid",
        resolution: int = 8,
    ) -> None:
        check_positive("zoo", lr=lr, delta=delta)
        super().__init__(params, {"lr": lr, "betas": check_betas("zoo", betas)}, basis, resolution)
        self.coordinates = min(check_population("zoo", population) // 2, self.basis.shape.numel())
        self.delta = delta

    @property
    def evaluations(self) -> int:
        """Two for each coordinate."""
        return 2 * self.coordinates

    @torch.no_grad()
    def step(self, closure: Closure) -> float:  # type: ignore[override]
        """One update; returns the mean of the losses met."""
        count = self.basis.shape.numel()
        places = torch.randperm(count, generator=self._generator)[: self.coordinates]
        units = (self._unit(place) for place in places.tolist())
        gradient, loss = self.slopes(units, self.delta, closure)
        self.descend(gradient, places)
        return loss

    def _unit(self, place: int) -> Tensor:
        unit = torch.zeros(self.basis.shape.numel())
        unit[place] = 1
        return unit.view(self.basis.shape).to(self.parameter)

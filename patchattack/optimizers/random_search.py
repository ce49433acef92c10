"""Random search for a universal patch."""

from __future__ import annotations

import torch
from torch.optim.optimizer import ParamsT

from patchattack.errors import InputError
from patchattack.optimizers.gradient_free import Closure, GradientFree, check_positive


class RandomSearch(GradientFree):
    """Squares of one random colour, each kept unless the loss rises (Sparse-RS, Croce et al. 2022, section 5).

    Every colour is a corner of the colour cube: its values are 0 or 1 in the parameter itself, which fits
    ``patch.parameterisation`` of pixels and palette. Nothing but the order of losses counts, so labels alone are
    enough; what leaves the loss as it is, is kept too, and lets the search drift where labels do not change.

    Args:
        params: one parameter.
        lr: side of the squares, as a fraction of the parameter's longer side; schedules shrink it.
        population: losses that a step compares: of the parameter as it was, and after one more square each time.
        basis: ``pixels``, or ``grid``, whose squares are made of whole cells.
        resolution: cells along the longer side, of ``grid``.

    Raises:
        InputError: another basis, or a value out of its range.
    """

    def __init__(
        self, params: ParamsT, lr: float, population: int = 20, basis: str = "pixels", resolution: int = 8
    ) -> None:
        check_positive("random_search", lr=lr)
        if population < 2 or basis == "dct":
            raise InputError(
                "optimizer random_search: expected a population from 2 on and basis of pixels or grid, "
                f"got {population} and {basis}"
            )
        super().__init__(params, {"lr": lr}, basis, resolution)
        self.population = population

    @property
    def evaluations(self) -> int:
        """One of the parameter as it was, and one for each square."""
        return self.population

    @torch.no_grad()
    def step(self, closure: Closure) -> float:  # type: ignore[override]
        """One update; returns the loss at its end, which is not above that at its beginning."""
        best = self.parameter.clone()
        least = self.loss_at(best, closure)
        for _ in range(self.population - 1):
            tried = best.clone()
            self._paint(tried)
            loss = self.loss_at(tried, closure)
            if loss <= least:
                best, least = tried, loss
        self.parameter.copy_(best)
        return least

    def _paint(self, texture: torch.Tensor) -> None:
        """Give a random square of ``texture [c, h, w]`` a random colour, in place."""
        channels, *counts = self.basis.shape
        side = max(1, round(self.param_groups[0]["lr"] * max(counts)))
        rows, columns = (
            self._span(texels, count, min(side, count)) for texels, count in zip(texture.shape[1:], counts, strict=True)
        )
        colour = torch.randint(2, (channels, 1, 1), generator=self._generator)
        texture[:, rows, columns] = colour.to(texture)

    def _span(self, texels: int, count: int, side: int) -> slice:
        """Texels of ``side`` neighbouring cells of ``count``."""
        first = int(torch.randint(count - side + 1, (), generator=self._generator))
        start, stop = (-(-place * texels // count) for place in (first, first + side))
        return slice(start, stop)

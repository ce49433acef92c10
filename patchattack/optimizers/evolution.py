"""Covariance matrix adaptation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import ParamsT

from patchattack import seeding
from patchattack.errors import InputError
from patchattack.optimizers.gradient_free import Closure, GradientFree, check_positive

_SEEDS = 1 << 24  # as many as single precision can tell apart
_FULL = 400  # coefficients up to which the whole covariance is learnt


class Evolution(GradientFree):
    """CMA-ES (Hansen & Ostermeier 2001) through ``cma``; separable (Ros & Hansen 2008) above 400 coefficients.

    The parameter is the mean of what is tried, in its basis. Only the order of a step's losses counts, so labels alone
    are enough. The strategy is what the losses so far have made of it: they are what is remembered, and a resumed run
    tells them to a new one.

    Args:
        params: one parameter; from the first step on, what the basis has of it.
        lr: how far the mean moves towards that of the best, 1 in the paper.
        population: losses that a step compares; None is cma's choice, 4 + 3 ln n of n coefficients.
        sigma: standard deviation of each coefficient to begin with.
        basis, resolution: of what is searched, as in :class:`patchattack.optimizers.basis.Basis`.

    Raises:
        InputError: ``cma`` is not installed, or a value is out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        population: int | None = 20,
        sigma: float = 0.3,
        basis: str = "grid",
        resolution: int = 8,
    ) -> None:
        check_positive("evolution", lr=lr, sigma=sigma)
        if population is not None and population < 4:
            raise InputError(f"optimizer evolution: expected a population from 4 on, got {population}")
        try:
            import cma  # noqa: F401 - a missing package is said before the work
        except ImportError as error:
            raise InputError(
                "optimizer evolution: expected the package cma, got none; pip install 'patchattack[evolution]'"
            ) from error
        super().__init__(params, {"lr": lr}, basis, resolution)
        count = self.basis.shape.numel()
        self.population = population or 4 + int(3 * np.log(count))
        self.sigma = sigma
        self._strategy: Any = None

    @property
    def evaluations(self) -> int:
        """One for each of the population."""
        return self.population

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any optimiser; the strategy is made anew in the next step."""
        super().load_state_dict(state_dict)
        self._strategy = None

    @torch.no_grad()
    def step(self, closure: Closure) -> float:  # type: ignore[override]
        """One generation; returns the least of the losses met."""
        memory = self.memory
        if not memory:
            memory["start"] = self.basis.coefficients(self.parameter)
            memory["seed"] = torch.randint(_SEEDS, (1,), generator=self._generator).to(self.parameter)
            memory["told"] = torch.zeros(0, self.population + 1).to(self.parameter)
        if self._strategy is None:
            self._strategy = self._start()
            for *losses, rate in memory["told"].tolist():
                self._tell(self._ask(), losses, rate)
        tried = self._ask()
        losses = [self.loss_at(self._texture(coefficients), closure) for coefficients in tried]
        rate = self.param_groups[0]["lr"]
        told = torch.tensor([[*losses, rate]]).to(memory["told"])
        memory["told"] = torch.cat([memory["told"], told])
        *_, rate = told[0].tolist()  # in the precision that is remembered
        self._tell(tried, losses, rate)
        self.parameter.copy_(self._texture(self._strategy.mean))
        return min(losses)

    def _start(self) -> Any:
        import cma

        count = self.basis.shape.numel()
        options = {
            "popsize": self.population,
            "CMA_diagonal": count > _FULL,
            "randn": self._numbers,
            "seed": np.nan,  # of a generator that is not asked
            "verbose": -9,
        }
        start = self.memory["start"].double().flatten().cpu().numpy()
        return cma.CMAEvolutionStrategy(start, self.sigma, options)

    def _numbers(self, count: int, dimension: int) -> np.ndarray:
        """Standard normal numbers of this generation."""
        key = (int(self.memory["seed"].item()), 0 if self._strategy is None else self._strategy.countiter)
        noise = torch.randn(count, dimension, generator=seeding.generator(*key), dtype=torch.float64)
        return noise.numpy()

    def _ask(self) -> list[np.ndarray]:
        found: list[np.ndarray] = self._strategy.ask()
        return found

    def _tell(self, tried: list[np.ndarray], losses: list[float], rate: float) -> None:
        self._strategy.sp.cmean = rate
        self._strategy.tell(tried, losses)

    def _texture(self, coefficients: np.ndarray) -> torch.Tensor:
        values = torch.from_numpy(coefficients).to(self.parameter)
        return self.basis.texture(values.view(self.basis.shape))

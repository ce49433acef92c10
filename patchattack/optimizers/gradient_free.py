"""What optimisers have in common that compare losses and need no gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from patchattack.errors import InputError
from patchattack.optimizers.basis import Basis

Closure = Callable[[], Any]


class GradientFree(torch.optim.Optimizer, ABC):
    """Changes one parameter by what the loss is elsewhere. One overrides :meth:`step` and :attr:`evaluations`.

    In a step it sets the parameter to what it wants to try and calls the closure, which returns the loss there (and may
    bring values back into their range first). The losses of one step are of the same scenes and draws, so they can be
    compared with one another, and with those of no other step.

    Args:
        params: a single parameter ``[c, h, w]``.
        defaults: of its group; ``lr`` among them, which schedules change.
        basis, resolution: of what is searched, as in :class:`Basis`.

    Raises:
        InputError: more than one parameter, or one of another shape.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any], basis: str = "pixels", resolution: int = 1) -> None:
        super().__init__(params, defaults)
        found = [parameter for group in self.param_groups for parameter in group["params"]]
        if len(found) != 1 or found[0].ndim != 3:
            raise InputError(
                "optimizer: expected one parameter [c, h, w] to search without gradients, got "
                f"{[list(parameter.shape) for parameter in found]}"
            )
        self.parameter: Tensor = found[0].detach()  # the same memory
        self.basis = Basis(basis, resolution, self.parameter.shape, self.parameter.device)
        self._key = found[0]
        self._generator = torch.Generator()

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """How often a step calls its closure, at most."""

    def draw(self, generator: torch.Generator) -> None:
        """Let what the next step tries come from ``generator``, on the host."""
        self._generator = generator

    @abstractmethod
    def step(self, closure: Closure) -> float:  # type: ignore[override]
        """One update; returns a loss that the step has met."""

    @property
    def memory(self) -> dict[str, Any]:
        """What is remembered from step to step: tensors, in the parameter's own precision."""
        return self.state[self._key]

    def normal(self) -> Tensor:
        """Coefficients from a standard normal distribution."""
        return torch.randn(self.basis.shape, generator=self._generator).to(self.parameter)

    def loss_at(self, texture: Tensor, closure: Closure) -> float:
        """The loss where the parameter is ``texture``; it stays there."""
        self.parameter.copy_(texture)
        return float(closure())

    @torch.no_grad()
    def slopes(self, directions: Iterable[Tensor], radius: float, closure: Closure) -> tuple[Tensor, float]:
        """Central differences around the parameter, which stays what it is.

        Args:
            directions: coefficients ``z [c, k, l]``.
            radius: how far along each the loss is tried, r.
            closure: gives the loss.

        Returns:
            ``[c, k, l]``, the sum over all z of ``z [L(x + rBz) - L(x - rBz)] / 2r`` with the basis B, and the mean of
            the losses met.
        """
        origin = self.parameter.clone()
        total, losses = torch.zeros(self.basis.shape).to(origin), []
        for direction in directions:
            shift = radius * self.basis.texture(direction)
            plus, minus = (self.loss_at(origin + sign * shift, closure) for sign in (1, -1))
            total += (plus - minus) / (2 * radius) * direction
            losses += [plus, minus]
        self.parameter.copy_(origin)
        return total, sum(losses) / len(losses)

    @torch.no_grad()
    def descend(self, gradient: Tensor, known: Tensor | None = None) -> None:
        """One step of Adam (Kingma & Ba 2015, algorithm 1) in the coefficients, with the group's ``lr`` and ``betas``.

        Args:
            gradient: ``[c, k, l]``.
            known: ``[n]`` places among the flattened coefficients where the gradient is known: the others stay, and do
                not count the step (Chen et al. 2017, algorithm 2). None is all.
        """
        group, memory = self.param_groups[0], self.memory
        if not memory:
            memory |= {name: torch.zeros_like(gradient).flatten() for name in ("mean", "square", "count")}
        places = torch.arange(gradient.numel()) if known is None else known
        slope, count = gradient.flatten()[places], memory["count"]
        count[places] += 1
        moments = []
        for name, beta, value in zip(("mean", "square"), group["betas"], (slope, slope.square()), strict=True):
            memory[name][places] = beta * memory[name][places] + (1 - beta) * value
            moments.append(memory[name][places] / (1 - beta ** count[places]))
        direction = torch.zeros_like(memory["mean"])
        direction[places] = moments[0] / (moments[1].sqrt() + 1e-8)
        self.parameter.sub_(group["lr"] * self.basis.texture(direction.view_as(gradient)))


def check_positive(name: str, **values: float) -> None:
    """Refuse arguments of the optimiser ``name`` that are not above 0.

    Raises:
        InputError: one of them is not.
    """
    for key, value in values.items():
        if not value > 0:
            raise InputError(f"optimizer {name}: expected {key} > 0, got {value}")


def check_betas(name: str, betas: Iterable[float]) -> tuple[float, float]:
    """The two of Adam, as a tuple.

    Raises:
        InputError: not two, or not in [0, 1).
    """
    found = tuple(betas)
    if len(found) != 2 or not all(0 <= beta < 1 for beta in found):
        raise InputError(f"optimizer {name}: expected betas of two numbers in [0, 1), got {list(found)}")
    return found


def check_population(name: str, population: int) -> int:
    """An even number of losses, which come in pairs.

    Raises:
        InputError: it is odd, or below 2.
    """
    if population < 2 or population % 2:
        raise InputError(f"optimizer {name}: expected an even population from 2 on, got {population}")
    return population

"""Several networks as one victim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from patchattack.errors import InputError
from patchattack.victims.victim import Victim


class Ensemble(Victim):
    """Several victims of one task, attacked by one patch (Ranjan et al. 2019, black box; Brown et al. 2017).

    Its output is the tuple of their outputs.

    Args:
        members: name to victim.
        combine: how their losses become one: their ``mean``, the ``worst`` for the attack of each scene, or that of
            a ``random`` member in every step.

    Raises:
        InputError: no member, members of different tasks, or no such way to combine them.
    """

    def __init__(self, members: Mapping[str, Victim], combine: str = "mean") -> None:
        tasks = {victim.task for victim in members.values()}
        if len(tasks) != 1:
            found = ", ".join(f"{name} for {victim.task}" for name, victim in members.items()) or "none"
            raise InputError(f"victim: expected an ensemble of victims for one task, got {found}; leave some out")
        if combine not in ("mean", "worst", "random"):
            raise InputError(f"victim.combine: expected mean, worst or random, got {combine}")
        super().__init__(nn.ModuleList(members.values()), " + ".join(victim.name for victim in members.values()))
        self.members, self.combine = dict(members), combine
        first = next(iter(members.values()))
        self.task, self.frames = first.task, first.frames
        self.differentiable = all(victim.differentiable for victim in members.values())
        self._only: int | None = None

    @property
    def names(self) -> list[str]:
        """Of the members."""
        return [name for victim in self.members.values() for name in victim.names]

    def randomise(self, generator: torch.Generator | None) -> None:
        """Choose the member that answers, where they are combined at random, and what is random in the members."""
        chooses = generator is not None and self.combine == "random"
        self._only = int(torch.randint(len(self.members), (), generator=generator)) if chooses else None
        for victim in self.members.values():
            victim.randomise(generator)

    def forward(self, frames: Tensor) -> tuple[Any, ...]:
        """Each member's output for ``frames [B, T, 3, H, W]``; None of a member that was not chosen."""
        victims = enumerate(self.members.values())
        return tuple(victim(frames) if self._only in (None, number) else None for number, victim in victims)

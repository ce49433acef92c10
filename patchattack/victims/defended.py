"""A victim behind defences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from patchattack.victims.ensemble import Ensemble
from patchattack.victims.victim import Victim


class Defended(Victim):
    """A victim behind defences; what its task's class declares (depth: ``is_metric``, ``depth_range``) is the victim's.

    Args:
        victim: to be defended.
        defenses: in the order in which the frames meet them, each as :class:`patchattack.defenses.defense.Defense`.

    Raises:
        InputError: a defence does not fit the victim.
    """

    def __init__(self, victim: Victim, defenses: Sequence[Any]) -> None:
        for defense in defenses:
            defense.check(victim)
        behind = f" behind {'+'.join(defense.name for defense in defenses)}" if defenses else ""
        super().__init__(victim, victim.name + behind)
        self.defenses = list(defenses)
        self.task, self.frames, self.classes = victim.task, victim.frames, victim.classes
        self.differentiable = victim.differentiable

    def __getattr__(self, name: str) -> Any:
        """What only some victims have."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def randomise(self, generator: torch.Generator | None) -> None:
        """Of the defences and of the victim."""
        for part in (*self.defenses, self.network):
            part.randomise(generator)

    def forward(self, frames: Tensor) -> Any:
        """The defended answer for ``frames [B, T, 3, H, W]``."""
        return self._behind(0)(self.check(frames))

    def certify(self, frames: Tensor) -> Tensor | None:
        """``[B]`` int64: the class that no patch can change, -1 where there is none; None without a proof.

        Only the first defence can prove anything: those before would spread a patch over the frame.

        Args:
            frames: ``[B, 1, 3, H, W]`` without a patch.
        """
        return self.defenses[0].certify(frames, self._behind(1)) if self.defenses else None

    def certify_objects(self, frames: Tensor, objects: Tensor, confidence: float) -> Mapping[str, Tensor] | None:
        """Which objects no patch can hide, as :meth:`patchattack.defenses.defense.Defense.certify_objects` says it."""
        certify = self.defenses[0].certify_objects if self.defenses else None
        return certify(frames, self._behind(1), objects, confidence) if certify else None

    def _behind(self, first: int) -> Callable[[Tensor], Any]:
        """The victim behind the defences from number ``first`` on."""
        predict: Callable[[Tensor], Any] = self.network
        for defense in reversed(self.defenses[first:]):
            predict = partial(defense, predict=predict)
        return predict


def defend(victim: Victim, defenses: Mapping[str, Any]) -> Victim:
    """``victim`` behind ``defenses``, each member of an ensemble for itself; as it is without any.

    Raises:
        InputError: a defence does not fit the victim.
    """
    if not defenses:
        return victim
    if isinstance(victim, Ensemble):
        members = {name: defend(member, defenses) for name, member in victim.members.items()}
        return Ensemble(members, victim.combine)
    return Defended(victim, list(defenses.values()))

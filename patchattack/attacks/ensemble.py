"""One task's attack on several victims at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from patchattack.attacks.attack import Attack, Textures
from patchattack.patch import Patch
from patchattack.scene import Scene, Source, View


class EnsembleAttack(Attack):
    """The same attack on every member of an ensemble; outputs are tuples, None where a member was not asked.

    Metrics are the members' means, and the primary metric's also stands alone for each member, as ``metric/member``.

    Args:
        attack: on one victim.
        victims: the members by name, in the order of the outputs.
        combine: ``worst`` takes the highest of the members' losses for each scene; otherwise their mean counts.
    """

    def __init__(self, attack: Attack, victims: Mapping[str, Any], combine: str) -> None:
        self.attacks = dict.fromkeys(victims, attack)
        self.victims, self.combine = victims, combine
        self.task, self.primary_metric, self.clean_metric = attack.task, attack.primary_metric, attack.clean_metric
        self.nothing_to_win = attack.nothing_to_win

    def bind(self, victim: Any, source: Source) -> None:
        """Each member gets an attack of its own."""
        self.attacks = {name: attack.bound(self.victims[name], source) for name, attack in self.attacks.items()}
        metric = self.first.metric_info[self.primary_metric[0]]
        own = {
            f"{self.primary_metric[0]}/{name}": type(metric)(f"{metric.label}, {name}", metric.stronger, metric.rate)
            for name in self.attacks
        }
        self.metric_info = {**self.first.metric_info, **own}
        self.size = self.first.size

    @property
    def first(self) -> Attack:
        """On the first member."""
        return next(iter(self.attacks.values()))

    def scenes(self, source: Source, predict: Callable[[Tensor], Any]) -> Source:
        """Those that the attack on the first member can use."""
        scenes = self.first.scenes(source, lambda frames: predict(frames)[0])
        # What the first member has labelled is in its classes.
        self.attacks = {name: attack.bound(self.victims[name], scenes) for name, attack in self.attacks.items()}
        return scenes

    def controls(self, source: Source, patch: Patch) -> Mapping[str, Textures]:
        """Those of the attack."""
        return self.first.controls(source, patch)

    def loss(self, output: Any, clean: Any, scene: Scene, view: View) -> Tensor:
        """``[B]``: the mean or the highest of the members' losses."""
        losses = torch.stack(
            [
                attack.loss(one, reference, scene, view)
                for attack, one, reference in zip(self.attacks.values(), output, clean, strict=True)
                if one is not None
            ]
        )
        return losses.amax(dim=0) if self.combine == "worst" else losses.mean(dim=0)

    def metrics(self, output: Any, clean: Any, scene: Scene, view: View) -> dict[tuple[str, str], Tensor]:
        """The members' means, and each member's primary metric."""
        found = {
            name: attack.metrics(one, reference, scene, view)
            for (name, attack), one, reference in zip(self.attacks.items(), output, clean, strict=True)
        }
        shared = set.intersection(*(set(metrics) for metrics in found.values()))
        means = {
            key: torch.stack([metrics[key].float() for metrics in found.values()]).nanmean(dim=0)
            for key in next(iter(found.values()))
            if key in shared
        }
        metric, region = self.primary_metric
        return means | {(f"{metric}/{name}", region): metrics[self.primary_metric] for name, metrics in found.items()}

    def pictures(self, outputs: list[Any], frames: list[Tensor]) -> list[Tensor]:
        """The members' pictures below one another."""
        columns = [
            attack.pictures([output[number] for output in outputs], frames)
            for number, attack in enumerate(self.attacks.values())
        ]
        return [torch.cat(pictures, dim=1) for pictures in zip(*columns, strict=True)]

    def legend(self) -> tuple[Tensor | None, str]:
        """That of the attack, and the members' order."""
        picture, text = self.first.legend()
        return picture, f"{text} From top to bottom: {', '.join(self.attacks)}."

    def changes(self, outputs: list[Any], clean: Any, frames: list[Tensor]) -> list[Tensor]:
        """The members' pictures below one another."""
        columns = [
            attack.changes([output[number] for output in outputs], clean[number], frames)
            for number, attack in enumerate(self.attacks.values())
        ]
        return [torch.cat(pictures, dim=1) for pictures in zip(*columns, strict=True)]

    def changes_legend(self) -> tuple[Tensor | None, str]:
        """That of the attack."""
        return self.first.changes_legend()

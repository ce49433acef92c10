"""What an attack is: the task's loss, its metrics and its picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from patchattack.scene import Scene, View


@dataclass(frozen=True)
class Metric:
    """How a metric is read.

    Attributes:
        label: in words, with its unit.
        stronger: ``lower`` or ``higher``: which way a stronger attack moves it.
    """

    label: str
    stronger: str


class Attack(ABC):
    """One task's loss and success metrics. Outputs are whatever the task's victims return.

    Attributes:
        task: which victims it fits.
        metrics_known: every metric's name with how to read it.
        headline: the metric and the region that decide whether a patch works.
    """

    task: ClassVar[str]
    metrics_known: ClassVar[dict[str, Metric]]
    headline: tuple[str, str]

    @abstractmethod
    def loss(self, hit: Any, clean: Any, scene: Scene, view: View) -> Tensor:
        """``[B]``, lower when the attack is stronger.

        Args:
            hit: the victim's output on the view.
            clean: its output on the same scenes without the patch.
            scene: the scenes, on the victim's device.
            view: the rendered scenes.
        """

    @abstractmethod
    def metrics(self, hit: Any, clean: Any, scene: Scene, view: View) -> dict[tuple[str, str], Tensor]:
        """``(metric, region) -> [B]``; NaN where a scene has nothing to measure."""

    @abstractmethod
    def pictures(self, outputs: list[Any]) -> list[Tensor]:
        """One picture ``[3, H, W]`` in [0, 1] for each output of a single scene, on one common scale."""

    @abstractmethod
    def legend(self) -> tuple[Tensor, str]:
        """A picture ``[3, h, w]`` in [0, 1] that explains the pictures, and a sentence to it."""

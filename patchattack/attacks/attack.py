"""What an attack is: the task's loss, its metrics and its picture."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from torch import Tensor

from patchattack.patch import Patch
from patchattack.scene import Scene, Source, View

Textures = Callable[[int], Tensor]  # an index, new for every scene and draw, to a texture [3, h, w]


@dataclass(frozen=True)
class Metric:
    """How a metric is read.

    Attributes:
        label: in words, with its unit.
        stronger: ``lower`` or ``higher``: which way a stronger attack moves it.
        rate: each scene's value is a success, a failure, or a fraction of its draws; its interval is Wilson's.
    """

    label: str
    stronger: str
    rate: bool = False

    @property
    def sign(self) -> float:
        """1 where a stronger attack has a higher value, -1 where it has a lower one."""
        return 1.0 if self.stronger == "higher" else -1.0


@dataclass(frozen=True)
class Size:
    """How a verdict names the size of an effect to somebody who does not know the metrics.

    Attributes:
        metric: name and region; what it differs from its value on clean frames is the effect.
        words: what the patch does, with ``{}`` in the place of the effect, after "The patch works: it ...".
        small: a patch whose effect exceeds that of some control by less than this does little more than that.
        unit: ``%`` of a fraction, else the metric's own, as ``m``.
    """

    metric: tuple[str, str]
    words: str
    small: float
    unit: str = "%"

    def format(self, effect: float) -> str:
        """An effect with its unit."""
        number = 100 * effect if self.unit == "%" else effect
        return f"{number:.{1 if abs(number) < 9.95 else 0}f} {self.unit}".replace("-", "−")


class Attack(ABC):
    """One task's loss and success metrics. Outputs are whatever the task's victims return.

    Attributes:
        task: which victims it fits.
        metric_info: every metric's name with how to read it.
        primary_metric: the metric and the region that decide whether a patch works.
        clean_metric: the metric and the region that say how good an output is, where the data know: what a defence may
            cost.
        size: how a verdict names the effect in plain words; None leaves it at a comparison with a random patch.
        reach: the metric that has a value in every pixel, as :meth:`per_pixel` gives it: how far a patch reaches.
        nothing_to_win: why metrics that count what a patch wins can be unknown in every scene.
    """

    nothing_to_win: str = "it is wrong without a patch already, or there is nothing to change"
    task: str
    metric_info: Mapping[str, Metric]
    primary_metric: tuple[str, str]
    clean_metric: tuple[str, str]
    size: Size | None = None
    reach: str | None = None

    def bound(self, victim: Any, source: Source) -> Self:
        """A copy that knows the victim and the scenes, to work with; arguments and errors as of :meth:`bind`."""
        attack = copy.copy(self)
        attack.bind(victim, source)
        return attack

    def bind(self, victim: Any, source: Source) -> None:  # noqa: B027 - many attacks have nothing to look up
        """Turn names into numbers, and say what cannot be: what :meth:`bound` does to its new copy.

        Args:
            victim: under test; ``classes``, ``name`` and what else its task's class declares.
            source: of the scenes, with its ``classes``.

        Raises:
            InputError: what is asked for does not fit them.
        """

    def success(
        self, metrics: Mapping[tuple[str, str], Any], clean: Mapping[tuple[str, str], Any], margin: float
    ) -> np.ndarray:
        """How far each scene is won, in [0, 1]; NaN where there is nothing to win.

        It is the metric ``success`` where the attack has one, else the primary metric where that is a rate (1 minus it
        where a stronger attack lowers it). Otherwise a scene is won (1) where the primary metric has moved in the
        attack's direction by more than the share ``margin`` of its value without the patch; by more than ``margin`` in
        its own unit, where that value is 0 (of an error against the clean prediction it is).

        Args:
            metrics: with the patch, values of any one shape.
            clean: of the same scenes without it.
            margin: see above.
        """
        key = next((key for key in metrics if key[0] == "success"), self.primary_metric)
        metric, values = self.metric_info[key[0]], np.asarray(metrics[key], dtype=float)
        if metric.rate:
            return values if metric.sign > 0 else 1 - values
        before = np.asarray(clean[key], dtype=float)
        moved = metric.sign * (values - before) / np.where(before == 0, 1.0, np.abs(before))
        return np.where(np.isnan(moved), np.nan, moved > margin)

    def success_in_words(self, margin: float) -> str:
        """What :meth:`success` counts."""
        name = "success" if "success" in self.metric_info else self.primary_metric[0]
        metric = self.metric_info[name]
        where = {"outside": " outside the patch", "patch": " on the patch"}.get(self.primary_metric[1], "")
        if metric.rate:
            return f"success is {'1 minus ' if metric.sign < 0 else ''}the {metric.label}{where}"
        return (
            f"a frame is won where the {metric.label}{where} is more than {100 * margin:g} % "
            f"{'above' if metric.sign > 0 else 'below'} that of the same frame without the patch (more than "
            f"{margin:g} where that is 0)"
        )

    def scenes(self, source: Source, predict: Callable[[Tensor], Any]) -> Source:
        """The scenes that this attack can use, perhaps with what ``predict``, the victim, makes of them."""
        return source

    def controls(self, source: Source, patch: Patch) -> Mapping[str, Textures]:
        """Textures that this task should be compared with, besides the grey and the random patch."""
        return {}

    @abstractmethod
    def loss(self, output: Any, clean: Any, scene: Scene, view: View) -> Tensor:
        """``[B]``, lower when the attack is stronger.

        Args:
            output: the victim's output on the view.
            clean: its output on the same scenes without the patch.
            scene: the scenes, on the victim's device.
            view: the rendered scenes.
        """

    @abstractmethod
    def metrics(self, output: Any, clean: Any, scene: Scene, view: View) -> dict[tuple[str, str], Tensor]:
        """``(metric, region) -> [B]``; NaN where a scene has nothing to measure."""

    def certified(self, victim: Any, scene: Scene) -> dict[tuple[str, str], Tensor] | None:
        """``(metric, region) -> [B]`` that no patch can push a metric below, proved; NaN where the truth is unknown.

        None where this attack, or the victim's defence, has no such proof.

        Args:
            victim: a :class:`patchattack.victims.defended.Defended`.
            scene: without a patch, on the victim's device.
        """
        return None

    def per_pixel(self, output: Any, clean: Any) -> Tensor:
        """``[B, H, W]``: the metric :attr:`reach`, of attacks that have one, in every pixel; NaN where unknown."""
        raise NotImplementedError

    @abstractmethod
    def pictures(self, outputs: list[Any], frames: list[Tensor]) -> list[Tensor]:
        """One picture ``[3, H, W]`` in [0, 1] for each output of a single scene, on one common scale.

        Args:
            outputs: of the victim, each with a batch of one; the first is the clean one and sets the scale.
            frames: ``[T, 3, H, W]`` in [0, 1] that each came from.
        """

    @abstractmethod
    def legend(self) -> tuple[Tensor | None, str]:
        """A picture ``[3, h, w]`` in [0, 1] that explains the pictures, or None, and a sentence to it."""

    def changes(self, outputs: list[Any], clean: Any, frames: list[Tensor]) -> list[Tensor]:
        """Where and how much each output differs from the clean one, as pictures ``[3, H, W]`` on one scale; or none.

        Args:
            outputs: of the victim on one scene, each with a batch of one.
            clean: its output on that scene without a patch.
            frames: ``[T, 3, H, W]`` in [0, 1] that each of ``outputs`` came from.
        """
        return []

    def changes_legend(self) -> tuple[Tensor | None, str]:
        """As :meth:`legend`, to the pictures of :meth:`changes`."""
        return None, ""

"""Controls and intervals: what a patch does beside what any patch does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchattack import seeding
from patchattack.attacks.attack import Attack, Metric, Textures
from patchattack.eot.renderer import Renderer
from patchattack.patch import Patch, random_texture
from patchattack.scene import Scene, Source, View

FEWEST = 6  # scenes: of fewer, all may lie on one side by chance more often than once in twenty
Row = dict[str, Any]


class References:
    """The victim's output on clean frames, computed once per scene and remembered.

    Each scene goes through the victim alone: the same scene has the same reference to the bit, whatever batch it is
    in and however often a run was interrupted.

    Args:
        victim: whose output it is.
        budget: bytes to remember; what does not fit is computed again each time.
    """

    def __init__(self, victim: Callable[[Tensor], Any], budget: float = 2e9) -> None:
        self.victim, self.budget = victim, budget
        self._known: dict[int, Any] = {}

    @torch.no_grad()
    def __call__(self, scene: Scene) -> Any:
        """The victim's output for all scenes of the batch, on their device."""
        here: dict[int, Any] = {}
        for row, number in enumerate(numbers := scene.index.tolist()):
            if number in here:
                continue
            if (output := self._known.get(number)) is None:
                output = self.victim(scene.frames[row : row + 1])
                self.budget -= _nbytes(output)
                if self.budget > 0:
                    self._known[number] = output
            here[number] = output
        return _joined([here[number] for number in numbers])


def _nbytes(output: Any) -> int:
    return output.nbytes if isinstance(output, Tensor) else sum(map(_nbytes, output))


def _joined(outputs: list[Any]) -> Any:
    """One batch of outputs, which are tensors or, of an ensemble, tuples of them."""
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)
    return tuple(_joined(list(parts)) for parts in zip(*outputs, strict=True))


@dataclass(frozen=True)
class Measured:
    """One condition on one scene and one draw.

    Attributes:
        condition: clean, grey, random, patch or what the caller named.
        number: of the scene in its source.
        metrics: ``(metric, region) -> value``.
    """

    condition: str
    number: int
    metrics: dict[tuple[str, str], float]


@dataclass(frozen=True)
class Evaluator:
    """Measures textures on scenes, every condition under identical draws.

    Attributes:
        victim: the model under test.
        attack: gives loss and metrics.
        renderer: renders the textures.
        references: the victim on clean frames.
        patch: gives mask and size; its texture is not used.
        source: of the scenes.
        device: of the victim.
        key: integers that name the draws: the same key gives the same draws.
    """

    victim: Callable[[Tensor], Any]
    attack: Attack
    renderer: Renderer
    references: References
    patch: Patch
    source: Source
    device: torch.device
    key: tuple[int, ...]

    @torch.no_grad()
    def views(
        self, textures: Mapping[str, Textures], numbers: Sequence[int], repetition: int
    ) -> Iterator[tuple[str, Scene, Any, Any, View]]:
        """Condition, scene, clean output, output and view, for all scenes ``numbers`` at once."""
        scene = self.source.__getitems__(list(numbers))
        generators = [seeding.generator(*self.key, number, repetition) for number in numbers]
        draw = self.renderer.draw(scene, self.patch, generators)
        scene = scene.to(self.device)
        clean = self.references(scene)
        for condition, texture in textures.items():
            view = self.renderer(texture(repetition).to(self.device), self.patch.mask, scene, draw)
            yield condition, scene, clean, self.victim(view.frames), view
        yield "clean", scene, clean, clean, View(scene.frames, view.coverage, view.corners)

    def measure(
        self,
        textures: Mapping[str, Textures],
        numbers: Sequence[int],
        repetitions: int = 1,
        batch: int = 8,
        progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> list[Measured]:
        """Metrics, and the loss as ``("loss", "all")``, of each texture and of the clean frames."""
        work = [
            (list(numbers[first : first + batch]), repetition)
            for first in range(0, len(numbers), batch)
            for repetition in range(repetitions)
        ]
        measured = []
        for part, repetition in progress(work):
            for condition, scene, clean, hit, view in self.views(textures, part, repetition):
                metrics = self.attack.metrics(hit, clean, scene, view)
                metrics["loss", "all"] = self.attack.loss(hit, clean, scene, view)
                columns = torch.stack([value.float() for value in metrics.values()]).cpu().T.tolist()
                measured += [
                    Measured(condition, number, dict(zip(metrics, values, strict=True)))
                    for number, values in zip(part, columns, strict=True)
                ]
        return measured


def controls(patch: Patch) -> dict[str, Textures]:
    """Grey, and random textures of which every repetition takes another, in the patch's resolution."""
    height, width = patch.mask.shape[-2:]
    return {
        "grey": lambda _: torch.full((3, height, width), 0.5),
        "random": lambda repetition: random_texture(height, width, repetition),
    }


def per_scene(measured: Sequence[Measured], condition: str, metric: tuple[str, str]) -> np.ndarray:
    """``[n]``: a metric's mean over the draws of each scene, in the scenes' order; NaN where nothing was measured."""
    values: dict[int, list[float]] = {}
    for one in measured:
        if one.condition == condition:
            values.setdefault(one.number, []).append(one.metrics[metric])
    means = []
    for number in sorted(values):
        known = [value for value in values[number] if not np.isnan(value)]
        means.append(np.mean(known) if known else np.nan)
    return np.array(means)


def mean(values: np.ndarray) -> float:
    """Of the values that are known; NaN without any."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def bootstrap(values: np.ndarray, seed: int = 0, resamples: int = 2000) -> tuple[float, float, float]:
    """Mean and percentile interval at 95 % (Efron 1979), resampling scenes.

    Args:
        values: ``[n]``, one per scene; the draws of a scene are not independent and come as their mean.
        seed: of the resampling.
        resamples: how many.

    Returns:
        mean, low, high; NaN without values.
    """
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return float("nan"), float("nan"), float("nan")
    rows = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[rows].mean(axis=1), [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def wilson(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and interval at 95 % of a rate (Wilson 1927).

    Args:
        values: ``[n]``, one per scene, each in [0, 1]: the share of its draws that succeeded. Draws of a scene are
            not independent, so a scene counts once; shares vary no more than successes, so the interval is not too
            narrow.

    Returns:
        mean, low, high; NaN without values.
    """
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return float("nan"), float("nan"), float("nan")
    rate, n, z = float(values.mean()), len(values), 1.959964
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return rate, max(centre - half, 0.0), min(centre + half, 1.0)


def interval(values: np.ndarray, metric: Metric | None) -> tuple[float, float, float]:
    """Mean, low and high: Wilson's of a rate, the bootstrap's of anything else."""
    return wilson(values) if metric is not None and metric.rate else bootstrap(values)


def summarise(measured: Sequence[Measured], attack: Attack) -> list[Row]:
    """One row per condition, metric and region: condition, metric, region, mean, low, high, n (scenes)."""
    conditions = list(dict.fromkeys(one.condition for one in measured))
    rows = []
    for condition in sorted(conditions, key=lambda name: ("clean", "grey", "random", "patch", name).index(name)):
        for metric, region in measured[0].metrics:
            values = per_scene(measured, condition, (metric, region))
            mean, low, high = interval(values, attack.metrics_known.get(metric))
            known = int((~np.isnan(values)).sum())
            row = {"condition": condition, "metric": metric, "region": region, "mean": mean, "low": low, "high": high}
            rows.append(row | {"n": known})
    return rows


@dataclass(frozen=True)
class Verdict:
    """Did it work?

    Attributes:
        worked: the patch beats the random patch, the interval of their paired difference excludes zero.
        sentence: the answer in words.
        facts: the numbers behind it, in words.
        factor: effect of the patch over that of the random patch, each against the clean frames.
    """

    worked: bool
    sentence: str
    facts: str
    factor: float


def judge(measured: Sequence[Measured], attack: Attack) -> Verdict:
    """Compare patch and random patch on the attack's headline metric, paired by scene."""
    name, region = attack.headline
    metric = attack.metrics_known[name]
    values = {one: per_scene(measured, one, attack.headline) for one in ("clean", "random", "patch")}
    sign = -1.0 if metric.stronger == "lower" else 1.0
    means = {one: interval(value, metric) for one, value in values.items()}
    excess = bootstrap(sign * (values["patch"] - values["random"]))
    effect, chance = (sign * (means[one][0] - means["clean"][0]) for one in ("patch", "random"))
    factor = effect / chance if chance > 0 else float("inf")
    worked = excess[1] > 0

    def shown(one: str) -> str:
        mean, low, high = means[one]
        return f"{mean:.3f} [{low:.3f}, {high:.3f}]"

    where = {"all": ", over the whole frame", "outside": ", outside the patch", "patch": ", on the patch"}[region]
    if {known for _, known in measured[0].metrics} == {"all"}:  # of a task whose outputs have no pixels
        where = ""
    scenes = int((~np.isnan(values["patch"])).sum())
    facts = (
        f"{metric.label[0].upper()}{metric.label[1:]}{where}: {means['clean'][0]:.3f} without a patch, "
        f"{shown('random')} with a random patch, {shown('patch')} with the optimised patch "
        f"({scenes} held-out scenes, 95 % intervals)."
    )
    if scenes < FEWEST:
        few = f"Nobody can tell whether it worked: {scenes} held-out scenes are too few, give at least {FEWEST}."
        return Verdict(False, few, facts, factor)
    if not worked:
        return Verdict(False, "It did not work: the patch does no more than a random patch of its size.", facts, factor)
    if chance <= 0:
        return Verdict(True, "It worked, and a random patch of its size has no effect.", facts, factor)
    # A ratio to nearly nothing says little.
    times = f"{factor:.1f} times as much as" if factor < 20 else "far more than"
    return Verdict(True, f"It worked: the patch does {times} a random patch of its size.", facts, factor)

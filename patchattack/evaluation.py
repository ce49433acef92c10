"""Controls and intervals: what a patch does beside what any patch does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchattack import hand_drawn, seeding, statistics
from patchattack.attacks.attack import Attack, Textures
from patchattack.controls import CONDITIONS, always
from patchattack.eot.renderer import Renderer
from patchattack.hand_drawn import HandDrawn
from patchattack.patch import Patch
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

    def best_drawn(self, numbers: Sequence[int], more: Sequence[HandDrawn] = ()) -> HandDrawn:
        """The strongest hand-drawn texture on scenes ``numbers``: of those that every run tries, and of ``more``."""
        height, width = self.patch.mask.shape[1:]
        tried = {str(place): one for place, one in enumerate([*hand_drawn.known(), *more])}
        measured = self.measure({name: always(one.texture(height, width)) for name, one in tried.items()}, numbers)
        sign = -1.0 if self.attack.metrics_known[self.attack.headline[0]].stronger == "lower" else 1.0

        def strength(name: str) -> tuple[float, float]:
            score, loss = (
                statistics.mean(per_scene(measured, name, metric)) for metric in (self.attack.headline, ("loss", "all"))
            )
            return (-np.inf if np.isnan(score) else sign * score, -loss)

        return tried[max(tried, key=strength)]


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


def summarise(measured: Sequence[Measured], attack: Attack) -> list[Row]:
    """One row per condition, metric and region: condition, metric, region, mean, low, high, n (scenes)."""
    conditions = list(dict.fromkeys(one.condition for one in measured))
    rows = []
    for condition in sorted(conditions, key=(*CONDITIONS, *conditions).index):
        for metric, region in measured[0].metrics:
            values = per_scene(measured, condition, (metric, region))
            known_metric = attack.metrics_known.get(metric)
            mean, low, high = statistics.interval(values, known_metric is not None and known_metric.rate)
            known = int((~np.isnan(values)).sum())
            row = {"condition": condition, "metric": metric, "region": region, "mean": mean, "low": low, "high": high}
            rows.append(row | {"n": known})
    return rows


@dataclass(frozen=True)
class Verdict:
    """Did it work?

    Attributes:
        worked: the patch beats every control: of each paired difference, the interval excludes zero.
        sentence: the answer in words.
        facts: the numbers behind it, in words.
        factor: effect of the patch over that of the random patch, each against the clean frames.
    """

    worked: bool
    sentence: str
    facts: str
    factor: float


def judge(measured: Sequence[Measured], attack: Attack) -> Verdict:
    """Compare the patch with each control on the attack's headline metric, paired by scene.

    To beat all of them at 95 % each is at least as hard as to beat the strongest: no correction is due (Berger 1982).
    """
    name, region = attack.headline
    metric = attack.metrics_known[name]
    sign = -1.0 if metric.stronger == "lower" else 1.0
    conditions = dict.fromkeys(one.condition for one in measured)
    values = {one: sign * per_scene(measured, one, attack.headline) for one in conditions}
    effects = {one: statistics.mean(value) - statistics.mean(values["clean"]) for one, value in values.items()}
    rivals = [one for one in conditions if one not in ("clean", "patch")]
    rivals.sort(key=lambda one: effects[one], reverse=True)  # of equals, in their order
    beaten = {one: statistics.difference(values["patch"] - values[one], metric.rate)[1] > 0 for one in rivals}
    worked, chance = all(beaten.values()), effects["random"]
    factor = effects["patch"] / chance if chance > 0 else float("inf")

    def shown(one: str) -> str:
        mean, *bounds = statistics.interval(sign * values[one], metric.rate)
        return f"{mean:.3f}" if one == "clean" else f"{mean:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]"

    where = {"all": ", over the whole frame", "outside": ", outside the patch", "patch": ", on the patch"}[region]
    if {known for _, known in measured[0].metrics} == {"all"}:  # of a task whose outputs have no pixels
        where = ""
    scenes = int((~np.isnan(values["patch"])).sum())
    strongest = "" if rivals[0] == "random" else f"{shown(rivals[0])} with a {CONDITIONS[rivals[0]]}, "
    facts = (
        f"{metric.label[0].upper()}{metric.label[1:]}{where}: {shown('clean')} without a patch, {strongest}"
        f"{shown('random')} with a random patch, {shown('patch')} with the optimised patch "
        f"({scenes} held-out scenes, 95 % intervals)."
    )
    # A ratio to nearly nothing says little.
    times = f"{factor:.1f} times as much as" if factor < 20 else "far more than"
    if chance <= 0:
        sentence = "It worked, and a random patch of its size has no effect."
    else:
        sentence = f"It worked: the patch does {times} a random patch of its size."
    if scenes < FEWEST:
        worked = False
        sentence = f"Nobody can tell whether it worked: {scenes} held-out scenes are too few, give at least {FEWEST}."
    elif not beaten["random"]:
        sentence = "It did not work: the patch does no more than a random patch of its size."
    elif not worked:
        first = next(one for one in rivals if not beaten[one])
        times = times if chance > 0 else "more than"
        sentence = f"The patch does {times} a random patch of its size, but no more than a {CONDITIONS[first]}."
    return Verdict(worked, sentence, facts, factor)

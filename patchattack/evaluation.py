"""Controls and intervals: what a patch does compared with what any patch does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchattack import hand_drawn, seeding, statistics
from patchattack.attacks.attack import Attack, Metric, Textures
from patchattack.controls import CONDITIONS, IN_MEDIA, MEDIA, NO_RIVALS, always, with_article
from patchattack.eot.appearance import PrintNoise
from patchattack.eot.calibrated import Calibrated
from patchattack.eot.camera import Defocus, Jpeg, SensorNoise
from patchattack.eot.renderer import Draw, Renderer
from patchattack.eot.transform import Transform
from patchattack.hand_drawn import HandDrawn
from patchattack.patch import Patch
from patchattack.scene import Scene, Source, View
from patchattack.statistics import FEWEST, Outcome

Row = dict[str, Any]
LOSS = Metric("attack loss", "lower")


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
        for row, index in enumerate(indices := scene.index.tolist()):
            if index in here:
                continue
            if (output := self._known.get(index)) is None:
                output = self.victim(scene.frames[row : row + 1])
                self.budget -= _nbytes(output)
                if self.budget > 0:
                    self._known[index] = output
            here[index] = output
        return _concatenate([here[index] for index in indices])


def _nbytes(output: Any) -> int:
    return output.nbytes if isinstance(output, Tensor) else sum(map(_nbytes, output))


def _concatenate(outputs: list[Any]) -> Any:
    """One batch of outputs, which are tensors or, of an ensemble, tuples of them."""
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)
    return tuple(_concatenate(list(parts)) for parts in zip(*outputs, strict=True))


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
        self,
        textures: Mapping[str, Textures],
        indices: Sequence[int],
        repetition: int,
        units: Sequence[int] | None = None,
    ) -> Iterator[tuple[str, Scene, Any, Any, View]]:
        """Condition, scene, clean output, output and view, for all scenes ``indices`` at once.

        Each scene's textures are those of its number among ``units``; of the repetition's, where there are none.
        """
        scene, draw = self._draw(indices, repetition)
        scene = scene.to(self.device)
        clean = self.references(scene)
        for condition, texture in textures.items():
            shown = [texture(unit) for unit in units or [repetition]]
            one = shown[0] if all(other is shown[0] for other in shown) else torch.stack(shown)
            view = self.renderer(one.to(self.device), self.patch.mask, scene, draw)
            yield condition, scene, clean, self.victim(view.frames), view
        yield "clean", scene, clean, clean, View(scene.frames, view.coverage, view.corners)

    def corners(self, indices: Sequence[int], repetitions: int = 1) -> Tensor:
        """``[n, 4, 2]`` pixels, float64: the patch in the first frame of every scene and draw of :meth:`measure`."""
        bare = self._through({}, {})
        draws = [bare._draw([index], repetition)[1] for index in indices for repetition in range(repetitions)]
        return torch.cat([draw.corners[:, 0] for draw in draws])

    def _through(self, appearance: Mapping[str, Transform], camera: Mapping[str, Transform]) -> Evaluator:
        """The same places, with other transforms."""
        own = self.renderer
        return replace(self, renderer=Renderer(own.placement, appearance, camera, own.whole_frame, own.bend))

    def _draw(self, indices: Sequence[int], repetition: int) -> tuple[Scene, Draw]:
        """Scenes, on the host, and their draw of a repetition."""
        scene = self.source.__getitems__(list(indices))
        keys = [(*self.key, index, repetition) for index in indices]
        return scene, self.renderer.draw(scene, self.patch, seeding.numbers(keys))

    def measure(
        self,
        textures: Mapping[str, Textures],
        indices: Sequence[int],
        repetitions: int = 1,
        batch: int = 8,
        progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> list[Measured]:
        """Metrics, and the loss as ``("loss", "all")``, of each texture and of the clean frames.

        The number that a texture gets is another one for every scene and repetition.
        """
        places = {index: place for place, index in enumerate(indices)}
        work = [
            (list(indices[first : first + batch]), repetition)
            for first in range(0, len(indices), batch)
            for repetition in range(repetitions)
        ]
        measured = []
        for part, repetition in progress(work):
            units = [places[number] * repetitions + repetition for number in part]
            for condition, scene, clean, output, view in self.views(textures, part, repetition, units):
                metrics = self.attack.metrics(output, clean, scene, view)
                metrics["loss", "all"] = self.attack.loss(output, clean, scene, view)
                columns = torch.stack([value.float() for value in metrics.values()]).cpu().T.tolist()
                measured += [
                    Measured(condition, number, dict(zip(metrics, values, strict=True)))
                    for number, values in zip(part, columns, strict=True)
                ]
        return measured

    def in_media(
        self,
        textures: Mapping[str, Textures],
        indices: Sequence[int],
        repetitions: int = 1,
        progress: Callable[[str, Iterable[Any]], Iterable[Any]] = lambda _, work: work,
    ) -> list[Measured]:
        """``textures`` in the same places, but in each medium of :data:`MEDIA` in the place of this EoT's own.

        Arguments are as of :meth:`measure`, but ``progress`` is told the medium too; a condition gets the medium
        behind its own name.
        """
        measured = []
        for medium in MEDIA:
            named = {f"{name}_{medium}": texture for name, texture in textures.items()}
            here = self.in_medium(medium)
            found = here.measure(named, indices, repetitions, progress=partial(progress, medium))
            measured += [one for one in found if one.condition in named]
        return measured

    def in_medium(self, medium: str) -> Evaluator:
        """One that measures in the same places, but in a medium of :data:`MEDIA` in the place of this EoT's own."""
        transforms: dict[str, tuple[Mapping[str, Transform], Mapping[str, Transform]]] = {
            "digital": ({}, {}),
            "photographed": (
                {"calibrated": Calibrated(), "print_noise": PrintNoise()},
                {"defocus": Defocus(), "sensor_noise": SensorNoise(), "jpeg": Jpeg()},
            ),
        }
        return self._through(*transforms[medium])

    def best_drawn(self, indices: Sequence[int], more: Sequence[HandDrawn] = ()) -> HandDrawn:
        """The strongest hand-drawn texture on scenes ``indices``: of those that every run tries, and of ``more``."""
        height, width = self.patch.mask.shape[1:]
        tried = {str(place): one for place, one in enumerate([*hand_drawn.standard_textures(), *more])}
        measured = self.measure({name: always(one.texture(height, width)) for name, one in tried.items()}, indices)
        sign = self.attack.metric_info[self.attack.primary_metric[0]].sign

        def strength(name: str) -> tuple[float, float]:
            score, loss = (
                statistics.mean(per_scene(measured, name, metric))
                for metric in (self.attack.primary_metric, ("loss", "all"))
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
    """One row per condition, metric and region: what it is of, mean, low, high and n (scenes), label and stronger.

    The last two are those of :class:`Metric`: whoever reads the rows need not know the attack.
    """
    conditions = list(dict.fromkeys(one.condition for one in measured))
    rows = []
    for condition in sorted(conditions, key=(*CONDITIONS, *conditions).index):
        for metric, region in measured[0].metrics:
            values = per_scene(measured, condition, (metric, region))
            known = attack.metric_info.get(metric, LOSS)
            row = {
                "condition": condition,
                "metric": metric,
                "region": region,
                **statistics.estimate(values, known.rate),
            }
            rows.append(row | {"label": known.label, "stronger": known.stronger})
    return rows


@dataclass(frozen=True)
class Verdict:
    """Did it work?

    Attributes:
        outcome: it works where the patch beats every control: of each paired difference, the interval excludes zero.
        sentence: the answer in words.
        facts: the numbers behind it, in words.
        factor: effect of the patch over that of the random patch, each against the clean frames.
        rule: what the outcomes mean and what little is, in words; empty where the attack does not say.
        unbeaten: of each measured one of :data:`MEDIA` the controls that the patch does not beat there.
    """

    outcome: Outcome
    sentence: str
    facts: str
    factor: float
    rule: str = ""
    unbeaten: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        """The patch beats every control."""
        return self.outcome is Outcome.WORKS


def judge(measured: Sequence[Measured], attack: Attack) -> Verdict:
    """Compare the patch with each control on the attack's primary metric, paired by scene.

    To beat all of them at 95 % each is at least as hard as to beat the strongest: no correction is due (Berger 1982).
    Where a control is not beaten, the patch does not work if what it may do beyond it is small at most, by the interval
    in the metric of :attr:`Attack.size`; else the scenes are too few, or too unlike, to tell.
    """
    name, region = attack.primary_metric
    metric = attack.metric_info[name]
    sign = metric.sign
    conditions = dict.fromkeys(one.condition for one in measured)
    values = {one: sign * per_scene(measured, one, attack.primary_metric) for one in conditions}
    effects = {one: statistics.mean(value) - statistics.mean(values["clean"]) for one, value in values.items()}
    rivals = [one for one in conditions if one not in NO_RIVALS]
    rivals.sort(key=lambda one: effects[one], reverse=True)  # of equals, in their order
    unbeaten = [one for one in rivals if not statistics.difference(values["patch"] - values[one], metric.rate)[1] > 0]
    unbeaten.sort(key=lambda one: one != "random")  # is named first
    chance, scenes = effects["random"], int((~np.isnan(values["patch"])).sum())
    factor = effects["patch"] / chance if chance > 0 else float("inf")
    size, sizes = attack.size, _sizes(measured, attack)

    def describe(control: str) -> str:
        """The size of the effect compared with that of a control, as a sentence whose subject is lacking."""
        assert size is not None
        patch, other = (size.format(statistics.mean(sizes[one])) for one in ("patch", control))
        return f"{size.words.replace('{}', patch)} ({CONDITIONS.get(control, control)}: {other})."

    # A ratio to nearly nothing says little.
    times = "" if not chance > 0 else f"{factor:.1f} times" if factor < 20 else "far more than"
    if scenes < FEWEST:
        outcome, sentence = Outcome.INCONCLUSIVE, statistics.too_few(scenes, "held-out scenes")
    elif unbeaten:
        outcome, rival = Outcome.FAILS, unbeaten[0]
        if size is not None and sizes:
            rate = attack.metric_info[size.metric[0]].rate
            beyond = {one: statistics.difference(sizes["patch"] - sizes[one], rate)[2] for one in unbeaten}
            rival = next((one for one in unbeaten if beyond[one] < size.small), rival)
            outcome = Outcome.FAILS if beyond[rival] < size.small else Outcome.INCONCLUSIVE
        sentence = (
            f"The patch does not work: {with_article(rival)} does as much."
            if outcome is Outcome.FAILS
            else f"Inconclusive: {scenes} held-out scenes cannot tell the patch from {with_article(rival)}."
        )
        sentence += f" It {describe(rival)}" if sizes else ""
    elif sizes:
        outcome, strongest = Outcome.WORKS, max(rivals, key=lambda one: statistics.mean(sizes[one]))
        assert size is not None
        little = statistics.mean(sizes["patch"]) - statistics.mean(sizes[strongest]) < size.small
        but = f", but does little more than {with_article(strongest)}" if little else ""
        sentence = f"The patch works{but}: it {describe(strongest)}"
    else:
        outcome = Outcome.WORKS
        sentence = f"The patch works: it has {times} the effect of a random patch of its size."
        if not times:
            sentence = "The patch works, and a random patch of its size has no effect."

    def value_text(one: str) -> str:
        mean, *bounds = statistics.interval(sign * values[one], metric.rate)
        return f"{mean:.3f}" if one == "clean" else f"{mean:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]"

    where = {"all": ", over the whole frame", "outside": ", outside the patch", "patch": ", on the patch"}[region]
    if {known for _, known in measured[0].metrics} == {"all"}:  # of a task whose outputs have no pixels
        where = ""
    best = "" if rivals[0] == "random" else f"{value_text(rivals[0])} with {with_article(rivals[0])}, "
    facts = (
        f"{metric.label[0].upper()}{metric.label[1:]}{where}: {value_text('clean')} without a patch, {best}"
        f"{value_text('random')} with a random patch, {value_text('patch')} with the optimised patch "
        f"({scenes} held-out scenes, 95 % intervals)"
        + (f", {times} the random patch's effect." if times and factor > 0 else ".")
    )
    unbeaten_in = {medium: _unbeaten_in(medium, values, metric.rate) for medium in MEDIA if f"patch_{medium}" in values}
    for medium, controls in unbeaten_in.items():
        verdict = f"does not beat {' or '.join(map(with_article, controls))}" if controls else "beats both"
        means = ", ".join(f"{value_text(f'{one}_{medium}')} {CONDITIONS[one]}" for one in IN_MEDIA)
        facts += f" {MEDIA[medium][0].upper()}{MEDIA[medium][1:]}, it {verdict}: {means}."
    return Verdict(outcome, sentence, facts, factor, _rule(attack), unbeaten_in)


def _unbeaten_in(medium: str, values: Mapping[str, np.ndarray], rate: bool) -> list[str]:
    """The controls that the patch does not beat in one of :data:`MEDIA`.

    Args:
        medium: its name.
        values: ``[n]`` the primary metric of each condition, signed so that more is a stronger attack.
        rate: it is one.
    """
    patch = values[f"patch_{medium}"]
    controls = [one for one in IN_MEDIA if one != "patch"]
    return [one for one in controls if not statistics.difference(patch - values[f"{one}_{medium}"], rate)[1] > 0]


def _sizes(measured: Sequence[Measured], attack: Attack) -> dict[str, np.ndarray]:
    """``[n]`` of each condition: how far it moves each scene's size metric; nothing where that is unknown."""
    if attack.size is None or attack.size.metric not in measured[0].metrics:
        return {}
    sign = attack.metric_info[attack.size.metric[0]].sign
    clean = per_scene(measured, "clean", attack.size.metric)
    conditions = dict.fromkeys(one.condition for one in measured)
    sizes = {one: sign * (per_scene(measured, one, attack.size.metric) - clean) for one in conditions}
    return sizes if all(np.isfinite(statistics.mean(size)) for size in sizes.values()) else {}


def _rule(attack: Attack) -> str:
    """What the three outcomes and a small effect are, for a page."""
    works = "A patch works where it beats every control: the 95 % interval of the paired difference excludes zero."
    few = f"With fewer than {FEWEST} scenes nothing is concluded."
    if attack.size is None:
        return f"{works} {few}"
    label, small = attack.metric_info[attack.size.metric[0]].label, attack.size.format(attack.size.small)
    return (
        f"{works} It does little more where its effect exceeds the strongest control's by less than {small} ({label}). "
        "A patch does not work where its effect exceeds some control's by less than that at the upper end of the "
        f"interval; anything else is inconclusive. {few}"
    )

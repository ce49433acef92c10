"""What is measured: every victim with every patch and its controls, on test scenes that a patch can win."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from patchattack import seeding
from patchattack.attacks.attack import Attack, Textures
from patchattack.controls import CONDITIONS, always, controls
from patchattack.data.cached import CachedSource
from patchattack.eot.renderer import Draw, Renderer
from patchattack.errors import InputError
from patchattack.evaluation import Evaluator, References
from patchattack.job import TEST, VALIDATION, Fabric, Settings, bind_victim, check_tasks
from patchattack.patch import Patch, resize
from patchattack.runs import all_held_out
from patchattack.scene import Scene, Source, View
from patchattack.studies.sweep.axis import BASELINE, Point
from patchattack.studies.sweep.rings import averages, rings
from patchattack.victims.victim import Victim

NATURAL = 5  # what a generator is for, besides those of a run


@dataclass(frozen=True)
class Sweep:
    """What is measured.

    Attributes:
        attack: gives the metrics.
        source: of scenes.
        victims: name to victim.
        patches: name to patch.
        points: at which, the baseline first.
        settings: split, how many test scenes and draws, and memory.
        seed: of the draws.
        held_out: indices of the scenes to measure on.
    """

    attack: Attack
    source: Source
    victims: Mapping[str, Victim]
    patches: Mapping[str, Patch]
    points: Sequence[Point]
    settings: Settings
    seed: int
    held_out: Callable[[Source, Settings], list[int]] = all_held_out


@dataclass(frozen=True)
class Look:
    """One scene under one draw with every texture, ``C`` conditions without the clean one.

    Attributes:
        scene: the scene ``C`` times.
        clean: the victim's output without a patch, ``C`` times.
        output: its outputs with each texture.
        view: what it saw.
        draw: that was rendered, once.
    """

    scene: Scene
    clean: Any
    output: Any
    view: View
    draw: Draw


@dataclass(frozen=True)
class Bench:
    """One victim and one patch with its controls.

    Attributes:
        victim: name.
        crafted: name of the patch.
        predict: the victim's output for frames on any device.
        attack: bound to the victim.
        source: of the scenes that the attack can use.
        references: the victim on clean frames.
        patch: gives mask and size.
        textures: condition to texture; the number that they get is another one for every scene and draw.
        indices: of the test scenes.
        device: of the victim.
        seed: of the draws.
        draws: of each scene.
    """

    victim: str
    crafted: str
    predict: Callable[[Tensor], Any]
    attack: Attack
    source: Source
    references: References
    patch: Patch
    textures: Mapping[str, Textures]
    indices: Sequence[int]
    device: torch.device
    seed: int
    draws: int

    @property
    def conditions(self) -> list[str]:
        """In the order of the table's rows."""
        return ["clean", *self.textures]

    def draw(self, renderer: Renderer, place: int, repetition: int) -> tuple[Scene, Draw]:
        """A test scene, and how the patch gets into it: with the same luck at every point."""
        index = self.indices[place]
        scene = self.source[index]
        return scene, renderer.draw(scene, self.patch, seeding.numbers([(self.seed, TEST, index, repetition)]))

    @torch.no_grad()
    def look(self, renderer: Renderer, place: int, repetition: int) -> Look:
        """All conditions of one unit, as one batch."""
        scene, draw = self.draw(renderer, place, repetition)
        unit = place * self.draws + repetition
        textures = torch.stack([texture(unit) for texture in self.textures.values()]).to(self.device)
        count = len(textures)
        scene = scene.to(self.device).select(torch.zeros(count, dtype=torch.long))
        view = renderer(textures, self.patch.mask.to(self.device), scene, _times(draw, count))
        return Look(scene, self.references(scene), self.predict(view.frames), view, draw)

    @torch.no_grad()
    def measure(self, renderer: Renderer, place: int, repetition: int) -> tuple[dict[str, list[float]], Draw]:
        """``metric/region`` to its value under each of :attr:`conditions`, and the draw."""
        look = self.look(renderer, place, repetition)
        scene, clean = look.scene.select(slice(0, 1)), self.references(look.scene.select(slice(0, 1)))
        nothing = View(scene.frames, look.view.coverage[:1], look.view.corners[:1])
        around = {} if self.attack.reach is None else rings(nothing)
        columns: dict[str, list[float]] = {}
        for parts in ((clean, clean, scene, nothing), (look.output, look.clean, look.scene, look.view)):
            found = self.attack.metrics(*parts) | {("loss", "all"): self.attack.loss(*parts)}
            if self.attack.reach is not None:
                means = averages(self.attack.per_pixel(*parts[:2]), around)
                found |= {(self.attack.reach, ring): values for ring, values in means.items()}
            values = torch.stack([value.float() for value in found.values()]).tolist()
            for (metric, region), value in zip(found, values, strict=True):
                columns.setdefault(f"{metric}/{region}", []).extend(value)
        return columns, look.draw


def _times(draw: Draw, count: int) -> Draw:
    """A draw of one scene ``count`` times."""
    return Draw(
        corners=draw.corners.expand(count, -1, -1, -1),
        on_surface=draw.on_surface,
        appearance=tuple(one.expand(count, *one.shape[1:]) for one in draw.appearance),
        camera=tuple(one.expand(count, *one.shape[1:]) for one in draw.camera),
        bend=None if draw.bend is None else draw.bend.expand(count, -1),
    )


def benches(sweep: Sweep, fabric: Fabric) -> list[Bench]:
    """Every victim with every patch, the clean outputs of the test scenes computed.

    Raises:
        InputError: a victim is for another task, there are fewer than two test scenes, or no scene can be measured.
    """
    check_tasks(sweep.attack, sweep.victims)
    source = CachedSource(sweep.source, sweep.settings.memory_gb * 1e9)
    result = []
    for name, victim in sweep.victims.items():
        attack, predict, scenes = bind_victim(sweep.attack, victim, source, fabric)
        indices = sweep.held_out(scenes, sweep.settings)
        if len(indices) < 2:
            raise InputError(
                f"scenes: expected at least two test scenes, got {len(indices)} of the {len(scenes)} scenes of "
                f"{type(sweep.source).__name__} that the attack on {name} can use; give more, or a larger share in "
                "trainer.split"
            )
        references = References(predict, sweep.settings.memory_gb * 1e9)
        for index in tqdm(indices, f"{name} without a patch", unit="scene", delay=2, disable=None):
            references(scenes[index].to(fabric.device))
        for crafted, patch in sweep.patches.items():
            evaluator = Evaluator(
                *(predict, attack, sweep.points[0].renderer, references, patch, scenes),
                *(fabric.device, (sweep.seed, VALIDATION)),
            )
            drawn = evaluator.best_drawn(sweep.settings.split_indices(len(scenes))[1])
            textures = {
                **controls(patch),
                **attack.controls(scenes, patch),
                "drawn": always(drawn.texture(*patch.mask.shape[1:])),
                "natural": pieces(scenes, indices, patch, sweep.settings.test_draws, sweep.seed),
                "patch": always(patch().detach()),
            }
            result.append(
                Bench(
                    victim=name,
                    crafted=crafted,
                    predict=predict,
                    attack=attack,
                    source=scenes,
                    references=references,
                    patch=patch,
                    textures={one: textures[one] for one in sorted(textures, key=(*CONDITIONS, *textures).index)},
                    indices=indices,
                    device=fabric.device,
                    seed=sweep.seed,
                    draws=sweep.settings.test_draws,
                )
            )
            _check_measurable(result[-1], sweep.points[0].renderer)
    return result


def pieces(source: Source, indices: Sequence[int], patch: Patch, draws: int, seed: int) -> Textures:
    """Pieces of other test scenes as textures: half as large as the largest that has the patch's proportions."""
    height, width = patch.mask.shape[-2:]

    def piece(unit: int) -> Tensor:
        other = indices[(unit // draws + len(indices) // 2) % len(indices)]
        frame = source[other].to("cpu").frames[0, 0]
        scale = min(frame.shape[1] / height, frame.shape[2] / width) / 2
        sides = [max(1, round(side * scale)) for side in (height, width)]
        luck = torch.rand(2, generator=seeding.generator(seed, NATURAL, other, unit)).tolist()
        top, left = (
            int(share * (full - side + 1)) for share, full, side in zip(luck, frame.shape[1:], sides, strict=True)
        )
        return resize(frame[:, top : top + sides[0], left : left + sides[1]], height, width)

    return piece


def _check_measurable(bench: Bench, baseline: Renderer) -> None:
    """Refuse scenes of which none has the primary metric."""
    primary_metric = "/".join(bench.attack.primary_metric)
    for place in range(len(bench.indices)):
        if any(value == value for value in bench.measure(baseline, place, 0)[0][primary_metric]):
            return
    label = bench.attack.metric_info[bench.attack.primary_metric[0]].label
    raise InputError(
        f"scenes: expected test scenes that a patch can win from {bench.victim}, got {len(bench.indices)} in none of "
        f"which the {label} is defined (the victim is wrong without a patch already, or there is nothing to change); "
        "give more scenes, other data or another target"
    )


def fitting(points: Sequence[Point], found: Sequence[Bench]) -> tuple[list[Point], list[str]]:
    """The points that can be rendered, and of the others why not.

    Raises:
        InputError: there is a point besides the baseline, but none of them can.
    """
    kept: list[Point] = []
    levels: dict[tuple[str, str], list[str]] = {}  # left out, by axis and reason
    for point in points:
        reason = next(filter(None, (_obstacle(point, bench) for bench in found)), None)
        if reason is None:
            kept.append(point)
        elif point.axis == BASELINE:
            raise InputError(reason)
        else:
            levels.setdefault((point.axis, reason), []).append(point.text)
    left_out = [f"{axis} = {', '.join(texts)} ({reason})" for (axis, reason), texts in levels.items()]
    if len(points) > 1 and len(kept) == 1:
        raise InputError(f"axes: expected at least one level that fits, got none: {left_out[0]}; choose other axes")
    return kept, left_out


def _obstacle(point: Point, bench: Bench) -> str | None:
    """What keeps the patch from being rendered into one of the scenes."""
    lies = "surface" if point.renderer.placement.on_surface(bench.source[bench.indices[0]]) else "frame"
    if point.placed - {lies}:
        return f"for a patch placed on the {' and the '.join(sorted(point.placed - {lies}))}, this one is on the {lies}"
    if point.missing is not None:
        return f"the run's renderer has no {point.missing}"
    try:
        for place in range(len(bench.indices)):
            bench.draw(point.renderer, place, 0)
    except InputError as error:
        return str(error)
    return None

"""The measurements: the same bytes for the same seed, whatever the batch and the number of processes.

The unit of work is one scene and one draw at one point: all of its conditions go through the victim as one batch,
whose composition nothing changes, on one thread. Units come in a fixed order and are appended to a table of one row
per condition, so that memory does not grow with their number and a sweep resumes where it was interrupted.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from patchattack import files, seeding
from patchattack.attacks.attack import Attack, Textures
from patchattack.controls import CONDITIONS, always, controls
from patchattack.data.memory import Memory
from patchattack.eot.renderer import Draw, Renderer
from patchattack.errors import InputError, VictimError
from patchattack.evaluation import Evaluator, References
from patchattack.job import TEST, VALIDATION, Fabric, Settings, bind_victim, check_tasks
from patchattack.patch import Patch, resize
from patchattack.runs import all_held_out
from patchattack.scene import Scene, Source, View
from patchattack.studies.sweep.axis import BASELINE, Point
from patchattack.victims.victim import Victim

NATURAL = 5  # what a generator is for, beside those of a run
WRITTEN_OUT = 4  # numbers of a transform's draw that have columns of their own; of more there is the root mean square
KEYS = ("victim", "patch", "axis", "level", "scene", "draw", "condition")
CORNERS = tuple(f"{axis}{corner}" for corner in range(4) for axis in "xy")


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
        held_out: numbers of the scenes to measure on.
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
        hit: its outputs with each texture.
        view: what it saw.
        draw: that was rendered, once.
    """

    scene: Scene
    clean: Any
    hit: Any
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
        numbers: of the test scenes.
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
    numbers: Sequence[int]
    device: torch.device
    seed: int
    draws: int

    @property
    def conditions(self) -> list[str]:
        """In the order of the table's rows."""
        return ["clean", *self.textures]

    def draw(self, renderer: Renderer, place: int, repetition: int) -> tuple[Scene, Draw]:
        """A test scene, and how the patch gets into it: with the same luck at every point."""
        number = self.numbers[place]
        scene = self.source[number]
        return scene, renderer.draw(scene, self.patch, seeding.numbers([(self.seed, TEST, number, repetition)]))

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
        columns: dict[str, list[float]] = {}
        for parts in ((clean, clean, scene, nothing), (look.hit, look.clean, look.scene, look.view)):
            found = self.attack.metrics(*parts) | {("loss", "all"): self.attack.loss(*parts)}
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
    )


def benches(sweep: Sweep, fabric: Fabric) -> list[Bench]:
    """Every victim with every patch, the clean outputs of the test scenes computed.

    Raises:
        InputError: a victim is for another task, there are fewer than two test scenes, or no scene can be measured.
    """
    check_tasks(sweep.attack, sweep.victims)
    source = Memory(sweep.source, sweep.settings.memory_gb * 1e9)
    result = []
    for name, victim in sweep.victims.items():
        attack, predict, scenes = bind_victim(sweep.attack, victim, source, fabric)
        numbers = sweep.held_out(scenes, sweep.settings)
        if len(numbers) < 2:
            raise InputError(
                f"scenes: expected at least two test scenes, got {len(numbers)} of the {len(scenes)} scenes of "
                f"{type(sweep.source).__name__} that the attack on {name} can use; give more, or a larger share in "
                "trainer.split"
            )
        references = References(predict, sweep.settings.memory_gb * 1e9)
        for number in tqdm(numbers, f"{name} without a patch", unit="scene", delay=2, disable=None):
            references(scenes[number].to(fabric.device))
        for crafted, patch in sweep.patches.items():
            evaluator = Evaluator(
                *(predict, attack, sweep.points[0].renderer, references, patch, scenes),
                *(fabric.device, (sweep.seed, VALIDATION)),
            )
            drawn = evaluator.best_drawn(sweep.settings.parts(len(scenes))[1])
            textures = {
                **controls(patch),
                **attack.controls(scenes, patch),
                "drawn": always(drawn.texture(*patch.mask.shape[1:])),
                "natural": pieces(scenes, numbers, patch, sweep.settings.test_draws, sweep.seed),
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
                    numbers=numbers,
                    device=fabric.device,
                    seed=sweep.seed,
                    draws=sweep.settings.test_draws,
                )
            )
            _check_measurable(result[-1], sweep.points[0].renderer)
    return result


def pieces(source: Source, numbers: Sequence[int], patch: Patch, draws: int, seed: int) -> Textures:
    """Pieces of other test scenes as textures: half as large as the largest that has the patch's proportions."""
    height, width = patch.mask.shape[-2:]

    def piece(unit: int) -> Tensor:
        other = numbers[(unit // draws + len(numbers) // 2) % len(numbers)]
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
    """Refuse scenes of which none has the headline's metric."""
    headline = "/".join(bench.attack.headline)
    for place in range(len(bench.numbers)):
        if any(value == value for value in bench.measure(baseline, place, 0)[0][headline]):
            return
    label = bench.attack.metrics_known[bench.attack.headline[0]].label
    raise InputError(
        f"scenes: expected test scenes that a patch can win from {bench.victim}, got {len(bench.numbers)} in none of "
        f"which the {label} is defined (the victim is wrong without a patch already, or there is nothing to change); "
        "give more scenes, other data or another target"
    )


def fitting(points: Sequence[Point], found: Sequence[Bench]) -> tuple[list[Point], list[str]]:
    """The points that can be rendered, and of the others why not.

    Raises:
        InputError: there is a point beside the baseline, but none of them can.
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
    lies = "surface" if point.renderer.placement.on_surface(bench.source[bench.numbers[0]]) else "frame"
    if point.placed - {lies}:
        return f"for a patch placed on the {' and the '.join(sorted(point.placed - {lies}))}, this one is on the {lies}"
    if point.missing is not None:
        return f"the run's renderer has no {point.missing}"
    try:
        for place in range(len(bench.numbers)):
            bench.draw(point.renderer, place, 0)
    except InputError as error:
        return str(error)
    return None


class Table(Dataset[str]):
    """All units in their order: by bench, point, scene and draw. An item is a unit's rows as CSV.

    Args:
        benches: victims with patches.
        points: that fit.

    Attributes:
        known: of each bench the metrics, ``metric/region``.
        metrics: of all benches.
        columns: names of all columns.
    """

    def __init__(self, benches: Sequence[Bench], points: Sequence[Point]) -> None:
        self.benches, self.points = benches, points
        self.known = [list(bench.measure(points[0].renderer, 0, 0)[0]) for bench in benches]
        self.metrics = list(dict.fromkeys(itertools.chain(*self.known)))
        drawn = [_parameters(point, benches[0].draw(point.renderer, 0, 0)[1]) for point in points]
        self.parameters = list(dict.fromkeys(itertools.chain(*drawn)))
        self.columns = [*KEYS, *self.metrics, *CORNERS, *self.parameters]
        self._sizes = [len(points) * len(bench.numbers) * bench.draws for bench in benches]  # units of each bench

    def __len__(self) -> int:
        return sum(self._sizes)

    def _bench(self, unit: int) -> tuple[Bench, int]:
        """The bench of a unit, and the unit's place among those of the bench."""
        for bench, size in zip(self.benches, self._sizes, strict=True):
            if unit < size:
                return bench, unit
            unit -= size
        raise IndexError(unit)

    def height(self, unit: int) -> int:
        """Rows of a unit."""
        return len(self._bench(unit)[0].conditions)

    def views(self, units: Iterable[int] | None = None) -> int:
        """Rows of some units, or of all."""
        return sum(map(self.height, range(len(self)) if units is None else units))

    def __getitem__(self, index: int) -> str:
        bench, unit = self._bench(index)
        rest, repetition = divmod(unit, bench.draws)
        number, place = divmod(rest, len(bench.numbers))
        point = self.points[number]
        values, draw = bench.measure(point.renderer, place, repetition)
        drawn = _parameters(point, draw)
        shared = [*draw.corners[0, 0].flatten().tolist(), *(drawn.get(name) for name in self.parameters)]
        head = (bench.victim, bench.crafted, point.axis, point.text, bench.numbers[place], repetition)
        lines = (
            (*head, condition, *map(_number, [values[m][row] if m in values else None for m in self.metrics] + shared))
            for row, condition in enumerate(bench.conditions)
        )
        return _csv(lines)

    def __getitems__(self, indices: list[int]) -> list[str]:
        return [self[index] for index in indices]

    def header(self) -> str:
        """The first line."""
        return _csv([self.columns])


def _parameters(point: Point, draw: Draw) -> dict[str, float]:
    """What was drawn for each transform: in frame 0, but of noise in all frames."""
    result: dict[str, float] = {}
    of_patch = [one[0] for one in draw.appearance]
    of_frames = [
        one[0] if transform.per_frame else one[0, 0]
        for transform, one in zip(point.renderer.camera, draw.camera, strict=True)
    ]
    for name, values in zip(point.transforms, of_patch + of_frames, strict=True):
        if values.numel() > WRITTEN_OUT:
            result[name] = float(values.square().mean().sqrt())
        elif values.numel() == 1:
            result[name] = float(values)
        else:
            result |= {f"{name}.{place}": float(value) for place, value in enumerate(values.flatten())}
    return result


def _number(value: float | None) -> str:
    """Nine digits give a float32 back; nothing where it is unknown."""
    return "" if value is None or value != value else f"{value:.9g}"


def _csv(lines: Any) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(lines)
    return stream.getvalue()


def plan(table: Table) -> dict[str, Any]:
    """What makes a sweep this one and no other."""
    of_benches = [
        {"victim": bench.victim, "patch": bench.crafted, "conditions": bench.conditions, "scenes": list(bench.numbers)}
        for bench in table.benches
    ]
    of_points = [{"axis": point.axis, "level": point.text, "renderer": point.config} for point in table.points]
    seeds = {"seed": table.benches[0].seed, "draws": table.benches[0].draws}
    textures = {bench.crafted: _hash(torch.cat([bench.patch(), bench.patch.mask]).detach()) for bench in table.benches}
    return {**seeds, "patches": textures, "benches": of_benches, "points": of_points}


def _hash(values: Tensor) -> str:
    """First twelve digits of the SHA-256 of a tensor's bytes."""
    return hashlib.sha256(values.cpu().contiguous().numpy().tobytes()).hexdigest()[:12]


def begin(folder: Path, table: Table) -> int:
    """Units whose rows ``views.csv`` of ``folder`` holds already; what was written of the next one is cut off.

    Raises:
        InputError: it holds another table.
    """
    path = folder / "views.csv"
    if not path.exists():
        files.write(path, table.header())
        return 0
    with path.open("r+b") as views:
        if views.readline().decode() != table.header():
            raise InputError(f"{path}: expected the columns of this evaluation, got others; name another output=FOLDER")
        units, whole = 0, views.tell()
        for unit in range(len(table)):
            *_, last = [views.readline() for _ in range(table.height(unit))]
            if not last.endswith(b"\n"):
                break
            units, whole = units + 1, views.tell()
        views.truncate(whole)
    return units


def measure(folder: Path, table: Table, first: int, batch: int, workers: int) -> None:
    """Append the rows of all units from ``first`` on to ``views.csv``.

    Args:
        folder: with what :func:`begin` wrote.
        table: of all units.
        first: unit that is not there yet.
        batch: units that a process gets, and that are written, at a time.
        workers: processes.

    Raises:
        InputError: several processes where there can be only one.
        VictimError: a victim failed; what was measured before is there.
    """
    if workers > 1 and (table.benches[0].device.type != "cpu" or not hasattr(os, "fork")):
        raise InputError(
            f"workers: expected 1 on a GPU, and where processes cannot fork, got {workers}; give workers=1"
        )
    starts = range(first, len(table), batch)
    loader: Any = DataLoader(
        table,
        batch_sampler=(list(range(start, min(start + batch, len(table)))) for start in starts),
        collate_fn=_whole,
        num_workers=workers if workers > 1 else 0,
        multiprocessing_context="fork" if workers > 1 else None,  # they share the scenes and the clean outputs
    )
    bar = tqdm(
        total=table.views(),
        initial=table.views(range(first)),
        desc="measuring",
        unit="view",
        smoothing=0.05,
        dynamic_ncols=True,
    )
    with bar, (folder / "views.csv").open("ab") as views:
        for texts in _given(loader):
            if not (folder / "views.csv").exists():
                raise InputError(
                    f"{views.name}: expected the rows so far, got none: they were deleted; start a new sweep"
                )
            try:
                views.write("".join(texts).encode())
                views.flush()
            except OSError as error:
                raise InputError(
                    f"{views.name}: expected room for more rows, got '{error.strerror}'; free some and resume with "
                    f"resume={folder}"
                ) from error
            bar.update(sum(text.count("\n") for text in texts))


def _given(loader: Iterable[list[str]]) -> Iterator[list[str]]:
    """What a loader gives. An error of one of its processes has a traceback in its message, which ends in a line."""
    try:
        yield from loader
    except (InputError, VictimError) as error:
        kind = type(error)
        line = str(error).strip().splitlines()[-1]
        raise kind(line.removeprefix(f"{kind.__module__}.{kind.__name__}: ")) from error


def _whole(texts: list[str]) -> list[str]:
    return texts


@contextmanager
def one_thread() -> Iterator[None]:
    """Everything that is measured runs on one thread: sums of several depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

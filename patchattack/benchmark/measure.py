"""The measurement: one victim behind one defence at one size after another, with all patches and their controls.

Each has a folder of its own, named after all that its numbers depend on, and is measured on one thread: the same rows
in whatever order, in however many parts and processes. What is finished is not measured again.
"""

from __future__ import annotations

import copy
import hashlib
import pkgutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from patchattack import cells, evaluation, files, folders, pipeline, processes, statistics
from patchattack.attacks.attack import Attack, Textures
from patchattack.benchmark import patch_file, rows
from patchattack.benchmark.patch_file import PatchFile
from patchattack.benchmark.rows import Row
from patchattack.benchmark.suite import UNDEFENDED, Spot, Suite, training
from patchattack.cells import FAILED, FINISHED, RUNNING, Cell
from patchattack.controls import always, controls
from patchattack.data.cached import CachedSource
from patchattack.errors import InputError, VictimError, one_line, shorten
from patchattack.evaluation import Evaluator, References
from patchattack.job import TEST, VALIDATION, Fabric, Settings, bind_victim, check_tasks
from patchattack.patch import Patch
from patchattack.redaction import printable, redact
from patchattack.runs import HeldOut
from patchattack.scene import Source
from patchattack.studies.sweep.axis import change
from patchattack.studies.sweep.measure import given, one_thread
from patchattack.victims.defended import defend
from patchattack.victims.victim import Victim

SHIPPED = "shipped"
CELLS = "cells"  # folder of the cells
OF_EVERY_PATCH = ("grey", "white", "black", "random")  # controls that no patch's own texels change

Config = dict[str, Any]
Make = Callable[[Any], Any]


@dataclass(frozen=True)
class Entry:
    """A task of a suite put together.

    Attributes:
        config: composed, of a training of the task with all victims and defences.
        attack: gives the metrics.
        source: of scenes.
        settings: split, and how many scenes and draws.
        held_out: indices of the scenes to measure on.
        patches: of the task.
        renderers: config of each size and bin of the pose.
        fabric: device.
    """

    config: Config
    attack: Attack
    source: Source
    settings: Settings
    held_out: HeldOut
    patches: Sequence[PatchFile]
    renderers: Mapping[tuple[str, str], Config]
    fabric: Fabric


def with_patches(suite: Suite, given: Sequence[str]) -> Suite:
    """The suite with other patches, and of its tasks those that the patches are for.

    Raises:
        InputError: one cannot be read, or is for a task that the suite has not.
    """
    tasks: dict[str, list[str]] = {}
    for path in given:
        for patch in load(path):
            if patch.task not in suite.tasks:
                raise InputError(
                    f"patches: expected patches for {', '.join(suite.tasks)}, got {patch.name} for {patch.task}"
                )
            tasks.setdefault(patch.task, []).append(path)
    chosen = {name: task for name, task in suite.tasks.items() if name in tasks}
    return replace(
        suite, tasks={name: replace(task, patches=[*dict.fromkeys(tasks[name])]) for name, task in chosen.items()}
    )


def assemble(
    suite: Suite, spots: Sequence[Spot], compose: Callable[[Sequence[str]], Config], make: Make
) -> dict[str, Entry]:
    """The tasks of ``spots``, so that what does not fit is said before the work starts; no victim is made.

    Args:
        suite: that they are of.
        spots: what will be measured.
        compose: gives the config of a training for overrides.
        make: makes a part of its config.

    Raises:
        InputError: a part refuses its arguments, a victim is for another task, or a patch cannot be read.
    """
    entries = {}
    for name in dict.fromkeys(spot.task for spot in spots):
        try:
            entries[name] = _entry(suite, name, compose, make)
        except InputError as error:
            raise InputError(f"suite.tasks.{name}: {error}") from error
    return entries


def _entry(suite: Suite, name: str, compose: Callable[[Sequence[str]], Config], make: Make) -> Entry:
    task = suite.tasks[name]
    config = compose(training(name, task))
    attack, source = make(config["attack"]), make(config["data"])
    if attack.task != name:
        raise InputError(f"expected the name of its attack's task, got {name} for {attack.task}")
    for victim, node in config["victims"].items():
        if (other := _task_of(node)) not in (None, name):
            raise InputError(f"victims: expected victims for {name}, got {victim} for {other}")
    renderers = {
        (size, pose): _renderer(config, {**sets, **more}, size)
        for size, sets in task.sizes.items()
        for pose, more in task.poses.items()
    }
    for one in renderers.values():
        make(one)  # refuses what it cannot take
    settings = replace(
        make(config["trainer"]),
        validation_scenes=suite.validation,
        test_scenes=suite.scenes,
        test_draws=suite.draws,
    )
    patches = _of_task(name, task.patches)
    paths = [str(path) for given in task.patches for path in _paths(given)]
    return Entry(
        config=config,
        attack=attack,
        source=CachedSource(source, settings.memory_gb * 1e9),
        settings=settings,
        held_out=HeldOut(paths, config["data"], source, make),
        patches=patches,
        renderers=renderers,
        fabric=processes.start(settings),
    )


def _task_of(node: Config) -> str | None:
    """The task of a victim that is not made yet; None where its class does not tell."""
    made = pkgutil.resolve_name(node["_target_"])
    return getattr(made, "task", node.get("task"))


def _renderer(config: Config, sets: Mapping[str, Any], size: str) -> Config:
    """The renderer's config with some of its keys set.

    Raises:
        InputError: it has no such key.
    """
    renderer: Config = copy.deepcopy(config["renderer"])
    if missing := change(renderer, {}, dict(sets)):
        raise InputError(f"sizes.{size}: expected keys of the renderer, as placement.area, got {missing}")
    return renderer


def _paths(given: str) -> list[Path]:
    """Patch files and folders of runs: of a folder that holds some these, in the order of their names."""
    path = files.package_folder("assets") / "benchmark" if given == SHIPPED else Path(given).expanduser()
    if path.is_dir() and not (path / "config.yaml").is_file():
        return [*sorted(path.glob("*.png")), *sorted(one.parent for one in path.glob("*/config.yaml"))]
    return [] if given == SHIPPED else [path]


def load(given: str) -> list[PatchFile]:
    """The patches of a file, of a run's folder, or of a folder of files.

    Raises:
        InputError: one is no patch file.
    """
    paths = _paths(given)
    if not paths and given != SHIPPED:
        raise InputError(f"patches: expected a patch file, a run or a folder of patch files, got {given} without any")
    return [patch_file.of_run(path) if path.is_dir() else patch_file.read(path) for path in paths]


def _of_task(name: str, given: Sequence[str]) -> list[PatchFile]:
    """Those of a task, each once and in an order of their own.

    Raises:
        InputError: a patch that is named by itself is for another task.
    """
    found: dict[str, PatchFile] = {}
    for one in given:
        loaded = load(one)
        if len(loaded) == 1 and loaded[0].task != name and one != SHIPPED:
            raise InputError(f"patches: expected patches for {name}, got {loaded[0].name} for {loaded[0].task}")
        found |= {patch.sha256: patch for patch in loaded if patch.task == name}
    return sorted(found.values(), key=lambda patch: (patch.name, patch.sha256))


@dataclass(frozen=True)
class _Bound:
    """A victim behind a defence, ready to be measured."""

    victim: Victim
    attack: Attack
    predict: Callable[[Tensor], Any]
    scenes: Source
    references: References
    validation: list[int]
    test: list[int]


class Bench(Dataset[str]):
    """What is measured; an item measures one, and is its name.

    Args:
        suite: gives media and seed.
        spots: in any order.
        entries: as of :func:`assemble`.
        make: makes victims, defences and renderers of their config.
        folder: in which each gets its own.
        by: who measures; empty where nobody wants to be named.
    """

    def __init__(
        self,
        suite: Suite,
        spots: Sequence[Spot],
        entries: Mapping[str, Entry],
        make: Make,
        folder: Path,
        by: str = "",
    ) -> None:
        self.suite, self.spots, self.entries, self.make, self.by = suite, spots, entries, make, by
        self.versions = pipeline.versions()
        self.cells = [self._cell(spot, folder / CELLS) for spot in spots]
        self._bound: tuple[tuple[str, ...], _Bound] | None = None  # the last: its clean outputs serve all sizes

    def __len__(self) -> int:
        return len(self.spots)

    def _cell(self, spot: Spot, folder: Path) -> Cell:
        told = {"settings": self._settings(spot), "patches": [one.sha256 for one in self.entries[spot.task].patches]}
        name = spot.folder(_digest(told))
        names = zip(("task", "victim", "defense", "size"), spot.words, strict=True)
        return Cell(folder / name, rows.CELL, [f"{key}={word}" for key, word in names])

    def _settings(self, spot: Spot) -> dict[str, Any]:
        """All that the numbers depend on besides the patches."""
        entry, suite = self.entries[spot.task], asdict(self.suite)
        config, settings = entry.config, asdict(entry.settings)
        return {
            "suite": {key: suite[key] for key in ("name", "media", "scenes", "draws", "validation", "seed")},
            "settings": {key: settings[key] for key in ("split", "precision", "accelerator")},
            "renderers": {pose: one for (size, pose), one in entry.renderers.items() if size == spot.size},
            "victim": config["victims"][spot.victim],
            "defense": config["defenses"].get(spot.defense),
            **{key: config[key] for key in ("attack", "data", "patch")},
            "versions": self.versions,
        }

    def __getitem__(self, index: int) -> str:
        """Measure it, unless somebody has done so by now, and leave the rows, or the reason why there are none."""
        cell = self.cells[index]
        cell.folder.mkdir(parents=True, exist_ok=True)
        with folders.claimed(cell.folder, waits=True):
            before = Cell.read(cell.folder)
            if before is None or before.status != FINISHED:
                replace(cell, status=RUNNING).write()
                self._measured(self.spots[index], cell).write()
        return cell.name

    def _measured(self, spot: Spot, cell: Cell) -> Cell:
        """The cell as it is after the measurement, whose rows are written."""
        start = time.monotonic()
        try:
            found = self.rows(spot)
        except (InputError, VictimError) as error:
            return replace(cell, status=FAILED, reason=printable(redact(shorten(str(error)))))
        except Exception as error:  # of somebody else's code: the others go on
            files.write(cell.folder / cells.LOG, traceback.format_exc())
            reason = f"{type(error).__name__}: {one_line(error)} (see {cells.LOG})"
            return replace(cell, status=FAILED, reason=printable(redact(shorten(reason))))
        made = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "by": self.by}
        files.write_json(cell.folder / rows.MADE, made | {"seconds": round(time.monotonic() - start, 1)})
        files.write(cell.folder / rows.FILE, rows.text(found))
        return replace(cell, status=FINISHED)

    def rows(self, spot: Spot) -> list[Row]:
        """The rows of one victim behind one defence at one size."""
        entry, bound = self.entries[spot.task], self._bind(spot)
        shared = {
            "version": rows.VERSION,
            "suite": self.suite.name,
            **dict(zip(("task", "victim", "defense", "size"), spot.words, strict=True)),
            "settings": _digest(self._settings(spot)),
            "seed": self.suite.seed,
            "scenes": len(bound.test),
            "draws": self.suite.draws,
            "versions": self.versions,
        }
        found = []
        for pose in self.suite.tasks[spot.task].poses:
            renderer = self.make(entry.renderers[spot.size, pose])
            for shape, patches in _by_shape(entry).items():
                like = patches[0].patch if patches else self.make(entry.config["patch"])
                evaluator = Evaluator(
                    *(bound.predict, bound.attack, renderer, bound.references, like, bound.scenes),
                    *(entry.fabric.device, (self.suite.seed, TEST)),
                )
                for medium in self.suite.media:
                    place = shared | {"pose": pose, "medium": medium, "shape": shape}
                    here = evaluator.in_medium(medium)
                    found += [place | row for row in self._conditions(spot, bound, here, patches)]
        return found

    def _bind(self, spot: Spot) -> _Bound:
        key = spot.words[:3]
        if self._bound is not None and self._bound[0] == key:
            return self._bound[1]
        self._bound = None  # the next may need its room
        entry = self.entries[spot.task]
        victim = self.make(entry.config["victims"][spot.victim])
        check_tasks(entry.attack, {spot.victim: victim})
        if spot.defense != UNDEFENDED:
            victim = defend(victim, {spot.defense: self.make(entry.config["defenses"][spot.defense])})
        attack, predict, scenes = bind_victim(entry.attack, victim, entry.source, entry.fabric)
        bound = _Bound(
            *(victim, attack, predict, scenes, References(predict, entry.settings.memory_gb * 1e9)),
            validation=entry.settings.split_indices(len(scenes))[1],
            test=entry.held_out(scenes, entry.settings),
        )
        self._bound = key, bound
        return bound

    def _conditions(
        self, spot: Spot, bound: _Bound, evaluator: Evaluator, patches: Sequence[PatchFile]
    ) -> Iterator[Row]:
        """The rows of one medium and one bin of the pose, of all conditions on the same draws."""
        attack = bound.attack
        every, size = controls(evaluator.patch), evaluator.patch.mask.shape[1:]
        drawn = replace(evaluator, key=(self.suite.seed, VALIDATION)).best_drawn(bound.validation)
        rivals: dict[str, Textures] = {
            **{name: every[name] for name in OF_EVERY_PATCH},
            **attack.controls(bound.scenes, evaluator.patch),
            "drawn": always(drawn.texture(*size)),
        }
        crafted = {one.sha256: one for one in patches}
        textures = {**rivals, **{sha256: always(one.patch().detach()) for sha256, one in crafted.items()}}
        measured = evaluator.measure(textures, bound.test, self.suite.draws)
        for key in dict.fromkeys((attack.primary_metric, attack.clean_metric)):
            if key not in measured[0].metrics:
                continue  # the data do not know
            values = {name: evaluation.per_scene(measured, name, key) for name in ("clean", *textures)}
            metric = attack.metric_info[key[0]]
            words = {"metric": key[0], "region": key[1], "label": metric.label, "stronger": metric.stronger}
            for name, of_scenes in values.items():
                patch = crafted.get(name)
                row = words | {"condition": name, "primary": key == attack.primary_metric}
                row |= _about(spot, bound.victim, patch)
                row["detail"] = str(drawn) if name == "drawn" else ""
                row |= statistics.estimate(of_scenes, metric.rate)
                yield row | _beyond(values, name, rivals if patch else (), metric.sign, metric.rate)


def _digest(told: Any) -> str:
    return hashlib.sha256(files.json_text(told, sort_keys=True).encode()).hexdigest()[:12]


def _by_shape(entry: Entry) -> dict[str, list[PatchFile]]:
    """The patches of each mask and proportion, which share their places; without any, the places of the task's own."""
    result: dict[str, list[PatchFile]] = {}
    for one in entry.patches:
        result.setdefault(_shape(one.patch), []).append(one)
    return result or {"": []}


def _shape(patch: Patch) -> str:
    height, width = patch.mask.shape[1:]
    told = [patch.mask.cpu().numpy().tobytes().hex(), patch.size_mm[0] / patch.size_mm[1]]
    return f"{width}x{height}-{_digest(told)[:8]}"


def _about(spot: Spot, victim: Victim, patch: PatchFile | None) -> Row:
    """Which patch it is, and what who made it knew of this victim behind this defence."""
    if patch is None:
        return {"name": "", "sha256": "", "knowledge": rows.NONE, "adaptive": False}
    names = {name.partition(" behind ")[0] for name in victim.names}
    knows = spot.victim in patch.victims or names <= {*patch.victims}
    adaptive = knows and spot.defense in (UNDEFENDED, *patch.defenses) and patch.knowledge != rows.NONE
    knowledge = patch.knowledge if adaptive or patch.knowledge == rows.NONE else rows.TRANSFER
    told = {"condition": "patch", "name": patch.name, "sha256": patch.sha256}
    return told | {"knowledge": knowledge, "adaptive": adaptive}


def _beyond(values: Mapping[str, np.ndarray], name: str, rivals: Iterable[str], sign: float, rate: bool) -> Row:
    """What a patch does beyond controls, paired by scene and positive for a stronger attack; and which match it."""
    result: Row = dict.fromkeys(rows.NUMBERS[4:])
    result["unbeaten"] = None
    if not rivals:
        return result
    differences = {one: sign * (values[name] - values[one]) for one in rivals}
    for control in rows.OVER:
        found = statistics.paired_difference(differences[control], rate)
        result |= {f"over_{control}": found["mean"]}
        result |= {f"over_{control}_{end}": found[end] for end in ("low", "high")}
    result["unbeaten"] = [
        one for one, difference in differences.items() if not statistics.difference(difference, rate)[1] > 0
    ]
    return result


def measure(bench: Bench, workers: int) -> list[Cell]:
    """Measure all that is not finished.

    Args:
        bench: what, and where.
        workers: processes.

    Returns:
        The cells as they are then.

    Raises:
        InputError: several processes where there can be only one, or something cannot be written.
    """
    on_cpu = all(entry.fabric.device.type == "cpu" for entry in bench.entries.values())
    if workers > 1 and not on_cpu:
        raise InputError(f"workers: expected 1 on a GPU, got {workers}; give workers=1")
    waiting = []
    for index, cell in enumerate(bench.cells):
        before = Cell.read(cell.folder)
        if before is None:
            cell.write()  # so that a board can tell what is not measured yet
        if before is None or before.status != FINISHED:
            waiting.append(index)
    several = min(workers, len(waiting)) > 1
    loader: Any = DataLoader(
        bench,
        batch_size=None,
        sampler=waiting,
        num_workers=min(workers, len(waiting)) if several else 0,
        multiprocessing_context="fork" if several else None,
        in_order=False,
    )
    bar = tqdm(total=len(bench), initial=len(bench) - len(waiting), desc="benchmark", unit="cell", dynamic_ncols=True)
    with bar, one_thread():
        for name in given(loader):
            bar.set_postfix_str(name)
            bar.update()
    return [found for cell in bench.cells if (found := Cell.read(cell.folder)) is not None]

"""What each ingredient of a training is worth: a patch with all of them, and one without each, side by side."""

from __future__ import annotations

import copy
import csv
import io
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from patchattack import checkpoint, evaluation, files, pipeline, statistics, training
from patchattack.attacks.attack import Textures
from patchattack.controls import CONDITIONS, always, controls
from patchattack.data.memory import Memory
from patchattack.errors import InputError, nearest
from patchattack.evaluation import Row
from patchattack.job import TEST, VALIDATION, Job
from patchattack.patch import Patch
from patchattack.pipeline import Parts
from patchattack.reporting.ablation import MEDIA, Line, Table, probability, write_table
from patchattack.statistics import FEWEST
from patchattack.tracking import Nothing
from patchattack.training import DivergedError

WHOLE, AGAIN = "whole_set_up", "another_seed"  # trained beside the ablations
CONTROLS = ("grey", "white", "black", "drawn", "random")
STACKS = (["renderer", "appearance"], ["renderer", "camera"], ["regularizers"])
# Overrides that may change between two calls that share a folder: no patch's training depends on them.
_FREE = (
    *("output=", "only=", "ablations", "printed.", "appearance@printed", "camera@printed"),
    *("trainer.test_", "trainer.workers", "trainer.memory_gb"),
)
Config = dict[str, Any]
Sets = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """What is tried.

    Attributes:
        shared: what all trainings have in common: the arguments of :class:`Parts` that ``config`` does not describe.
        config: of the whole set-up: ``renderer``, ``regularizers`` and ``patch``, not built, and ``seed``.
        ablations: name to what it sets: dotted keys of the config, in which those of the renderer may stand without
            its name, to values.
        printed: what of the renderer's config is another one where patches are measured as printed and photographed.
        build: makes what a config describes.
        command: that was typed.
    """

    shared: Mapping[str, Any]
    config: Config
    ablations: Mapping[str, Sets]
    printed: Config
    build: Callable[[Config], Any]
    command: str


@dataclass(frozen=True)
class Variant:
    """One training.

    Attributes:
        sets: what is another than in the whole set-up.
        parts: to train with.
    """

    sets: Sets
    parts: Parts


def chosen(ablations: Mapping[str, Sets], only: Sequence[str]) -> dict[str, Sets]:
    """Those that ``only`` names; all without names.

    Raises:
        InputError: there is none of that name.
    """
    if not isinstance(only, list) or (unknown := [name for name in only if name not in ablations]):
        got = ", ".join(map(str, unknown)) if isinstance(only, list) else only
        raise InputError(f"only: expected a list of {', '.join(ablations)}, got {got}")
    return {name: ablations[name] for name in only or ablations}


def variants(trial: Trial) -> tuple[dict[str, Variant], list[str]]:
    """Everything that is to be trained, the whole set-up first; and of ablations that change nothing why not.

    The whole set-up is trained a second time from another seed: what that changes is the luck of training.

    Raises:
        InputError: a name that is taken or cannot name a folder, a key that the set-up does not have, a value that is
            refused, a patch of another shape or size, or nothing to ablate.
    """
    if trial.shared["settings"].devices > 1:
        raise InputError(
            f"trainer.devices: expected 1, got {trial.shared['settings'].devices}; patches are trained in one process"
        )
    seed = trial.config["seed"] + 1
    shared = dict(trial.shared)
    shared["source"] = Memory(shared["source"], shared["settings"].memory_gb * 1e9)  # rendered once for all
    found: dict[str, Variant] = {}
    left_out = []
    for name, sets in {WHOLE: {}, AGAIN: {"seed": seed, "patch.seed": seed}, **trial.ablations}.items():
        if name in CONDITIONS or Path(name).name != name or (name in trial.ablations and name in (WHOLE, AGAIN)):
            raise InputError(f"ablations: expected a name of its own that can name a folder, got {name}")
        if not isinstance(sets, Mapping):
            raise InputError(f"ablations.{name}: expected keys and values, as in {{camera.jpeg:null}}, got {sets}")
        config = _changed(name, trial.config, sets)
        if name in trial.ablations and config == trial.config:
            left_out.append(f"{name} (the set-up is the same: {_told(sets)})")
            continue
        parts = Parts(
            **shared,
            renderer=trial.build(config["renderer"]),
            regularizers=trial.build(config["regularizers"]),
            patch=trial.build(config["patch"]),
            seed=config["seed"],
        )
        found[name] = Variant(sets, parts)
        patch, other = parts.patch, found[WHOLE].parts.patch
        if not torch.equal(patch.mask, other.mask) or patch.size_mm != other.size_mm:
            raise InputError(
                f"ablations.{name}: expected a patch in the whole set-up's shape, resolution and size, got another"
            )
    if len(found) == 2:
        got = "; ".join(left_out) or "none"
        raise InputError(f"ablations: expected at least one that changes the set-up, got {got}; name others")
    return found, left_out


def _changed(name: str, config: Config, sets: Sets) -> Config:
    """The config with what one ablation sets.

    Raises:
        InputError: there is no such key.
    """
    result = copy.deepcopy(config)

    def unknown(key: str, part: str, node: Config) -> InputError:
        known = nearest(part, [*node, *config] if node is result["renderer"] else list(node)) or "none"
        return InputError(f"ablations.{name}: expected a key of the set-up, got {key}; it has {known}")

    for key, value in sets.items():
        *path, last = key.split(".") if key.split(".")[0] in config else ["renderer", *key.split(".")]
        node = result
        for part in path:
            if not isinstance(node.get(part), dict):
                raise unknown(key, part, node)
            node = node[part]
        stacked = path in STACKS
        if last not in node and not stacked:
            raise unknown(key, last, node)
        if stacked and value is None:
            node.pop(last, None)
        elif last in node:
            node[last] = copy.deepcopy(value)
        else:
            others = dict(node)
            node.clear()
            node.update({last: copy.deepcopy(value), **others})  # print before light, lens before sensor
    return result


def measure(trial: Trial, variants: Mapping[str, Variant], folder: Path, fabric: Any) -> Table:
    """Train what ``folder`` does not hold yet, and measure all patches and controls on the same held-out scenes.

    Each is measured under the same draws of the whole set-up's own EoT (``digital``), and of ``trial.printed``.

    Returns:
        The table. Its rows have patch, medium, metric, region, mean, low, high (95 %) and n (scenes); those of the
        ablations also difference, difference_low and difference_high to the whole set-up, paired by scene and positive
        for the stronger attack, with p of the sign-flip test, and p_adjusted over all of them (Holm).

    Raises:
        InputError: the folder holds patches of other settings, or the loss became NaN or infinite.
        InterruptedRunError: Ctrl-C while a patch is trained.
    """
    whole = variants[WHOLE].parts
    renderers = dict(zip(MEDIA, (whole.renderer, trial.build(trial.config["renderer"] | trial.printed)), strict=True))
    places = {name: folder / "patches" / name for name in variants}
    job = pipeline.assemble(whole, fabric)  # to measure with; each training has its own
    numbers = whole.settings.parts(len(job.source))[2]
    _check_measurable(job, numbers)
    for name, variant in variants.items():
        _begin(places[name], name, variant.sets, trial.command)
    for name in tqdm(variants, desc="patches", unit="patch", dynamic_ncols=True):
        if not (places[name] / "patch.json").is_file():  # the last of its files
            tqdm.write(f"training {name}")
            _train(variants[name].parts, places[name], name, fabric)
    patches = {name: Patch.load(place / "patch.png") for name, place in places.items()}

    drawn = job.evaluator(VALIDATION).best_drawn(whole.settings.parts(len(job.source))[1])
    known = controls(patches[WHOLE]) | {"drawn": always(drawn.texture(*job.patch.mask.shape[1:]))}
    textures: dict[str, Textures] = {name: known[name] for name in CONTROLS}
    textures |= {name: always(patch().detach()) for name, patch in patches.items()}
    rows: list[Row] = []
    for medium, renderer in renderers.items():
        measured = replace(job.evaluator(TEST), renderer=renderer).measure(
            textures,
            numbers,
            whole.settings.test_draws,
            progress=partial(tqdm, desc=f"measuring {MEDIA[medium]}", unit="batch", dynamic_ncols=True),
        )
        values = {name: evaluation.per_scene(measured, name, job.attack.headline) for name in ("clean", *textures)}
        rows += [{"patch": name, "medium": medium} | row for name, row in _rows(job, values).items()]
    tested = [row for row in rows if "p" in row]
    for row, p in zip(tested, statistics.holm([row["p"] for row in tested]), strict=True):
        row["p_adjusted"] = p
    return _table(trial, variants, patches, rows, job)


def _check_measurable(job: Job, numbers: Sequence[int]) -> None:
    """Refuse scenes of which none has the headline's metric."""
    grey = controls(job.patch)["grey"]
    measured = job.evaluator(TEST).measure({"grey": grey}, numbers)
    if np.isnan(evaluation.per_scene(measured, "grey", job.attack.headline)).all():
        label = job.attack.metrics_known[job.attack.headline[0]].label
        raise InputError(
            f"data: expected test scenes that a patch can win from {job.victim.name}, got {len(numbers)} in none of "
            f"which the {label} is defined (the victim is wrong without a patch already, or there is nothing to "
            "change); give more scenes, other data or another target"
        )


def _begin(place: Path, name: str, sets: Sets, command: str) -> None:
    """Note what a patch is trained with.

    Raises:
        InputError: the folder holds one that was trained with something else.
    """
    overrides = [one for one in shlex.split(command)[2:] if not one.lstrip("+~").startswith(_FREE)]
    settings = {**dict.fromkeys(sorted(overrides), True), **sets}
    path = place / "settings.json"
    if not path.is_file():
        files.write_json(path, settings)
    elif (before := files.read_again(path)) != json.loads(files.json_text(settings)):
        differing = sorted(key for key in before.keys() | settings if before.get(key) != settings.get(key))
        raise InputError(
            f"output={place.parents[1]}: expected the settings that its patch {name} was trained with, got other ones: "
            f"{', '.join(differing)}; name another folder"
        )


def _train(parts: Parts, place: Path, name: str, fabric: Any) -> None:
    """Train a patch, or go on with it, and save the best texture as ``patch.png``."""
    begun = (place / "checkpoint.safetensors").is_file()
    parts = replace(parts, attack=copy.copy(parts.attack), patch=copy.deepcopy(parts.patch))
    job = pipeline.assemble(parts, fabric, place if begun else None)
    if job.journal is not None:
        job.journal.open(place)
    progress = checkpoint.resume(job, place) if begun else checkpoint.begin(job)
    try:
        training.train(job, place, Nothing(place, {}), progress)
    except DivergedError as stop:
        raise InputError(f"{name}: expected finite numbers, got {stop}; try a lower optimizer.lr") from stop
    best = Patch(progress.best.cpu().clamp(0, 1), job.patch.mask.cpu(), job.patch.size_mm)
    facts = {"victims": parts.victim.names, "step": progress.best_step, "seed": parts.seed}
    best.save(place / "patch.png", facts | {"versions": pipeline.versions()})


def _rows(job: Job, values: Mapping[str, np.ndarray]) -> dict[str, Row]:
    """Each patch's headline in one medium, of ``[n]`` values per scene; and of ablations what they change."""
    metric, region = job.attack.headline
    known = job.attack.metrics_known[metric]
    sign = -1 if known.stronger == "lower" else 1
    rows: dict[str, Row] = {}
    for name, one in values.items():
        mean, low, high = statistics.interval(one, known.rate)
        rows[name] = {"metric": metric, "region": region, "mean": mean, "low": low, "high": high}
        rows[name]["n"] = int((~np.isnan(one)).sum())
        if name not in (*CONDITIONS, WHOLE):
            differences = sign * (one - values[WHOLE])
            mean, low, high = statistics.difference(differences, known.rate)
            rows[name] |= {"difference": mean, "difference_low": low, "difference_high": high}
            rows[name]["p"] = statistics.sign_flip(differences)
    return rows


def _table(
    trial: Trial, variants: Mapping[str, Variant], patches: Mapping[str, Patch], rows: Sequence[Row], job: Job
) -> Table:
    """All that the report shows."""
    settings, metric = job.settings, job.attack.metrics_known[job.attack.headline[0]]
    cells = {(row["patch"], row["medium"]): row for row in rows}
    lines = []
    for name in dict.fromkeys(row["patch"] for row in rows):
        told = "" if name not in variants else _told(variants[name].sets)
        role = {WHOLE: "whole", AGAIN: "again"}.get(name, "control" if name in CONDITIONS else "ablation")
        shown = CONDITIONS.get(name, name.replace("_", " ").replace("set up", "set-up"))
        lines.append(Line(shown, told, role, {medium: cells[name, medium] for medium in MEDIA}))
    scenes = f"{len(settings.parts(len(job.source))[2])} held-out scenes × {settings.test_draws} draws"
    return Table(
        title=f"Ablations of a {job.attack.task} patch against {job.victim.name}",
        verdict=verdict(lines),
        metric=metric.label,
        stronger=metric.stronger,
        lines=lines,
        patches={
            line.name: torch.cat([patch(), patch.mask]).detach()
            for line, patch in zip((line for line in lines if line.role != "control"), patches.values(), strict=True)
        },
        setup=[
            ("Victim", job.victim.name),
            ("Data", f"{type(trial.shared['source']).__name__}, {scenes}"),
            ("Training", f"{settings.steps} steps of {settings.batch} × {settings.draws} views for each patch"),
            ("Digital", _stacks(trial.config["renderer"])),
            ("As printed", _stacks(trial.config["renderer"] | trial.printed)),
            ("Regularisers", ", ".join(trial.config["regularizers"]) or "none"),
            ("Seed", f"{trial.config['seed']}"),
        ],
        command=trial.command,
        versions=pipeline.versions(),
    )


def _told(sets: Sets) -> str:
    """What an ablation sets, in words."""
    return ", ".join(
        f"no {key}" if value in (None, {}) else key if isinstance(value, dict) else f"{key} = {value}"
        for key, value in sets.items()
    )


def _stacks(renderer: Config) -> str:
    return ", ".join([*(renderer["appearance"] or {}), *(renderer["camera"] or {})]) or "no appearance, no camera"


def verdict(lines: Sequence[Line]) -> str:
    """Which ablations change the patch: beyond chance, and by more than another seed does."""
    (again,) = (line for line in lines if line.role == "again")
    ablations = [line for line in lines if line.role == "ablation"]
    if (scenes := again.cells["digital"]["n"]) < FEWEST:
        return statistics.too_few(scenes, "held-out scenes")
    sentences = []
    for medium, words in MEDIA.items():
        luck = abs(again.cells[medium]["difference"])
        found: dict[str, list[str]] = {"weaker": [], "stronger": []}
        for line in ablations:
            row = line.cells[medium]
            if abs(row["difference"]) > luck:
                if statistics.effect(-row["difference_high"], row["p_adjusted"]):
                    found["weaker"].append(line.name)
                elif statistics.effect(row["difference_low"], row["p_adjusted"]):
                    found["stronger"].append(line.name)
        told = [f"{way} {', '.join(names)}" for way, names in found.items() if names]
        changed = "; ".join(told) or "no ablation changes the patch beyond chance"
        sentences.append(f"{words[0].upper()}{words[1:]}: {changed}.")
    return " ".join(sentences)


def publish(table: Table, folder: Path) -> str:
    """Write ``ablations.json``, ``ablations.csv`` and ``report.html``, and return the table in Markdown."""
    rows = [line.cells[medium] for medium in MEDIA for line in table.lines]
    files.write_json(folder / "ablations.json", rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write(folder / "ablations.csv", text.getvalue())
    write_table(folder / "report.html", table)
    return _markdown(table)


def _markdown(table: Table) -> str:
    """The table for a README: means, and differences to the whole set-up."""
    heads = [head for words in MEDIA.values() for head in (words, "difference")]
    lines = ["| patch | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    for line in table.lines:
        shown = []
        for row in line.cells.values():
            shown.append("{mean:.3f} [{low:.3f}, {high:.3f}]".format(**row))
            if "difference" in row:
                bounds = "{difference:+.3f} [{difference_low:+.3f}, {difference_high:+.3f}]".format(**row)
                shown.append(f"{bounds}, {probability(row['p_adjusted'])}")
            else:
                shown.append("–")
        lines.append(f"| {line.name} | " + " | ".join(shown) + " |")
    note = (
        f"{table.metric[0].upper()}{table.metric[1:]}; means and 95 % intervals. Differences to the whole set-up, "
        "paired by scene, are positive for the stronger patch; p of the sign-flip test after Holm's correction."
    )
    return "\n".join([table.verdict, "", *lines, "", note])

"""Ablation study: the contribution of each component of the training, by leaving out one at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from patchattack import assembly, evaluation, files, pipeline, statistics
from patchattack.assembly import Parts
from patchattack.attacks.attack import Textures
from patchattack.controls import CONDITIONS, always, controls
from patchattack.data.cached import CachedSource
from patchattack.errors import InputError, nearest
from patchattack.evaluation import Row
from patchattack.job import TEST, VALIDATION, Job
from patchattack.patch import Patch
from patchattack.reporting.ablation import MEDIA, AblationTable, Line, probability, write_table
from patchattack.statistics import FEWEST
from patchattack.studies.study import check_settings, publish_table, settings_of, train, write_csv

WHOLE, AGAIN = "whole_set_up", "another_seed"  # trained beside the ablations
CONTROLS = ("grey", "white", "black", "drawn", "random")
STACKS = (["renderer", "appearance"], ["renderer", "camera"], ["regularizers"])
# Overrides that may change between two calls that share a folder: no patch's training depends on them.
_FREE = (
    *("output=", "only=", "ablations", "printed.", "appearance@printed", "camera@printed"),
    *("trainer.test_", "trainer.workers", "trainer.memory_gb"),
)
BUILT = ("attack", "optimizer", "schedule", "trainer", "renderer", "regularizers", "patch")  # anew for each training
Config = dict[str, Any]
Sets = Mapping[str, Any]


@dataclass(frozen=True)
class AblationStudy:
    """What is trained and measured.

    Attributes:
        shared: what all trainings have in common: the arguments of :class:`Parts` that ``config`` does not describe.
        config: of the whole set-up: :data:`BUILT`, not built, and ``seed``.
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


def choose(ablations: Mapping[str, Sets], only: Sequence[str]) -> dict[str, Sets]:
    """Those that ``only`` names; all without names.

    Raises:
        InputError: there is none of that name.
    """
    if not isinstance(only, list) or (unknown := [name for name in only if name not in ablations]):
        got = ", ".join(map(str, unknown)) if isinstance(only, list) else only
        raise InputError(f"only: expected a list of {', '.join(ablations)}, got {got}")
    return {name: ablations[name] for name in only or ablations}


def variants(study: AblationStudy) -> tuple[dict[str, Variant], list[str]]:
    """Everything that is to be trained, the whole set-up first; and of ablations that change nothing why not.

    The whole set-up is trained a second time from another seed: what that changes is the luck of training.

    Raises:
        InputError: a name that is taken or cannot name a folder, a key that the set-up does not have, a value that is
            refused, a patch of another shape or size, or nothing to ablate.
    """
    settings = study.build(study.config["trainer"])
    if settings.processes > 1:
        raise InputError(f"trainer.devices: expected 1, got {settings.processes}; patches are trained in one process")
    seed = study.config["seed"] + 1
    shared = dict(study.shared)
    shared["source"] = CachedSource(shared["source"], settings.memory_gb * 1e9)  # rendered once for all
    found: dict[str, Variant] = {}
    left_out = []
    for name, sets in {WHOLE: {}, AGAIN: {"seed": seed, "patch.seed": seed}, **study.ablations}.items():
        if name in CONDITIONS or Path(name).name != name or (name in study.ablations and name in (WHOLE, AGAIN)):
            raise InputError(f"ablations: expected a name of its own that can name a folder, got {name}")
        if not isinstance(sets, Mapping):
            raise InputError(f"ablations.{name}: expected keys and values, as in {{camera.jpeg:null}}, got {sets}")
        config = _apply(name, study.config, sets)
        if name in study.ablations and config == study.config:
            left_out.append(f"{name} (the set-up is the same: {_describe(sets)})")
            continue
        made = {key: study.build(config[key]) for key in BUILT}
        parts = Parts(**shared, settings=made.pop("trainer"), seed=config["seed"], **made)
        found[name] = Variant(sets, parts)
        patch, other = parts.patch, found[WHOLE].parts.patch
        if not torch.equal(patch.mask, other.mask) or patch.size_mm != other.size_mm:
            raise InputError(
                f"ablations.{name}: expected a patch in the whole set-up's shape, resolution and size, got another"
            )
        if parts.settings.split != found[WHOLE].parts.settings.split:
            raise InputError(f"ablations.{name}: expected the whole set-up's trainer.split, got another")
    if len(found) == 2:
        got = "; ".join(left_out) or "none"
        raise InputError(f"ablations: expected at least one that changes the set-up, got {got}; name others")
    return found, left_out


def _apply(name: str, config: Config, sets: Sets) -> Config:
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


def measure(study: AblationStudy, variants: Mapping[str, Variant], folder: Path, fabric: Any) -> AblationTable:
    """Train what ``folder`` does not hold yet, and measure all patches and controls on the same held-out scenes.

    Each is measured under the same draws of the whole set-up's own EoT (``digital``), and of ``study.printed``.

    Returns:
        The table. Its rows have patch, medium, metric, region, mean, low, high (95 %) and n (scenes); those of the
        ablations also difference, difference_low and difference_high to the whole set-up, paired by scene and positive
        for the stronger attack, with p of the sign-flip test, and p_adjusted over all of them (Holm).

    Raises:
        InputError: the folder holds patches of other settings.
        DivergedError, VictimError, InterruptedRunError: while a patch is trained; what was done is kept.
    """
    whole = variants[WHOLE].parts
    renderers = dict(zip(MEDIA, (whole.renderer, study.build(study.config["renderer"] | study.printed)), strict=True))
    places = {name: folder / "patches" / name for name in variants}
    job = assembly.assemble(whole, fabric)  # to measure with; each training has its own
    indices = whole.settings.split_indices(len(job.source))[2]
    _check_measurable(job, indices)
    for name, variant in variants.items():
        check_settings(places[name], settings_of(study.command, _FREE) | dict(variant.sets))
    for name in tqdm(variants, desc="patches", unit="patch", dynamic_ncols=True):
        if not (places[name] / "patch.json").is_file():  # the last of its files
            tqdm.write(f"training {name}")
            train(variants[name].parts, places[name], name, fabric)
    patches = {name: Patch.load(place / "patch.png") for name, place in places.items()}

    drawn = job.evaluator(VALIDATION).best_drawn(whole.settings.split_indices(len(job.source))[1])
    known = controls(patches[WHOLE]) | {"drawn": always(drawn.texture(*job.patch.mask.shape[1:]))}
    textures: dict[str, Textures] = {name: known[name] for name in CONTROLS}
    textures |= {name: always(patch().detach()) for name, patch in patches.items()}
    rows: list[Row] = []
    for medium, renderer in renderers.items():
        measured = replace(job.evaluator(TEST), renderer=renderer).measure(
            textures,
            indices,
            whole.settings.test_draws,
            progress=partial(tqdm, desc=f"measuring {MEDIA[medium]}", unit="batch", dynamic_ncols=True),
        )
        values = {
            name: evaluation.per_scene(measured, name, job.attack.primary_metric) for name in ("clean", *textures)
        }
        rows += [{"patch": name, "medium": medium} | row for name, row in _rows(job, values).items()]
    tested = [row for row in rows if "p" in row]
    for row, p in zip(tested, statistics.holm([row["p"] for row in tested]), strict=True):
        row["p_adjusted"] = p
    return _table(study, variants, patches, rows, job)


def _check_measurable(job: Job, indices: Sequence[int]) -> None:
    """Refuse scenes of which none has the primary metric."""
    grey = controls(job.patch)["grey"]
    measured = job.evaluator(TEST).measure({"grey": grey}, indices)
    if np.isnan(evaluation.per_scene(measured, "grey", job.attack.primary_metric)).all():
        label = job.attack.metric_info[job.attack.primary_metric[0]].label
        raise InputError(
            f"data: expected test scenes that a patch can win from {job.victim.name}, got {len(indices)} in none of "
            f"which the {label} is defined (the victim is wrong without a patch already, or there is nothing to "
            "change); give more scenes, other data or another target"
        )


def _rows(job: Job, values: Mapping[str, np.ndarray]) -> dict[str, Row]:
    """Each patch's primary metric in one medium, of ``[n]`` values per scene; and of ablations what they change."""
    metric, region = job.attack.primary_metric
    known = job.attack.metric_info[metric]
    rows: dict[str, Row] = {}
    for name, one in values.items():
        rows[name] = {"metric": metric, "region": region, **statistics.estimate(one, known.rate)}
        if name not in (*CONDITIONS, WHOLE):
            differences = known.sign * (one - values[WHOLE])
            mean, low, high = statistics.difference(differences, known.rate)
            rows[name] |= {"difference": mean, "difference_low": low, "difference_high": high}
            rows[name]["p"] = statistics.sign_flip(differences)
    return rows


def _table(
    study: AblationStudy, variants: Mapping[str, Variant], patches: Mapping[str, Patch], rows: Sequence[Row], job: Job
) -> AblationTable:
    """All that the report shows."""
    settings, metric = job.settings, job.attack.metric_info[job.attack.primary_metric[0]]
    cells = {(row["patch"], row["medium"]): row for row in rows}
    lines = []
    for name in dict.fromkeys(row["patch"] for row in rows):
        told = "" if name not in variants else _describe(variants[name].sets)
        role = {WHOLE: "whole", AGAIN: "again"}.get(name, "control" if name in CONDITIONS else "ablation")
        shown = CONDITIONS.get(name, name.replace("_", " ").replace("set up", "set-up"))
        lines.append(Line(shown, told, role, {medium: cells[name, medium] for medium in MEDIA}))
    scenes = f"{len(settings.split_indices(len(job.source))[2])} held-out scenes × {settings.test_draws} draws"
    return AblationTable(
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
            ("Data", f"{type(study.shared['source']).__name__}, {scenes}"),
            ("Training", f"{settings.steps} steps of {settings.batch} × {settings.draws} views for each patch"),
            ("Digital", _stacks(study.config["renderer"])),
            ("As printed", _stacks(study.config["renderer"] | study.printed)),
            ("Regularisers", ", ".join(study.config["regularizers"]) or "none"),
            ("Seed", f"{study.config['seed']}"),
        ],
        command=study.command,
        versions=pipeline.versions(),
    )


def _describe(sets: Sets) -> str:
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


def publish(table: AblationTable, folder: Path) -> str:
    """Write ``ablations.json`` and ``.csv``, ``report.html`` and ``table.tex``; return the table in Markdown."""
    rows = [line.cells[medium] for medium in MEDIA for line in table.lines]
    files.write_json(folder / "ablations.json", rows)
    write_csv(folder / "ablations.csv", rows)
    write_table(folder / "report.html", table)
    return _publish_table(folder, table)


def _publish_table(folder: Path, table: AblationTable) -> str:
    """Means, and differences to the whole set-up."""
    heads = [head for words in MEDIA.values() for head in (words, "difference")]
    lines = []
    for line in table.lines:
        shown = [line.name]
        for row in line.cells.values():
            shown.append(statistics.with_interval(row))
            if "difference" in row:
                change = {"mean": row["difference"], "low": row["difference_low"], "high": row["difference_high"]}
                shown.append(f"{statistics.with_interval(change, sign='+')}, {probability(row['p_adjusted'])}")
            else:
                shown.append("–")
        lines.append(shown)
    note = (
        f"{table.metric[0].upper()}{table.metric[1:]}; means and 95 % intervals. Differences to the whole set-up, "
        "paired by scene, are positive for the stronger patch; p of the sign-flip test after Holm's correction."
    )
    return publish_table(folder, ["patch", *heads], lines, 1, table.verdict, note)

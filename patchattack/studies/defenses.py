"""Victims × defences: what each costs without a patch, and what three patches do behind it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from patchattack import evaluation, files, pipeline, statistics
from patchattack.assembly import Parts
from patchattack.attacks.attack import Textures
from patchattack.controls import always, controls
from patchattack.errors import InputError
from patchattack.evaluation import Row
from patchattack.job import TEST, Job, Settings
from patchattack.patch import Patch
from patchattack.reporting.defenses import DefenseTable, write_table
from patchattack.runs import all_held_out
from patchattack.scene import Source
from patchattack.studies.study import check_settings, publish_table, settings_of, train, write_csv
from patchattack.victims.defended import Defended, defend
from patchattack.victims.victim import Victim

UNDEFENDED = "none"
PATCHES = ("random", "transferred", "adaptive")
# These of a command may change between two calls that share a folder: rows of others do not depend on them.
_FREE = ("output=", "run=", "+victim@victims.", "defense@defenses=")


@dataclass(frozen=True)
class DefenseStudy:
    """What is tried on what.

    Attributes:
        parts: of a run: the attack, the scenes, and how adaptive patches are trained. Its victim is not used.
        victims: name to victim without the defences.
        defenses: name to defence; each victim is also tried without any.
        patch: trained without knowing the defences: ``transferred``.
        command: that was typed.
        held_out: indices of the scenes to measure on.
    """

    parts: Parts
    victims: Mapping[str, Victim]
    defenses: Mapping[str, Any]
    patch: Patch
    command: str
    held_out: Callable[[Source, Settings], list[int]] = all_held_out


def measure(study: DefenseStudy, folder: Path, fabric: Any) -> list[Row]:
    """Train the adaptive patches and measure, pair by pair; after each ``defenses.json`` is written.

    Pairs that ``folder`` holds already are taken from it, and a training that was interrupted is resumed.

    Returns:
        Rows of victim, defense, condition, metric, region, mean, low, high and n (scenes). Conditions are ``clean``,
        ``random``, ``transferred`` and ``adaptive``, and ``certified`` where a defence proves anything. The metric
        ``excess`` is the primary metric's paired difference to the random patch, positive for a stronger attack, with
        ``p``.

    Raises:
        InputError: no defence, one that does not fit a victim, a patch of another shape than the run's, or a folder
            of other settings.
        DivergedError, VictimError, InterruptedRunError: while a patch is trained; what was done is kept.
    """
    if not study.defenses:
        raise InputError("defenses: expected at least one, got none; give defenses=[jpeg,median]")
    if not torch.equal(study.patch.mask.cpu() > 0.5, study.parts.patch.mask.cpu() > 0.5):
        raise InputError("run: expected a patch in the shape and resolution that the run was started with, got another")
    choices: dict[str, dict[str, Any]] = {UNDEFENDED: {}} | {name: {name: one} for name, one in study.defenses.items()}
    pairs = {(v, d): defend(study.victims[v], choice) for v in study.victims for d, choice in choices.items()}
    rows = _read_rows(study, folder)
    done = {(row["victim"], row["defense"]) for row in rows}
    bar = tqdm([pair for pair in pairs if pair not in done], desc="victims and defences", unit="pair", disable=None)
    for victim, defense in bar:
        tqdm.write(f"{victim}, defence: {defense}")
        place = folder / "adaptive" / f"{victim}-{defense}".replace("/", "_")
        found = _measure_defense(study, pairs[victim, defense], place, fabric)
        rows += [{"victim": victim, "defense": defense} | row for row in found]
        files.write_json(folder / "defenses.json", rows)
    return [row for row in rows if (row["victim"], row["defense"]) in pairs]


def _read_rows(study: DefenseStudy, folder: Path) -> list[Row]:
    """The rows that the folder holds.

    Raises:
        InputError: they are of other settings.
    """
    texture = hashlib.sha256(study.patch().detach().numpy().tobytes()).hexdigest()[:12]
    check_settings(folder, settings_of(study.command, _FREE) | {"patch": texture})
    path = folder / "defenses.json"
    return files.read_again(path, _read) if path.is_file() else []


def _read(path: Path) -> list[Row]:
    """What :func:`measure` has written.

    Raises:
        ValueError: it is not that.
    """
    rows = files.read_rows(path, ("victim", "defense", *_row("", "", "")), ("mean", "low", "high", "n"))
    excesses = [row for row in rows if row["metric"] == "excess"]
    if any(not isinstance(row.get("p"), int | float) for row in excesses):
        raise ValueError("expected p of every excess")
    told = {(row["victim"], row["defense"], row["condition"]) for row in excesses}
    for victim, defense in {(row["victim"], row["defense"]): None for row in rows}:
        if any((victim, defense, condition) not in told for condition in ("transferred", "adaptive")):
            raise ValueError(f"expected the excess of both patches for {victim} and {defense}")
    return rows


def _measure_defense(study: DefenseStudy, victim: Victim, place: Path, fabric: Any) -> list[Row]:
    """All rows of one victim behind one defence; its adaptive patch lands in ``place``.

    The adaptive patch begins as the transferred one, and validation may choose that: an attack that knows a defence is
    not weaker than one that does not (Tramèr et al., On Adaptive Attacks to Adversarial Example Defenses, 2020).
    """
    patch = copy.deepcopy(study.parts.patch)
    patch.set_texture(study.patch().detach())
    parts = replace(study.parts, victim=victim, patch=patch)
    job = train(parts, place, place.name, fabric)
    adaptive = Patch.load(place / "patch.png")

    textures: dict[str, Textures] = {
        "random": controls(study.patch)["random"],
        "transferred": always(study.patch().detach()),
        "adaptive": always(adaptive().detach()),
    }
    indices = study.held_out(job.source, parts.settings)
    measured = job.evaluator(TEST).measure(
        textures,
        indices,
        parts.settings.test_draws,
        progress=partial(tqdm, desc="measuring", unit="batch", dynamic_ncols=True),
    )
    primary_metric, rows = job.attack.primary_metric, []
    for key in dict.fromkeys((job.attack.clean_metric, primary_metric)):
        if key not in measured[0].metrics:
            continue  # the data do not know
        rate = job.attack.metric_info[key[0]].rate
        for condition in ("clean", *PATCHES):
            values = evaluation.per_scene(measured, condition, key)
            rows.append(_row(condition, *key) | statistics.estimate(values, rate))
    metric = job.attack.metric_info[primary_metric[0]]
    random = evaluation.per_scene(measured, "random", primary_metric)
    for condition in ("transferred", "adaptive"):
        excess = metric.sign * (evaluation.per_scene(measured, condition, primary_metric) - random)
        row = _row(condition, "excess", primary_metric[1]) | statistics.paired_difference(excess, metric.rate)
        rows.append(row | {"p": statistics.sign_flip(excess)})
    for key, proved in _certified(job, indices).items():
        rows.append(_row("certified", *key) | statistics.estimate(proved, rate=True))
    return rows


def _row(condition: str, metric: str, region: str) -> Row:
    return {"condition": condition, "metric": metric, "region": region}


@torch.no_grad()
def _certified(job: Job, indices: list[int]) -> dict[tuple[str, str], np.ndarray]:
    """``(metric, region) -> [n]`` what is proved of each scene, NaN where its truth is unknown; empty without proof."""
    columns: dict[tuple[str, str], list[float]] = {}
    if not isinstance(job.victim, Defended):
        return {}
    for index in tqdm(indices, desc="certifying", unit="scene", dynamic_ncols=True, disable=None):
        scene = job.source.__getitems__([index]).to(job.fabric.device)
        with job.fabric.autocast():
            proved = job.attack.certified(job.victim, scene)
        if proved is None:
            return {}
        for key, value in proved.items():
            columns.setdefault(key, []).append(value.item())
    return {key: np.array(values) for key, values in columns.items()}


def publish(study: DefenseStudy, rows: list[Row], folder: Path) -> str:
    """Write ``defenses.json`` and ``.csv``, ``report.html`` and ``table.tex``, and return the table in Markdown."""
    attack = study.parts.attack.bound(next(iter(study.victims.values())), study.parts.source)
    primary_metric, clean_metric = attack.primary_metric, attack.clean_metric
    cells = {(row["victim"], row["defense"], row["condition"], row["metric"], row["region"]): row for row in rows}
    pairs = list(dict.fromkeys((row["victim"], row["defense"]) for row in rows))
    columns = {"clean": ("clean", *clean_metric), **{patch: (patch, *primary_metric) for patch in PATCHES}}
    for row in rows:
        if row["condition"] == "certified":
            name = "certified" if row["region"] == "all" else f"certified, {row['region']}"
            columns[name] = ("certified", row["metric"], row["region"])
    table = DefenseTable(
        title=f"Defences against {attack.task} patches",
        verdict=_verdict(rows),
        clean_metric=attack.metric_info[clean_metric[0]].label,
        metric=attack.metric_info[primary_metric[0]].label,
        stronger=attack.metric_info[primary_metric[0]].stronger,
        patches=PATCHES,
        columns=list(columns),
        rows=[
            (victim, defense, {name: cells.get((victim, defense, *key)) for name, key in columns.items()})
            for victim, defense in pairs
        ],
        command=study.command,
        versions=pipeline.versions(),
    )
    write_csv(folder / "defenses.csv", rows)
    write_table(folder / "report.html", table)
    return _publish_table(folder, table)


def _verdict(rows: list[Row]) -> str:
    """Behind how many defences each patch does more than the random patch, corrected for all that are compared."""
    excesses = [row for row in rows if row["metric"] == "excess"]
    adjusted = statistics.holm([row["p"] for row in excesses])
    beaten: dict[str, list[bool]] = {}
    for row, p in zip(excesses, adjusted, strict=True):
        if row["defense"] != UNDEFENDED:
            beaten.setdefault(row["condition"], []).append(statistics.effect(row["low"], p))
    transferred, adaptive = beaten["transferred"], beaten["adaptive"]
    return (
        f"A patch trained through the defence does more than a random patch behind {sum(adaptive)} of {len(adaptive)}; "
        f"the patch that does not know it, behind {sum(transferred)}."
    )


def _publish_table(folder: Path, table: DefenseTable) -> str:
    """Means and, for the patches, intervals."""
    heads = ["victim", "defence", *({"clean": table.clean_metric}.get(name, name) for name in table.columns)]
    lines = [
        [victim, defense, *("–" if cell is None else statistics.with_interval(cell) for cell in cells.values())]
        for victim, defense, cells in table.rows
    ]
    note = f"Patches: {table.metric}; means and 95 % intervals."
    return publish_table(folder, heads, lines, 2, table.verdict, note)

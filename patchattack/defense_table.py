"""Victims × defences: what each costs without a patch, and what three patches do behind it."""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from patchattack import checkpoint, evaluation, files, pipeline, statistics, training
from patchattack.attacks.attack import Textures
from patchattack.controls import always, controls
from patchattack.errors import InputError
from patchattack.evaluation import Row
from patchattack.job import TEST, Job, Settings
from patchattack.patch import Patch
from patchattack.pipeline import Parts
from patchattack.reporting.defenses import Table, write_table
from patchattack.runs import all_held_out
from patchattack.scene import Source, View
from patchattack.tracking import Nothing
from patchattack.victims.defended import Defended, defended
from patchattack.victims.victim import Victim

UNDEFENDED = "none"
PATCHES = ("random", "transferred", "adaptive")
# These of a command may change between two calls that share a folder: rows of others do not depend on them.
_FREE = ("output=", "run=", "+victim@victims.", "defense@defenses=")


@dataclass(frozen=True)
class Trial:
    """What is tried on what.

    Attributes:
        parts: of a run: the attack, the scenes, and how adaptive patches are trained. Its victim is not used.
        victims: name to victim without the defences.
        defenses: name to defence; each victim is also tried without any.
        patch: trained without knowing the defences: ``transferred``.
        command: that was typed.
        held_out: numbers of the scenes to measure on.
    """

    parts: Parts
    victims: Mapping[str, Victim]
    defenses: Mapping[str, Any]
    patch: Patch
    command: str
    held_out: Callable[[Source, Settings], list[int]] = all_held_out


def measure(trial: Trial, folder: Path, fabric: Any) -> list[Row]:
    """Train the adaptive patches and measure, pair by pair; after each ``defenses.json`` is written.

    Pairs that ``folder`` holds already are taken from it, and a training that was interrupted goes on.

    Returns:
        Rows of victim, defense, condition, metric, region, mean, low, high and n (scenes). Conditions are ``clean``,
        ``random``, ``transferred`` and ``adaptive``, and ``certified`` where a defence proves anything. The metric
        ``excess`` is the headline's paired difference to the random patch, positive for a stronger attack, with ``p``.

    Raises:
        InputError: no defence, one that does not fit a victim, a patch of another shape than the run's, or a folder
            of other settings.
        InterruptedRunError: Ctrl-C while a patch is trained.
    """
    if not trial.defenses:
        raise InputError("defenses: expected at least one, got none; give defenses=[jpeg,median]")
    if not torch.equal(trial.patch.mask.cpu() > 0.5, trial.parts.patch.mask.cpu() > 0.5):
        raise InputError("run: expected a patch in the shape and resolution that the run was started with, got another")
    choices: dict[str, dict[str, Any]] = {UNDEFENDED: {}} | {name: {name: one} for name, one in trial.defenses.items()}
    pairs = {(v, d): defended(trial.victims[v], choice) for v in trial.victims for d, choice in choices.items()}
    rows = _begun(trial, folder)
    done = {(row["victim"], row["defense"]) for row in rows}
    bar = tqdm([pair for pair in pairs if pair not in done], desc="victims and defences", unit="pair", disable=None)
    for victim, defense in bar:
        tqdm.write(f"{victim}, defence: {defense}")
        place = folder / "adaptive" / f"{victim}-{defense}".replace("/", "_")
        found = _measured(trial, pairs[victim, defense], place, fabric)
        rows += [{"victim": victim, "defense": defense} | row for row in found]
        files.write_json(folder / "defenses.json", rows)
    return [row for row in rows if (row["victim"], row["defense"]) in pairs]


def _begun(trial: Trial, folder: Path) -> list[Row]:
    """The rows that the folder holds.

    Raises:
        InputError: they are of other settings.
    """
    settings = sorted(one for one in shlex.split(trial.command)[2:] if not one.startswith(_FREE))
    settings.append(f"patch {hashlib.sha256(trial.patch().detach().numpy().tobytes()).hexdigest()[:12]}")
    path = folder / "settings.json"
    if not path.is_file():
        files.write_json(path, settings)
    elif (before := files.read_again(path)) != settings:
        differing = ", ".join(sorted(set(before) ^ set(settings)))
        raise InputError(
            f"output={folder}: expected the settings of the rows that it holds, got other ones: {differing}; "
            "name another folder"
        )
    known = folder / "defenses.json"
    return files.read_again(known, files.read_rows) if known.is_file() else []


def _measured(trial: Trial, victim: Victim, place: Path, fabric: Any) -> list[Row]:
    """All rows of one victim behind one defence; its adaptive patch lands in ``place``.

    The adaptive patch begins as the transferred one, and validation may choose that: an attack that knows a defence is
    not weaker than one that does not (Tramèr et al., On Adaptive Attacks to Adversarial Example Defenses, 2020).
    """
    patch = copy.deepcopy(trial.parts.patch)
    patch.begin_with(trial.patch().detach())
    parts = replace(trial.parts, victim=victim, attack=copy.copy(trial.parts.attack), patch=patch)
    begun = (place / "checkpoint.safetensors").is_file()
    job = pipeline.assemble(parts, fabric, place if begun else None)
    progress = checkpoint.resume(job, place) if begun else checkpoint.begin(job)
    training.train(job, place, Nothing(place, {}), progress)
    adaptive = Patch(progress.best.cpu().clamp(0, 1), job.patch.mask.cpu(), job.patch.size_mm)
    adaptive.save(place / "patch.png", {"victims": victim.names, "step": progress.best_step, "seed": parts.seed})

    textures: dict[str, Textures] = {
        "random": controls(trial.patch)["random"],
        "transferred": always(trial.patch().detach()),
        "adaptive": always(progress.best),
    }
    numbers = trial.held_out(job.source, parts.settings)
    measured = job.evaluator(TEST).measure(
        textures,
        numbers,
        parts.settings.test_draws,
        progress=partial(tqdm, desc="measuring", unit="batch", dynamic_ncols=True),
    )
    headline, rows = job.attack.headline, []
    for key in dict.fromkeys((job.attack.quality, headline)):
        if key not in measured[0].metrics:
            continue  # the data do not know
        rate = job.attack.metrics_known[key[0]].rate
        for condition in ("clean", *PATCHES):
            values = evaluation.per_scene(measured, condition, key)
            rows.append(_row(condition, *key, statistics.interval(values, rate), values))
    metric = job.attack.metrics_known[headline[0]]
    sign = -1 if metric.stronger == "lower" else 1
    random = evaluation.per_scene(measured, "random", headline)
    for condition in ("transferred", "adaptive"):
        excess = sign * (evaluation.per_scene(measured, condition, headline) - random)
        row = _row(condition, "excess", headline[1], statistics.difference(excess, metric.rate), excess)
        rows.append(row | {"p": statistics.sign_flip(excess)})
    if (proved := _certified(job, numbers)) is not None:
        rows.append(_row("certified", "accuracy", "all", statistics.wilson(proved), proved))
    return rows


def _row(condition: str, metric: str, region: str, bounds: tuple[float, float, float], values: np.ndarray) -> Row:
    mean, low, high = bounds
    row = {"condition": condition, "metric": metric, "region": region, "mean": mean, "low": low, "high": high}
    return row | {"n": int((~np.isnan(values)).sum())}


@torch.no_grad()
def _certified(job: Job, numbers: list[int]) -> np.ndarray | None:
    """``[n]``: 1 where the true class is proved, NaN where it is unknown; None where the victim proves nothing."""
    if not isinstance(job.victim, Defended):
        return None
    shares = []
    for number in tqdm(numbers, desc="certifying", unit="scene", dynamic_ncols=True, disable=None):
        scene = job.source.__getitems__([number]).to(job.fabric.device)
        with job.fabric.autocast():
            labels = job.victim.certified(scene.frames)
        if labels is None:
            return None
        answer = F.one_hot(labels.clamp(min=0), len(job.victim.classes)).float()
        nowhere = View(scene.frames, torch.zeros_like(scene.frames[:, :, :1]), torch.zeros(1, 1, 4, 2))
        right = job.attack.metrics(answer, answer, scene, nowhere)["accuracy", "all"]
        shares.append((right * (labels >= 0)).item())
    return np.array(shares)


def publish(trial: Trial, rows: list[Row], folder: Path) -> str:
    """Write ``defenses.json``, ``defenses.csv`` and ``report.html``, and return the table in Markdown."""
    attack = copy.copy(trial.parts.attack)
    attack.bind(next(iter(trial.victims.values())), trial.parts.source)
    headline, quality = attack.headline, attack.quality
    cells = {(row["victim"], row["defense"], row["condition"], row["metric"]): row for row in rows}
    pairs = list(dict.fromkeys((row["victim"], row["defense"]) for row in rows))
    columns = {"clean": ("clean", quality[0]), **{patch: (patch, headline[0]) for patch in PATCHES}}
    if any(row["condition"] == "certified" for row in rows):
        columns["certified"] = ("certified", "accuracy")
    table = Table(
        title=f"Defences against {attack.task} patches",
        verdict=_verdict(rows),
        quality=attack.metrics_known[quality[0]].label,
        metric=attack.metrics_known[headline[0]].label,
        stronger=attack.metrics_known[headline[0]].stronger,
        patches=PATCHES,
        columns=list(columns),
        rows=[
            (victim, defense, {name: cells.get((victim, defense, *key)) for name, key in columns.items()})
            for victim, defense in pairs
        ],
        command=trial.command,
        versions=pipeline.versions(),
    )
    files.write(folder / "defenses.csv", _csv(rows))
    write_table(folder / "report.html", table)
    return _markdown(table)


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


def _csv(rows: list[Row]) -> str:
    """Tidy: a line for each row, an empty cell where it has no such value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _markdown(table: Table) -> str:
    """The table for a README: means and, for the patches, intervals."""
    heads = [{"clean": table.quality}.get(name, name) for name in table.columns]
    lines = ["| victim | defence | " + " | ".join(heads) + " |", "| --- | --- |" + " ---: |" * len(heads)]
    for victim, defense, cells in table.rows:
        shown = [
            "–" if cell is None else "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**cell) for cell in cells.values()
        ]
        lines.append(f"| {victim} | {defense} | " + " | ".join(shown) + " |")
    return "\n".join([table.verdict, "", *lines, "", f"Patches: {table.metric}; means and 95 % intervals."])

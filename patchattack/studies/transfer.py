"""Every patch on every victim: crafted on one, tested on all (Szegedy et al. 2014; Ranjan et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from patchattack import evaluation, files, statistics
from patchattack.attacks.attack import Attack, Textures
from patchattack.controls import always, controls
from patchattack.data.cached import CachedSource
from patchattack.eot.renderer import Renderer
from patchattack.evaluation import Evaluator, References, Row
from patchattack.job import TEST, VALIDATION, Fabric, Settings, bind_victim, check_tasks
from patchattack.patch import Patch
from patchattack.pipeline import versions
from patchattack.reporting.transfer import Matrix, write_matrix
from patchattack.runs import all_held_out
from patchattack.scene import Source
from patchattack.studies.study import publish_table
from patchattack.victims.victim import Victim


@dataclass(frozen=True)
class TransferStudy:
    """What is tested on what.

    Attributes:
        attack: gives the metrics.
        source: of scenes.
        renderer: puts every patch at the same places.
        victims: name to victim, the columns.
        patches: name to patch, the rows; the first gives the controls their shape.
        settings: split, scenes and draws.
        seed: of the draws.
        held_out: indices of the scenes to measure on.
    """

    attack: Attack
    source: Source
    renderer: Renderer
    victims: Mapping[str, Victim]
    patches: Mapping[str, Patch]
    settings: Settings
    seed: int
    held_out: Callable[[Source, Settings], list[int]] = all_held_out


def measure(study: TransferStudy, fabric: Fabric) -> list[Row]:
    """The primary metric of every patch and control on every victim.

    Returns:
        Rows of patch, victim, metric, region, mean, low, high and n (scenes).

    Raises:
        InputError: a victim is for another task than the attack, or no scene is held out.
    """
    source = CachedSource(study.source, study.settings.memory_gb * 1e9)
    rows = []
    check_tasks(study.attack, study.victims)
    for name, victim in study.victims.items():
        attack, predict, scenes = bind_victim(study.attack, victim, source, fabric)
        indices = study.held_out(scenes, study.settings)
        references = References(predict, study.settings.memory_gb * 1e9)
        for place, (crafted, patch) in enumerate(study.patches.items()):
            evaluator = Evaluator(
                *(predict, attack, study.renderer, references, patch, scenes, fabric.device, (study.seed, TEST))
            )
            # Those that every patch shares, once.
            shared = {one: texture for one, texture in controls(patch).items() if one not in ("mean", "shuffled")}
            others: dict[str, Textures] = {}
            if place == 0:
                validation = study.settings.split_indices(len(scenes))[1]
                drawn = replace(evaluator, key=(study.seed, VALIDATION)).best_drawn(validation)
                others = {
                    **shared,
                    **attack.controls(scenes, patch),
                    "drawn": always(drawn.texture(*patch.mask.shape[1:])),
                }
            textures = {**others, crafted: always(patch().detach())}
            measured = evaluator.measure(
                textures,
                indices,
                study.settings.test_draws,
                progress=partial(tqdm, desc=f"{crafted} on {name}", dynamic_ncols=True),
            )
            metric, region = attack.primary_metric
            known = attack.metric_info[metric]
            for condition in (*(["clean"] if place == 0 else []), *textures):
                values = evaluation.per_scene(measured, condition, attack.primary_metric)
                cell: Row = {"metric": metric, "region": region, **statistics.estimate(values, known.rate)}
                rows.append({"patch": condition, "victim": name} | cell)
        victim.cpu()
    return rows


def _beats(patch: Row, random: Row, stronger: str) -> bool:
    """The intervals are apart, in the way of the stronger attack."""
    return bool(patch["low"] > random["high"] if stronger == "higher" else patch["high"] < random["low"])


def publish(study: TransferStudy, rows: list[Row], folder: Path, command: str) -> str:
    """Write ``transfer.json``, ``transfer.html`` and ``table.tex``, and return the table in Markdown."""
    attack = study.attack.bound(next(iter(study.victims.values())), study.source)
    metric = attack.metric_info[attack.primary_metric[0]]
    patches, victims = (list(dict.fromkeys(row[key] for row in rows)) for key in ("patch", "victim"))
    cells = {(row["patch"], row["victim"]): row for row in rows}
    files.write_json(folder / "transfer.json", rows)
    foreign = [(patch, victim) for patch in study.patches for victim in victims if patch != victim]
    beats = [pair for pair in foreign if _beats(cells[pair], cells["random", pair[1]], metric.stronger)]
    verdict = (
        f"On victims that they were not crafted on, {len(beats)} of {len(foreign)} patches beat the random patch with "
        "intervals apart."
    )
    write_matrix(
        folder / "transfer.html",
        Matrix(
            title=f"Transfer of {attack.task} patches",
            verdict=verdict,
            label=metric.label,
            stronger=metric.stronger,
            patches=patches,
            victims=victims,
            cells=cells,
            command=command,
            versions=versions(),
        ),
    )
    lines = [[patch, *(statistics.with_interval(cells[patch, victim]) for victim in victims)] for patch in patches]
    note = f"{metric.label[0].upper()}{metric.label[1:]}: means and 95 % intervals."
    return publish_table(folder, ["patch", *victims], lines, 1, verdict, note)

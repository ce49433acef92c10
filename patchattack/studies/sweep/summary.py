"""From the table of views to numbers with intervals, what the patch does beyond chance, and the report."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchattack import files, statistics
from patchattack.attacks.attack import Attack, Metric
from patchattack.controls import with_article
from patchattack.errors import InputError
from patchattack.evaluation import LOSS, Row
from patchattack.job import spread
from patchattack.reporting.report import Example, example
from patchattack.reporting.sweep_numbers import Evidence, PlottedAxis
from patchattack.statistics import FEWEST, Outcome, too_few
from patchattack.studies.sweep.axis import BASELINE, CROSS, Axis, Level, Point
from patchattack.studies.sweep.bench import Bench
from patchattack.studies.sweep.extremes import at_place, break_level, worst_place
from patchattack.studies.sweep.measure import KEYS, ViewTable
from patchattack.studies.sweep.rings import RINGS

MAPS = ("grid", "half_sphere")  # kinds of axes whose levels are places
SHOWN_WORST = ("random", "patch")
EXAMPLES = 4  # scenes that the report shows
Pair = tuple[str, str]  # victim and patch


@dataclass(frozen=True)
class Summary:
    """What a sweep has found.

    Attributes:
        rows: victim, patch, axis, level, condition, metric, region, mean, low, high (95 %), n (scenes).
        excess: victim, patch, axis, level, mean, low, high, p, p_adjusted, n: patch minus random patch in the
            primary metric, paired by scene, positive where the patch is the stronger attack; p of the sign-flip
            test, adjusted over all rows (Holm).
        rivals: the same at the baseline against every control, with its name as ``condition``, the strongest first;
            p is of each by itself.
        destruction: victim, patch, axis, level, rate, low, high, n: fraction of the baseline's successes that the level
            undoes (Kurakin et al. 2016, equation 2), the mean over scenes.
        breaks: victim, patch, axis and what :func:`break_level` says.
        worst: victim, patch, axis, level, condition (random, patch), mean, low, high, n: the primary metric where the
            patch is strongest, as :func:`worst_place` chooses it; n is of the other half of the scenes.
    """

    rows: list[Row]
    excess: list[Row]
    rivals: list[Row]
    destruction: list[Row]
    breaks: list[Row]
    worst: list[Row]


@dataclass(frozen=True)
class MeasuredPoint:
    """One point for one victim and patch.

    Attributes:
        bench: victim and patch.
        point: where.
        values: condition to metric (``metric/region``) to ``[n, draws]``, NaN where unknown.
    """

    bench: Bench
    point: Point
    values: Mapping[str, Mapping[str, np.ndarray]]

    def per_scene(self, condition: str, metric: str) -> np.ndarray:
        """``[n]`` means over the draws that are known."""
        return _mean_of_draws(self.values[condition][metric])

    def effects(self, condition: str) -> np.ndarray:
        """``[n]`` the primary metric, signed so that more is a stronger attack."""
        sign = self.bench.attack.metric_info[self.bench.attack.primary_metric[0]].sign
        return sign * self.per_scene(condition, "/".join(self.bench.attack.primary_metric))

    @property
    def key(self) -> Row:
        """Where this is, for rows."""
        names = {"victim": self.bench.victim, "patch": self.bench.crafted}
        return names | {"axis": self.point.axis, "level": self.point.level}


def _mean_of_draws(values: np.ndarray) -> np.ndarray:
    """``[n]`` of ``[n, draws]``, over those that are known."""
    known = (~np.isnan(values)).sum(axis=1)
    return np.where(known > 0, np.nansum(values, axis=1) / np.maximum(known, 1), np.nan)


def read(path: Path, table: ViewTable) -> Iterator[MeasuredPoint]:
    """``views.csv``, one point at a time.

    Raises:
        InputError: it does not hold the numbers of every view.
    """
    benches = {(one.victim, one.crafted): (one, known) for one, known in zip(table.benches, table.known, strict=True)}
    points = {(point.axis, point.text): point for point in table.points}
    first = len(KEYS)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            next(rows)
            for (victim, crafted, axis, text), group in itertools.groupby(rows, key=lambda row: tuple(row[:4])):
                bench, known = benches[victim, crafted]
                cells: dict[str, list[list[str]]] = {}
                for row in group:
                    if len(row) != len(table.columns):
                        raise ValueError(f"{len(row)} cells in a row instead of {len(table.columns)}")
                    cells.setdefault(row[first - 1], []).append(row[first : first + len(table.metrics)])
                values = {}
                if cells.keys() != set(bench.conditions):
                    raise ValueError(f"rows of {', '.join(cells)}")
                for condition, lines in cells.items():
                    numbers = np.array([[float(cell or "nan") for cell in line] for line in lines])
                    columns = numbers.T.reshape(len(table.metrics), len(bench.indices), bench.draws)
                    pairs = zip(table.metrics, columns, strict=True)
                    values[condition] = {metric: column for metric, column in pairs if metric in known}
                yield MeasuredPoint(bench, points[axis, text], values)
    except (ValueError, LookupError, csv.Error) as error:
        raise InputError(
            f"{path}: expected the rows of this evaluation, got {error!r}; name another output=FOLDER"
        ) from error


def summarise(path: Path, table: ViewTable, axes: Mapping[str, Axis], margin: float) -> Summary:
    """All statistics of a table, point by point.

    Args:
        path: of ``views.csv``.
        table: that it was made from.
        axes: name to axis.
        margin: as in :func:`successes`.
    """
    summary = Summary([], [], [], [], [], [])
    at_baseline: dict[Pair, np.ndarray] = {}
    of_axes: dict[tuple[str, str, str], list[_Scenes]] = {}
    for measured in read(path, table):
        bench, pair = measured.bench, (measured.bench.victim, measured.bench.crafted)
        rate = bench.attack.metric_info[bench.attack.primary_metric[0]].rate
        for condition in measured.values:
            summary.rows.extend(_means(measured, condition))
        summary.excess.append(_beyond(measured, "random", rate))
        won = successes(measured, margin)
        if measured.point.axis != BASELINE:
            summary.destruction.append(measured.key | _destruction_rate(at_baseline[pair], won))
            textures = {one: measured.per_scene(one, "/".join(bench.attack.primary_metric)) for one in SHOWN_WORST}
            of_axes.setdefault((*pair, measured.point.axis), []).append(_Scenes(measured.point.level, won, textures))
            continue
        at_baseline[pair] = won
        others = [condition for condition in measured.values if condition not in ("clean", "patch")]
        others.sort(key=lambda one: statistics.mean(measured.effects(one)), reverse=True)
        summary.rivals.extend({"condition": one} | _beyond(measured, one, rate) for one in others)
    for row, p in zip(summary.excess, statistics.holm([row["p"] for row in summary.excess]), strict=True):
        row["p_adjusted"] = p
    metric = table.benches[0].attack.metric_info[table.benches[0].attack.primary_metric[0]]
    for (victim, crafted, name), levels in of_axes.items():
        key = {"victim": victim, "patch": crafted, "axis": name}
        axis = axes.get(name)  # crossed axes have none
        if axis is not None and axis.breaks and len(levels) > 1:
            numbers = [float(one.level) for one in levels]  # type: ignore[arg-type]
            won = np.array([_mean_of_draws(one.won) for one in levels])
            summary.breaks.append(key | break_level(numbers, won))
        if axis is not None and axis.kind in MAPS and len(levels) > 1:
            summary.worst.extend(key | row for row in _worst(metric, levels))
    return summary


@dataclass(frozen=True)
class _Scenes:
    """What the scenes say at one level of an axis: ``won [n, draws]``, and the primary metric ``[n]`` by condition."""

    level: Level
    won: np.ndarray
    textures: Mapping[str, np.ndarray]


def _worst(metric: Metric, levels: Sequence[_Scenes]) -> Iterator[Row]:
    effects = metric.sign * np.array([one.textures["patch"] for one in levels])
    place = worst_place([one.level for one in levels], effects)
    for one in levels:
        if one.level == place:
            for condition, values in one.textures.items():
                yield {"level": place, "condition": condition} | at_place(values, metric.rate)


def _means(measured: MeasuredPoint, condition: str) -> Iterator[Row]:
    for name in measured.values[condition]:
        metric, _, region = name.rpartition("/")
        values = measured.per_scene(condition, name)
        rate = measured.bench.attack.metric_info.get(metric, LOSS).rate
        row = {"condition": condition, "metric": metric, "region": region}
        yield measured.key | row | statistics.estimate(values, rate)


def _beyond(measured: MeasuredPoint, control: str, rate: bool) -> Row:
    """What the patch does beyond a control."""
    differences = measured.effects("patch") - measured.effects(control)
    return measured.key | statistics.paired_difference(differences, rate) | {"p": statistics.sign_flip(differences)}


def successes(measured: MeasuredPoint, margin: float) -> np.ndarray:
    """``[n, draws]``: 1 where the patch won, 0 where it did not, NaN where there was nothing to win.

    Won is a success of one half or more, as :meth:`Attack.success` counts it.
    """

    def by_metric(values: Mapping[str, np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
        return {tuple(name.rsplit("/", 1)): array for name, array in values.items()}  # type: ignore[misc]

    patch, clean = (by_metric(measured.values[condition]) for condition in ("patch", "clean"))
    rates = measured.bench.attack.success(patch, clean, margin)
    return np.where(np.isnan(rates), np.nan, rates >= 0.5)


def _destruction_rate(before: np.ndarray, now: np.ndarray) -> Row:
    """Of the draws that won ``before``, the share that does not ``now``; a scene counts once."""
    counts = (before == 1) & ~np.isnan(now)
    lost = (counts & (now == 0)).sum(axis=1)
    shares = np.where(counts.any(axis=1), lost / np.maximum(counts.sum(axis=1), 1), np.nan)
    rate, low, high = statistics.wilson(shares)
    return {"rate": rate, "low": low, "high": high, "n": int(counts.any(axis=1).sum())}


@dataclass(frozen=True)
class SweepOrigin:
    """Where a sweep comes from.

    Attributes:
        data: the source, in words.
        command: that was typed.
        versions: package to version.
    """

    data: str
    command: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Headline:
    """The answer.

    Attributes:
        outcome: it works where every patch beats every control on every victim.
        sentence: in words, with the excess over the random patch.
        facts: the numbers behind it.
    """

    outcome: Outcome
    sentence: str
    facts: str


def headline(summary: Summary, attack: Attack) -> Headline:
    """What the baseline says, of each patch on each victim.

    A patch works where it does more than a random one (:func:`statistics.effect`) and more than each other control: to
    beat all of them is at least as hard as to beat the strongest, so that needs no correction (Berger 1982).
    """
    name, region = attack.primary_metric
    metric = attack.metric_info[name]
    place = {"outside": " outside the patch", "patch": " on the patch"}.get(region, "")
    excess = [row for row in summary.excess if row["axis"] == BASELINE]
    verdicts, facts = [], []
    for row in excess:
        pair = {key: row[key] for key in ("victim", "patch")}
        rivals = [one for one in summary.rivals if pair.items() <= one.items()]
        unbeaten = [one["condition"] for one in rivals if not one["low"] > 0]
        beats_chance = statistics.effect(row["low"], row["p_adjusted"])
        verdicts.append((row, beats_chance, unbeaten))
        means = {
            one["condition"]: f"{one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
            for one in summary.rows
            if (pair | {"axis": BASELINE, "metric": name, "region": region}).items() <= one.items()
        }
        strongest = rivals[0]["condition"]
        named = list(dict.fromkeys(["clean", strongest, "random", "patch"]))
        shown = ", ".join(f"{means[one]} with {with_article(one)}" for one in named)
        facts.append(
            f"{row['patch']} on {row['victim']}: {metric.label}{place} {shown}; {row['n']} test scenes, 95 % intervals."
        )
    count = len(summary.excess)
    test = f"after Holm's correction over {count} points" if count > 1 else "by the sign-flip test"
    row, beats_chance, unbeaten = verdicts[0]
    unbeaten = [one for one in unbeaten if one != "random"]
    beyond = f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    works = all(beats and not others for _, beats, others in verdicts)
    outcome = Outcome.WORKS if works else Outcome.FAILS
    if row["n"] < FEWEST:
        outcome, sentence = Outcome.INCONCLUSIVE, too_few(row["n"], "test scenes")
    elif len(verdicts) > 1:
        won = sum(beats and not others for _, beats, others in verdicts)
        best = max(excess, key=lambda one: one["mean"])
        sentence = (
            f"{won} of {len(verdicts)} pairs of patch and victim do more than random patches and all other controls; "
            f"the largest excess over random in {metric.label}{place} is {best['mean']:.3f} [{best['low']:.3f}, "
            f"{best['high']:.3f}], of {best['patch']} on {best['victim']}."
        )
    elif not beats_chance:
        sentence = (
            f"No effect is shown: beyond a random patch of its size it moves the {metric.label}{place} by {beyond} "
            f"(p = {row['p_adjusted']:.2g} {test})."
        )
    else:
        sentence = (
            f"The patch moves the {metric.label}{place} by {beyond} more than a random patch of its size "
            f"(p = {row['p_adjusted']:.2g} {test})"
        )
        sentence += f", but by no more than {with_article(unbeaten[0])} does." if unbeaten else "."
    return Headline(outcome, sentence, " ".join(facts))


def examples(bench: Bench, baseline: Point, strongest: str) -> list[Example]:
    """Scenes to look at, outputs drawn on one scale: without, with the strongest control, random and the patch."""
    result = []
    for place in spread(range(len(bench.indices)), EXAMPLES):
        look = bench.look(baseline.renderer, place, 0)
        conditions = list(bench.textures)
        chosen = [conditions.index(one) for one in dict.fromkeys([strongest, "random", "patch"])]
        frames = [look.scene.frames[0].cpu(), *(look.view.frames[row].cpu() for row in chosen)]
        outputs = [look.clean[:1], *(look.output[row : row + 1] for row in chosen)]
        names = ["clean", *(conditions[row] for row in chosen)]
        result.append(example(bench.attack, names, frames, outputs))
    return result


def check_format(name: str) -> None:
    """Refuse a format before any work starts.

    Raises:
        InputError: there is no such format, or what writes it is not installed.
    """
    if name not in ("csv", "parquet"):
        raise InputError(f"format: expected csv or parquet, got {name}")
    if name == "parquet":
        try:
            import polars  # noqa: F401
        except ImportError as error:
            raise InputError("format=parquet: expected polars, got no such package; pip install polars") from error


def to_parquet(path: Path, table: ViewTable) -> Path:
    """``views.parquet`` beside ``views.csv``, a piece at a time."""
    import polars

    words = {"victim", "patch", "axis", "level", "condition"}
    kinds: dict[str, Any] = {
        name: polars.String if name in words else polars.Int64 if name in KEYS else polars.Float64
        for name in table.columns
    }
    target = path.with_suffix(".parquet")
    polars.scan_csv(path, schema=kinds).sink_parquet(target)
    return target


def write(folder: Path, summary: Summary, answer: Headline, left_out: Sequence[str]) -> None:
    """``summary.json``."""
    whole = {
        "sentence": answer.sentence,
        "works": answer.outcome is Outcome.WORKS,
        "outcome": answer.outcome,
        "facts": answer.facts,
        "excess": summary.excess,
        "rivals": summary.rivals,
        "destruction": summary.destruction,
        "breaks": summary.breaks,
        "worst": summary.worst,
        "rows": summary.rows,
        "left_out": list(left_out),
    }
    files.write_json(folder / "summary.json", whole)


def evidence(
    table: ViewTable,
    axes: Mapping[str, Axis],
    summary: Summary,
    answer: Headline,
    left_out: Sequence[str],
    origin: SweepOrigin,
) -> Evidence:
    """All that the report shows.

    Args:
        table: what was measured.
        axes: as they were asked for.
        summary, answer: what was found.
        left_out: points that could not be rendered, with the reason.
        origin: where the sweep comes from.
    """
    bench, baseline = table.benches[0], table.points[0]
    metrics = {name: metric for one in table.benches for name, metric in one.attack.metric_info.items()}
    levels: dict[str, list[Level]] = {}
    for point in table.points[1:]:
        levels.setdefault(point.axis, []).append(point.level)
    legend, legend_text = bench.attack.legend()
    patches = {one.crafted: torch.cat([one.patch(), one.patch.mask]).detach() for one in table.benches}
    victims = dict.fromkeys(one.victim for one in table.benches)
    scenes = f"{len(bench.indices)} test scenes × {bench.draws} draws at each of {len(table.points)} points"
    setup = [
        ("Victims" if len(victims) > 1 else "Victim", ", ".join(victims)),
        ("Patches" if len(patches) > 1 else "Patch", ", ".join(patches)),
        ("Data", f"{origin.data}, {scenes}"),
        ("Views", f"{table.views():,}, each condition under the same draws: {', '.join(bench.conditions)}"),
        ("Seed", f"{bench.seed}"),
    ]
    if left_out:
        setup.append(("Left out", "; ".join(left_out)))
    return Evidence(
        title=f"{bench.attack.task.capitalize()}: {', '.join(patches)} against {', '.join(victims)}",
        sentence=answer.sentence,
        outcome=answer.outcome,
        facts=answer.facts,
        setup=setup,
        command=origin.command,
        versions=origin.versions,
        axes={
            name: PlottedAxis(
                CROSS.join(axes[one].label for one in name.split(CROSS)),
                levels[name],
                axes[name].kind if name in axes else "category",
            )
            for name in levels
        },
        rows=summary.rows,
        excess=summary.excess,
        destruction=summary.destruction,
        breaks=summary.breaks,
        worst=summary.worst,
        reach=(bench.attack.reach, RINGS) if bench.attack.reach else None,
        primary_metric=bench.attack.primary_metric,
        labels={name: metric.label for name, metric in metrics.items()} | {"loss": "attack loss"},
        arrows={name: metric.stronger for name, metric in metrics.items()} | {"loss": "lower"},
        examples=examples(bench, baseline, summary.rivals[0]["condition"]),
        legend=legend,
        legend_text=legend_text,
        changes_legend=bench.attack.changes_legend(),
        patches=patches,
    )

"""Runs side by side: what differs in their configs, and in what came of it."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from patchattack import files
from patchattack.attacks.attack import Metric
from patchattack.errors import InputError, assignment, one_line
from patchattack.patch import Patch, read_facts
from patchattack.reporting.page import (
    ARROWS,
    DAY,
    axes_of,
    by_metric,
    draw_intervals,
    figure_style,
    label_ends,
    number,
    regions_of,
    svg,
    write_page,
)
from patchattack.tracking import MetricsCsv

# Colours that no common colour blindness confuses next to each other; then again with other strokes.
LINES = [(DAY[role], style) for style in ("-", "--", ":") for role in ("patch", "random", "ink", "muted", "calm")]
IDLE = {"output", "resume", "tracker"}  # where a run lies and who watches it: not what it does
ABSENT = "–"


@dataclass(frozen=True)
class Run:
    """What a finished run has left.

    Attributes:
        name: of its folder.
        config: key to value, keys with dots.
        task: of its attack.
        primary_metric: metric and region that its attack is judged by.
        rows: of results.json.
        history: the lines of metrics.csv.
        patch: ``[4, h, w]`` RGBA in [0, 1].
        facts: of patch.json.
    """

    name: str
    config: dict[str, Any]
    task: str
    primary_metric: tuple[str, str]
    rows: list[dict[str, Any]]
    history: list[dict[str, float]]
    patch: Tensor
    facts: dict[str, Any]

    def words(self) -> dict[str, Metric]:
        """Every metric's name with how to read it."""
        return {row["metric"]: Metric(row["label"], row["stronger"]) for row in self.rows}


def load_run(folder: Path) -> Run:
    """Read the folder of a finished run, which may be a stranger's: all in it is data.

    Raises:
        InputError: it is not the folder of a finished run.
    """
    try:
        # The last of a run's files.
        rows = files.read_rows(folder / "results.json", ("condition", "metric", "region"), ("mean", "low", "high", "n"))
        patch = Patch.load(folder / "patch.png")
        config = yaml.safe_load((folder / "config.yaml").read_text())
        if not isinstance(config, dict):
            raise ValueError(f"expected a config, got {config!r}")
        facts = read_facts(folder / "patch.png")
        metric, region = facts["primary_metric"]
        run = Run(
            name=folder.resolve().name,
            config=dict(_flat(config)),
            task=str(facts["task"]),
            primary_metric=(str(metric), str(region)),
            rows=rows,
            history=MetricsCsv.read(folder / "metrics.csv"),
            patch=torch.cat([patch(), patch.mask]).detach(),
            facts=facts,
        )
        if not all(isinstance(row["label"], str) and row["stronger"] in ARROWS for row in rows):
            raise ValueError("rows without the words for their metrics")
        if run.primary_metric[0] not in run.words():
            raise ValueError(f"no row of {run.primary_metric[0]}")
        return run
    except InputError as error:
        raise InputError(f"runs: {folder}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise InputError(
            f"runs: expected the folders of finished runs of this version, got {folder} ({one_line(error)}); "
            f"finish it by patchattack train {assignment('resume', folder)}, or leave it out"
        ) from error


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _flat(value, f"{prefix}{key}.")
    else:
        yield prefix.rstrip("."), node


def load_runs(folders: Sequence[str]) -> list[Run]:
    """Runs of one task.

    Raises:
        InputError: fewer than two, one that is not finished, or runs of several tasks.
    """
    if len(folders) < 2:
        raise InputError(
            f"runs: expected the folders of at least two runs, got {', '.join(folders) or 'none'}; "
            "patchattack compare RUN RUN"
        )
    runs = [load_run(Path(folder)) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        runs = [replace(run, name=folder) for folder, run in zip(folders, runs, strict=True)]
    first = runs[0]
    for folder, run in zip(folders, runs, strict=True):
        if run.task != first.task:
            raise InputError(
                f"runs: expected runs of one task, got {folders[0]} of {first.task} and {folder} of {run.task}; "
                "compare them apart"
            )
    return runs


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Keys of the configs whose values are not those of all runs, to the values as JSON; what is absent is a dash."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key.partition(".")[0] not in IDLE)
    found = {key: [files.json_text(run.config[key]) if key in run.config else ABSENT for run in runs] for key in keys}
    differing = {key: values for key, values in found.items() if len(set(values)) > 1}
    # What the renderer takes from the groups is among them already.
    twins = {key for key in differing if differing[key] == differing.get(key.removeprefix("renderer."))}
    return {key: values for key, values in differing.items() if not (key.startswith("renderer.") and key in twins)}


def write_comparison(path: Path, runs: Sequence[Run], command: str, gaps: Sequence[str] = ()) -> None:
    """Write one HTML file that asks nothing of any server and runs no script.

    Args:
        path: of the file.
        runs: of one task; the first one's primary metric is the comparison's.
        command: repeats the comparison.
        gaps: runs that are missing, and why.

    Raises:
        InputError: the file cannot be written.
    """
    primary_metric = runs[0].primary_metric
    words = {name: metric for run in runs for name, metric in run.words().items()}
    metric = words[primary_metric[0]]
    tables = [by_metric(run.rows) for run in runs]
    with figure_style():
        write_page(
            path,
            "compare.html.j2",
            title=f"{len(runs)} {runs[0].task} runs",
            runs=runs,
            sentence=_sentence(runs),
            warnings=[*gaps, *_warnings(runs)],
            differences=differences(runs),
            primary_metric=primary_metric,
            label=metric.label,
            stronger=metric.stronger,
            effect=_draw_effect(runs),
            validation=_draw_curves([run for run in runs if run.primary_metric == primary_metric], "validation/patch"),
            losses=_draw_curves(runs, "attack"),
            tables=tables,
            metrics=list(dict.fromkeys(key for table in tables for key in table)),
            labels={name: one.label for name, one in words.items()},
            arrows={name: ARROWS[one.stronger] for name, one in words.items()},
            regions=regions_of(row for run in runs for row in run.rows),
            command=command,
        )


def primary_row(run: Run, primary_metric: tuple[str, str], condition: str) -> dict[str, Any] | None:
    """A condition's row, if its mean is known."""
    row = by_metric(run.rows).get(primary_metric, {}).get(condition)
    return row if row is not None and math.isfinite(row["mean"]) else None


def _sentence(runs: Sequence[Run]) -> str:
    """Which patch is the strongest, if any is."""
    primary_metric = runs[0].primary_metric
    metric = runs[0].words()[primary_metric[0]]
    found = [(run.name, row) for run in runs if (row := primary_row(run, primary_metric, "patch"))]
    if len(found) < 2:
        return f"Nothing to compare: fewer than two of the runs have measured the {metric.label}."
    (best, first), (other, second) = sorted(found, key=lambda pair: -metric.sign * pair[1]["mean"])[:2]
    shown = [f"{number(row['mean'])} [{number(row['low'])}, {number(row['high'])}]" for row in (first, second)]
    if first["low"] > second["high"] or first["high"] < second["low"]:
        return f"The patch of {best} is the strongest: {metric.label} {shown[0]}; the next, of {other}, has {shown[1]}."
    return f"No patch is shown to be the strongest: {metric.label} {shown[0]} of {best} and {shown[1]} of {other}."


def _warnings(runs: Sequence[Run]) -> list[str]:
    """What makes the numbers less comparable than they look."""
    warnings = []
    made = [run.facts["versions"] for run in runs]
    for package in dict.fromkeys(package for versions in made for package in versions):
        found = [versions.get(package, "unknown") for versions in made]
        if len(set(found)) > 1:
            each = ", ".join(f"{version} ({run.name})" for version, run in zip(found, runs, strict=True))
            warnings.append(f"Made by different versions of {package}: {each}.")
    if len({run.primary_metric for run in runs}) > 1:
        each = ", ".join(f"{' '.join(run.primary_metric)} ({run.name})" for run in runs)
        warnings.append(f"Their attacks want different things, and are judged by different metrics: {each}.")
    scenes = [key for key in differences(runs) if key.startswith(("data.", "trainer.split", "trainer.test_"))]
    if scenes:
        warnings.append(f"Measured on different scenes: {', '.join(scenes)} differ.")
    return warnings


def _draw_effect(runs: Sequence[Run]) -> str:
    """The primary metric of every run's patch, and of the random patch in its place."""
    primary_metric = runs[0].primary_metric
    entries = []
    for run in runs:
        for condition, name in (
            ("patch", textwrap.fill(run.name, 24, break_long_words=False)),
            ("random", "random patch"),
        ):
            if row := primary_row(run, primary_metric, condition):
                entries.append((name, DAY[condition], row))
    figure, axes = axes_of(height=0.7 + 0.33 * len(entries))
    draw_intervals(axes, entries)
    axes.set_xlabel(textwrap.fill(runs[0].words()[primary_metric[0]].label, 50))
    return svg(figure)


def _draw_curves(runs: Sequence[Run], scalar: str) -> str | None:
    """A scalar of metrics.csv over the steps, a line for each run."""
    figure, axes = axes_of(height=max(2.5, 0.5 + 0.16 * len(runs)))
    ends = []
    for run, (colour, style) in zip(runs, itertools.cycle(LINES), strict=False):
        lines = [line for line in run.history if scalar in line]
        if lines:
            steps, values = ([line[key] for line in lines] for key in ("step", scalar))
            axes.plot(steps, values, style, color=colour, linewidth=1.5, marker="o", markersize=2.5)
            ends.append((textwrap.shorten(run.name, 24, placeholder="…"), colour, values[-1]))
    if not ends:
        return None
    axes.set_xlabel("step")
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", color=DAY["rule"], linewidth=0.6)
    axes.set_ylim(axes.get_ylim())
    label_ends(axes, ends)
    return svg(figure)

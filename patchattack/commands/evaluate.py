"""Evaluate patches over size, angle, place, light and camera, compared with their controls.

patchattack evaluate run=RUN
patchattack evaluate run=RUN axes=[size,yaw] axes.yaw.levels=[0,20,40] sweep=factorial
patchattack evaluate attack=classification patch=photo.png victims=[classifier_residual,classifier_transformer]

With ``output=FOLDER`` of an earlier call, what it holds is not measured again.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchattack import cli, folders
from patchattack.errors import InputError

FREE_TO_CHANGE = ("batch=", "workers=", "output=", "format=")  # they change no number


def main() -> None:
    """Compose the config from the command line and measure."""
    cli.command("evaluate", run, of_run="run", unbuilt=("renderer", "data"))


def run(parts: dict[str, Any]) -> None:
    """Measure or resume, and print the answer and where everything is."""
    from patchattack import pipeline, processes, runs
    from patchattack.reporting.sweep import write_evidence
    from patchattack.studies import study
    from patchattack.studies.sweep import bench, measure, summary
    from patchattack.studies.sweep.axis import points
    from patchattack.webcam.camera_victim import select_victims

    _check(parts)
    fabric = processes.start(parts["trainer"])
    workers = parts["workers"] or (os.cpu_count() if fabric.device.type == "cpu" else 1) or 1
    given = [str(one) for one in (parts["runs"] or [parts["run"] or parts["patch"]])]
    source = cli.make(parts["data"])
    sweep = bench.Sweep(
        attack=parts["attack"],
        source=source,
        victims=select_victims(parts["victims"], parts["victim"]),
        patches=runs.load_patches(given, parts["size_mm"]),
        points=points(parts["axes"], parts["renderer"], cli.make, factorial=parts["sweep"] == "factorial"),
        settings=replace(parts["trainer"], test_scenes=parts["scenes"], test_draws=parts["draws"]),
        seed=parts["seed"],
        held_out=runs.HeldOut(given, parts["data"], source, cli.make),
    )
    command = cli.command_line()
    with measure.one_thread():
        benches = bench.benches(sweep, fabric)
        kept, left_out = bench.fitting(sweep.points, benches)
        for reason in left_out:
            print(f"left out: {reason}", file=sys.stderr)
        table = measure.ViewTable(benches, kept)
        stem = None if parts["run"] is None else Path(str(parts["run"])) / "evaluation"
        folder = folders.new_folder(parts["output"], "evaluation", stem)
        asked = study.settings_of(command, FREE_TO_CHANGE) | {"versions": pipeline.versions()}
        study.check_settings(folder, asked | measure.plan(table))
        first = measure.begin(folder, table)
        with cli.resumable(cli.command_into(folder)):
            measure.measure(folder, table, first, parts["batch"], workers)
        found = summary.summarise(folder / "views.csv", table, parts["axes"], parts["margin"])
        answer = summary.headline(found, benches[0].attack)
        summary.write(folder, found, answer, left_out)
        origin = summary.SweepOrigin(type(source).__name__, command, pipeline.versions())
        write_evidence(folder, summary.evidence(table, parts["axes"], found, answer, left_out, origin))
    if parts["format"] == "parquet":
        summary.to_parquet(folder / "views.csv", table)
    print(f"\n{answer.sentence}\n{answer.facts}\n")
    views = "views.parquet" if parts["format"] == "parquet" else "views.csv"
    cli.print_files(folder, report="report.html", numbers="summary.json", views=views)


def _check(parts: dict[str, Any]) -> None:
    """Refuse what no part of the package meets."""
    from patchattack.studies.sweep.summary import check_format

    sources = [name for name in ("run", "runs") if parts[name]] + ["patch"] * isinstance(parts["patch"], str)
    if len(sources) != 1:
        raise InputError(
            "expected one of run=RUN, runs=[RUN,RUN] and patch=FILE, "
            f"got {' and '.join(sources) or 'none'}; name what is to be measured"
        )
    if parts["sweep"] not in ("single", "factorial"):
        raise InputError(f"sweep: expected single or factorial, got {parts['sweep']}")
    for name in ("scenes", "draws", "batch", "workers"):
        value = parts[name]
        if not (name == "workers" and value is None) and not (type(value) is int and value > 0):
            raise InputError(f"{name}: expected an integer >= 1, got {value}")
    check_format(parts["format"])

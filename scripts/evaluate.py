"""Measure patches under one condition after another, beside their controls.

python scripts/evaluate.py run=RUN
python scripts/evaluate.py run=RUN axes=[size,yaw] axes.yaw.levels=[0,20,40] sweep=factorial
python scripts/evaluate.py attack=classification patch=photo.png victims=[classifier_residual,classifier_transformer]
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from patchattack import cli
from patchattack.errors import InputError, VictimError, assignment

FREE_TO_CHANGE = ("batch", "workers", "output", "format")  # they change no number


def main() -> None:
    """Compose the config from the command line and measure."""
    cli.command("evaluate", run, of_run="run", unbuilt=("renderer", "data"))


def run(parts: dict[str, Any]) -> None:
    """Measure or go on, and print the answer and where everything is."""
    from patchattack import pipeline, runs
    from patchattack.reporting.evidence import write_evidence
    from patchattack.sweep import measure, summary
    from patchattack.sweep.axis import points
    from patchattack.webcam.trial import contestants

    _check(parts)
    fabric = pipeline.start_fabric(parts["trainer"])
    workers = parts["workers"] or (os.cpu_count() if fabric.device.type == "cpu" else 1) or 1
    build = partial(cli.instantiate, _convert_="all")
    given = [str(one) for one in (parts["runs"] or [parts["run"] or parts["patch"]])]
    source = build(parts["data"])
    sweep = measure.Sweep(
        attack=parts["attack"],
        source=source,
        victims=contestants(parts["victims"], parts["victim"]),
        patches=runs.load_patches(given, parts["size_mm"]),
        points=points(
            parts["axes"],
            parts["renderer"],
            build,
            factorial=parts["sweep"] == "factorial",
        ),
        settings=replace(parts["trainer"], test_scenes=parts["scenes"], test_draws=parts["draws"]),
        seed=parts["seed"],
        held_out=runs.HeldOut(given, parts["data"], source, build),
    )
    command = cli.command_line("scripts/evaluate.py")
    asked = [one for one in shlex.split(command) if one.split("=", 1)[0] not in FREE_TO_CHANGE]
    identity = {"command": shlex.join(asked), "versions": pipeline.versions()}
    with measure.one_thread():
        benches = measure.benches(sweep, fabric)
        kept, left_out = measure.fitting(sweep.points, benches)
        for reason in left_out:
            print(f"left out: {reason}", file=sys.stderr)
        table = measure.Table(benches, kept)
        if parts["resume"] is not None:
            folder = Path(str(parts["resume"]))
            cli.claim(folder)
            first = measure.done(folder, table, identity)
        else:
            folder, first = _folder(parts), 0
            measure.begin(folder, table, identity)
        again = f"{command} {assignment('resume', folder)}"
        try:
            with cli.interruptible(again):
                measure.measure(folder, table, first, parts["batch"], workers)
        except VictimError as stop:
            raise InputError(f"{stop}; what was measured is kept, go on with: {again}") from stop
        found = summary.summarise(folder / "views.csv", table, parts["margin"])
        answer = summary.headline(found, benches[0].attack)
        summary.write(folder, found, answer, left_out)
        origin = summary.Origin(type(source).__name__, command, pipeline.versions())
        write_evidence(folder, summary.evidence(table, parts["axes"], found, answer, left_out, origin))
    views = summary.to_parquet(folder / "views.csv", table) if parts["format"] == "parquet" else folder / "views.csv"
    print(f"\n{answer.sentence}\n{answer.facts}\n")
    for name, path in (("report", folder / "report.html"), ("numbers", folder / "summary.json"), ("views", views)):
        print(f"  {name:9} {path}")


def _check(parts: dict[str, Any]) -> None:
    """Refuse what no part of the package meets."""
    from patchattack.sweep.summary import check_format

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
            raise InputError(f"{name}: expected a whole number from 1 on, got {value}")
    if type(parts["seed"]) is not int or parts["seed"] < 0:
        raise InputError(f"seed: expected a whole number from 0 on, got {parts['seed']}")
    check_format(parts["format"])


def _folder(parts: dict[str, Any]) -> Path:
    """A new one: what ``output`` names, ``evaluation`` in the run's, or one by the time."""
    stem = None if parts["run"] is None else Path(str(parts["run"])) / "evaluation"
    folder = cli.new_folder(parts["output"], "evaluation", stem)
    if (folder / "plan.json").exists():
        raise InputError(
            f"output={folder}: expected a new folder, got that of an evaluation; "
            f"go on by {assignment('resume', folder)}"
        )
    return folder


if __name__ == "__main__":
    main()

"""Defences: what each costs, and what it is worth against transferred and adaptive patches.

patchattack defenses run=RUN defenses=[jpeg,median,inpainting] [victims=[a,b]] [trainer.steps=200]

Adaptive patches are trained here, each for ``trainer.steps``. With ``output=FOLDER`` of an earlier call, what it holds
is not computed again.
"""

from __future__ import annotations

from typing import Any

from patchattack import cli, folders


def main() -> None:
    """Compose the config from the command line and measure."""
    cli.command("defenses", run, of_run="run", unbuilt=("data",))


def run(given: dict[str, Any]) -> None:
    """Measure, write the table and print it."""
    from patchattack import assembly, processes, runs
    from patchattack.patch import Patch
    from patchattack.studies import defenses

    run = folders.run_folder(given["run"])
    data = given["data"]
    given["data"] = cli.make(data)
    names = {"data": "source", "trainer": "settings", "print": "sheet"}
    keys = ("seed", "attack", "victim", "renderer", "patch", "regularizers", "optimizer", "schedule", "tracker")
    study = defenses.DefenseStudy(
        parts=assembly.Parts(**{names.get(key, key): given[key] for key in (*keys, *names)}),
        victims=given["victims"] or {given["victim"].name: given["victim"]},
        defenses=given["defenses"],
        patch=Patch.load(run / "patch.png"),
        command=cli.command_line(),
        held_out=runs.HeldOut([str(run)], data, given["data"], cli.make),
    )
    folder = folders.new_folder(given["output"], "defenses")
    with cli.resumable(cli.command_into(folder)):
        rows = defenses.measure(study, folder, processes.start(study.parts.settings))
    print(defenses.publish(study, rows, folder))
    cli.print_files(folder, report="report.html", numbers="defenses.csv", patches="adaptive")

"""Ablation study: the contribution of each component of the training.

patchattack ablate attack=classification [trainer.steps=200] [only=[without_nps,without_tv]]
patchattack ablate attack=flow '+ablations.upright={placement.rotation:[0,0]}'

With ``output=FOLDER`` of an earlier call, patches that it holds are not trained again, and one whose training was
interrupted is resumed.
"""

from __future__ import annotations

import sys
from typing import Any

from patchattack import cli, folders

UNBUILT = (
    *("attack", "optimizer", "schedule", "trainer", "renderer", "regularizers", "patch"),  # as ablation.BUILT
    *("printed", "ablations"),
)


def main() -> None:
    """Compose the config from the command line, train and measure."""
    cli.command("ablate", run, unbuilt=UNBUILT)


def run(given: dict[str, Any]) -> None:
    """Train, measure, write the table and print it."""
    from patchattack import processes
    from patchattack.studies import ablation

    names = {"data": "source", "print": "sheet"}
    shared = ("victim", "tracker", *names)
    command = cli.command_line()
    study = ablation.AblationStudy(
        shared={names.get(key, key): given[key] for key in shared},
        config={key: given[key] for key in (*ablation.BUILT, "seed")},
        ablations=ablation.choose(given["ablations"], given["only"]),
        printed=given["printed"],
        build=cli.make,
        command=command,
    )
    variants, left_out = ablation.variants(study)
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    folder = folders.new_folder(given["output"], "ablation")
    with cli.resumable(cli.command_into(folder)):
        table = ablation.measure(study, variants, folder, processes.start(variants[ablation.WHOLE].parts.settings))
    print(ablation.publish(table, folder))
    cli.print_files(folder, report="report.html", numbers="ablations.csv", patches="patches")

"""What each ingredient of a training is worth: one patch with all of them, and one without each.

python scripts/ablate.py attack=classification [trainer.steps=200] [only=[without_nps,without_tv]]
python scripts/ablate.py attack=flow '+ablations.upright={placement.rotation:[0,0]}'

With ``output=FOLDER`` of an earlier call, patches that it holds are not trained again, and one whose training was
interrupted goes on.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from patchattack import cli
from patchattack.errors import InputError, assignment

UNBUILT = ("renderer", "regularizers", "patch", "printed", "ablations")


def main() -> None:
    """Compose the config from the command line, train and measure."""
    cli.command("ablate", run, unbuilt=UNBUILT)


def run(given: dict[str, Any]) -> None:
    """Train, measure, write the table and print it."""
    from patchattack import ablation, pipeline

    if type(given["seed"]) is not int or given["seed"] < 0:
        raise InputError(f"seed: expected a whole number from 0 on, got {given['seed']}")
    names = {"data": "source", "trainer": "settings", "print": "sheet"}
    shared = ("attack", "victim", "optimizer", "schedule", "tracker", *names)
    command = cli.command_line("scripts/ablate.py")
    trial = ablation.Trial(
        shared={names.get(key, key): given[key] for key in shared},
        config={key: given[key] for key in ("renderer", "regularizers", "patch", "seed")},
        ablations=ablation.chosen(given["ablations"], given["only"]),
        printed=given["printed"],
        build=partial(cli.instantiate, _convert_="all"),
        command=command,
    )
    variants, left_out = ablation.variants(trial)
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    folder = cli.new_folder(given["output"], "ablation")
    goes_on = command if given["output"] is not None else f"{command} {assignment('output', folder)}"
    with cli.interruptible(goes_on):
        table = ablation.measure(trial, variants, folder, pipeline.start_fabric(given["trainer"]))
    print(ablation.publish(table, folder))
    for name, file in (("report", "report.html"), ("numbers", "ablations.csv"), ("patches", "patches")):
        print(f"  {name:9} {folder / file}")


if __name__ == "__main__":
    main()

"""What calibrating is worth: patches trained with and without the calibration of an unknown printer, rehearsed alike.

python scripts/calibration_gain.py attack=classification [seeds=[0,1,2]] [trainer.steps=400]

With ``output=FOLDER`` of an earlier call, trainings and rehearsals that it holds are not done again, and a training
that was interrupted goes on.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from patchattack import cli
from patchattack.errors import InputError, assignment

UNBUILT = (
    *("attack", "victim", "data", "defense", "placement", "appearance", "camera", "renderer", "regularizers"),
    *("optimizer", "schedule", "tracker", "trainer", "print", "patch", "fitted", "lab", "drive_by"),
)


def main() -> None:
    """Compose the config from the command line, train, rehearse and compare."""
    cli.command("calibration_gain", run, unbuilt=UNBUILT)


def run(given: dict[str, Any]) -> None:
    """Train, rehearse, write the table and print it."""
    from tqdm import tqdm

    from patchattack import pipeline
    from patchattack.rehearsal import gain

    printers = given["seeds"] if given["printers"] is None else given["printers"]
    for key, numbers in (("seeds", given["seeds"]), ("printers", printers)):
        if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
            raise InputError(f"{key}: expected a list of whole numbers from 0 on, got {numbers}")
    build = partial(cli.instantiate, _convert_="all")
    command = cli.command_line("scripts/calibration_gain.py")
    trial = gain.Trial(
        config={key: value for key, value in given.items() if key not in ("seeds", "printers", "output")},
        build=cli.build,
        printers=gain.paired(given["seeds"], printers),
        shown={"lab": build(given["lab"]), "drive_by": build(given["drive_by"])},
        command=command,
    )
    parts = cli.build(trial.config)
    fabric = pipeline.start_fabric(parts.settings)
    plans = gain.plans(trial, parts, fabric)
    folder = cli.new_folder(given["output"], "calibration_gain")
    progress = partial(tqdm, unit="frame", delay=2, disable=None)
    goes_on = command if given["output"] is not None else f"{command} {assignment('output', folder)}"
    with cli.interruptible(goes_on):
        rows, patches = gain.measure(trial, plans, folder, fabric, progress)
    print(gain.publish(trial, plans, rows, patches, folder))
    for name, file in (("report", "report.html"), ("numbers", "results.csv")):
        print(f"  {name:9} {folder / file}")


if __name__ == "__main__":
    main()

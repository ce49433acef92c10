"""The benefit of calibration: patches trained with and without it, rehearsed alike on unknown printers.

patchattack calibration-gain attack=classification [seeds=[0,1,2]] [trainer.steps=400]

With ``output=FOLDER`` of an earlier call, trainings and rehearsals that it holds are not done again, and a training
that was interrupted is resumed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from patchattack import cli, folders
from patchattack.errors import InputError

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

    from patchattack import processes
    from patchattack.studies import calibration

    printers = given["seeds"] if given["printers"] is None else given["printers"]
    for key, numbers in (("seeds", given["seeds"]), ("printers", printers)):
        if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
            raise InputError(f"{key}: expected a list of integers >= 0, got {numbers}")
    study = calibration.CalibrationStudy(
        config={key: value for key, value in given.items() if key not in ("seeds", "printers", "output")},
        build=cli.build_parts,
        printers=calibration.pair(given["seeds"], printers),
        shown={"lab": cli.make(given["lab"]), "drive_by": cli.make(given["drive_by"])},
        command=cli.command_line(),
    )
    parts = cli.build_parts(study.config)
    fabric = processes.start(parts.settings)
    plans = calibration.plans(study, parts, fabric)
    folder = folders.new_folder(given["output"], "calibration_gain")
    progress = partial(tqdm, unit="frame", delay=2, disable=None)
    with cli.resumable(cli.command_into(folder)):
        rows, patches = calibration.measure(study, plans, folder, fabric, progress)
    print(calibration.publish(study, plans, rows, patches, folder))
    cli.print_files(folder, report="report.html", numbers="results.csv")

"""Rehearse without hardware: print, film in a procedural world, evaluate, compare with the truth.

patchattack rehearse run=RUN
patchattack rehearse run=RUN printer=3 calibrated=true
"""

from __future__ import annotations

from functools import partial
from typing import Any

from patchattack import cli, folders
from patchattack.errors import InputError


def main() -> None:
    """Compose the config from the command line and rehearse."""
    cli.command("rehearse", run, of_run="run", unbuilt=("data",))


def run(parts: dict[str, Any]) -> None:
    """Rehearse, and print the verdicts, the errors of the poses and where everything is."""
    from tqdm import tqdm

    from patchattack import pipeline, processes
    from patchattack.patch import Patch
    from patchattack.printing.fiducials import load_layouts
    from patchattack.rehearsal import rehearse
    from patchattack.rehearsal.unknown import Unknown
    from patchattack.webcam import pass_bys
    from patchattack.webcam.camera_victim import camera_victims, select_victims
    from patchattack.webcam.summary import SessionOrigin

    if type(parts["printer"]) is not int or parts["printer"] < 0:
        raise InputError(f"printer: expected an integer >= 0, got {parts['printer']}")
    folder = folders.run_folder(parts["run"])
    patch = Patch.load(folder / "patch.png")
    sheets = load_layouts(folder / "print" / "layout.json")
    fabric = processes.start(parts["trainer"])

    trials = camera_victims(select_victims(parts["victims"], parts["victim"]), parts["attack"], fabric, parts["margin"])
    plan = rehearse.make_plan(
        *(trials[0], patch, sheets, parts["print"], parts["data"], Unknown.draw(parts["printer"]), parts["seed"]),
        **{key: parts[key] for key in ("size", "fps", "keep", "independent", "pass_by", "control", "radius_mm")},
    )
    output = folders.new_folder(parts["output"], "rehearse")
    origin = SessionOrigin(
        title=f"Rehearsal of {folder.name} without hardware",
        setup=[
            ("Patch", f"{folder}, {patch.size_mm[0]:g} × {patch.size_mm[1]:g} mm"),
            ("Printer and camera", f"simulated, unknown to the patch, number {parts['printer']}"),
            ("Victim", trials[0].name),
            ("Sheet", "flat" if plan.radius_mm is None else f"around an upright cylinder of {plan.radius_mm:g} mm"),
        ],
        command=cli.command_line(),
        versions=pipeline.versions(),
    )
    calibration = rehearse.calibrate(output, plan.unknown) if parts["calibrated"] else None
    progress = partial(tqdm, unit="frame", delay=2, disable=None)
    shown = {"lab": parts["lab"], "drive_by": parts["drive_by"]}
    found = rehearse.rehearse(plan, shown, output, origin, progress)
    for name, part in found["parts"].items():
        print(f"\n{name.replace('_', '-')}: {part['verdict']}", *pass_bys.lines(part["pass_bys"]), sep="\n")
    print("", *rehearse.lines(found), "", sep="\n")
    reports = {name: f"{name}/report.html" for name in found["parts"]}
    cli.print_files(output, **reports, numbers="rehearsal.json")
    if calibration is not None:
        print(f"\nTrain for this printer and camera: appearance=[calibrated] appearance.calibrated.file={calibration}")

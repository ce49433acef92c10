"""Evaluate a printed patch: before a camera, on a video, a folder of images or a stream.

patchattack webcam run=RUN source=0
patchattack webcam run=RUN source=video.mp4 show=false record=true
patchattack webcam report=FOLDER

The last makes the report of a measurement again, whatever ended it, from what its folder has: without camera or victim.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from patchattack import cli, folders
from patchattack.errors import InputError


def main() -> None:
    """Compose the config from the command line and measure, or report again."""
    if any(one.startswith("report=") for one in sys.argv[1:]):
        cli.command("webcam_report", report)
    else:
        cli.command("webcam", run, of_run="run", unbuilt=("data",))


def report(parts: dict[str, Any]) -> None:
    """Make the report of a session's folder again."""
    from patchattack.webcam.summary import publish

    folder = Path(str(parts["report"]))
    tell(folder, publish(folder, {key: value for key, value in parts["pass_by"].items() if value is not None}))


def run(parts: dict[str, Any]) -> None:
    """Measure, predict, and print the verdict and where everything is."""
    from tqdm import tqdm

    from patchattack import pipeline, processes
    from patchattack.patch import Patch
    from patchattack.printing.fiducials import load_layouts
    from patchattack.webcam.camera_victim import camera_victims, select_victims
    from patchattack.webcam.capture import open_source
    from patchattack.webcam.evaluator import evaluate
    from patchattack.webcam.screen import NoScreen, ScreenWindow
    from patchattack.webcam.session import Setup
    from patchattack.webcam.summary import SessionOrigin

    if parts["source"] is None or parts["run"] is None:
        raise InputError(
            "expected run=RUN and source=0 (a camera's number), a video, a folder or an address, "
            f"got run={parts['run']} and source={parts['source']}"
        )
    folder = Path(str(parts["run"]))
    patch = Patch.load(folder / "patch.png")
    sheets = load_layouts(folder / "print" / "layout.json")
    fabric = processes.start(parts["trainer"])
    victims = select_victims(parts["victims"], parts["victim"])
    setup = Setup(
        trials=camera_victims(victims, parts["attack"], fabric, parts["margin"]),
        patch=patch,
        sheets=sheets,
        lens=parts["lens"],
        size=parts["size"],
        keep=parts["keep"],
        record=parts["record"],
        independent=parts["independent"],
        pass_by=parts["pass_by"],
    )
    output = folders.new_folder(parts["output"], "webcam")
    screen = ScreenWindow() if parts["show"] else NoScreen()
    capture = open_source(
        parts["source"],
        setup.trials[0].frames,
        parts["timeout"],
        parts["fps"],
        parts["resolution"],
        parts["mirrored"],
    )
    origin = SessionOrigin(
        title=f"The printed patch of {folder.name} before the camera",
        setup=[
            ("Patch", f"{folder}, {patch.size_mm[0]:g} × {patch.size_mm[1]:g} mm"),
            ("Sheets", ", ".join(str(sheet.number) for sheet in sheets)),
            ("Source", str(parts["source"])),
            ("Victims", ", ".join(trial.name for trial in setup.trials)),
        ],
        command=cli.command_line(),
        versions=pipeline.versions(),
    )
    progress = partial(tqdm, desc="predicting", unit="frame", delay=2, disable=None)
    outcome = evaluate(setup, capture, screen, output, origin, progress)
    tell(output, outcome)


def tell(folder: Path, outcome: Any) -> None:
    """Print the verdict, what it is of, and where everything is."""
    from patchattack.webcam import pass_bys

    print(f"\n{outcome.verdict}")
    print("; ".join(f"{name}: {count}" for name, count in outcome.counts.items()))
    print(*pass_bys.lines(outcome.pass_bys), sep="\n")
    if outcome.faults:
        print(f"Not all of it could be measured: {'; '.join(outcome.faults)}.")
    cli.print_files(
        folder, report="report.html", per_frame="frames.csv", pass_bys="pass_bys.csv", numbers="summary.json"
    )

"""What defences cost, and what they are worth against a patch that does not know them and one trained through them.

python scripts/defenses.py run=RUN defenses=[jpeg,median,inpainting] [victims=[a,b]] [trainer.steps=200]

Adaptive patches are trained here, each for ``trainer.steps``. With ``output=FOLDER`` of an earlier call, what it holds
is not computed again.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from patchattack import cli
from patchattack.errors import InputError


def main() -> None:
    """Compose the config from the command line and measure."""
    cli.command("defenses", run, of_run="run", unbuilt=("data",))


def run(given: dict[str, Any]) -> None:
    """Measure, write the table and print it."""
    from patchattack import defense_table, pipeline, runs
    from patchattack.patch import Patch

    if given["run"] is None:
        raise InputError(
            "run: expected the folder of a run, whose patch is tried first, got none; give run=outputs/..."
        )
    build = partial(cli.instantiate, _convert_="all")
    data = given["data"]
    given["data"] = build(data)
    names = {"data": "source", "trainer": "settings", "print": "sheet"}
    keys = ("seed", "attack", "victim", "renderer", "patch", "regularizers", "optimizer", "schedule", "tracker")
    trial = defense_table.Trial(
        parts=pipeline.Parts(**{names.get(key, key): given[key] for key in (*keys, *names)}),
        victims=given["victims"] or {given["victim"].name: given["victim"]},
        defenses=given["defenses"],
        patch=Patch.load(Path(str(given["run"])) / "patch.png"),
        command=cli.command_line("scripts/defenses.py"),
        held_out=runs.HeldOut([str(given["run"])], data, given["data"], build),
    )
    folder = cli.new_folder(given["output"], "defenses")
    rows = defense_table.measure(trial, folder, pipeline.start_fabric(trial.parts.settings))
    print(defense_table.publish(trial, rows, folder))
    for name, file in (("report", "report.html"), ("numbers", "defenses.csv"), ("patches", "adaptive")):
        print(f"  {name:9} {folder / file}")


if __name__ == "__main__":
    main()

"""The attacks of the lectures on single images, and what print and photograph leave of them, beside a run's patch.

python scripts/baselines.py images=50
python scripts/baselines.py run=outputs/classification/A attacks=[fgsm,bim,pgd]

The same command with ``output=`` the folder of an interrupted one goes on with it.
"""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Any

from patchattack import cli
from patchattack.errors import assignment


def main() -> None:
    """Compose the config from the command line and attack."""
    cli.command("baselines", run, of_run="run", unbuilt=("data",))


def run(parts: dict[str, Any]) -> None:
    """Attack, write the table and print it."""
    from tqdm import tqdm

    from patchattack import pipeline, runs
    from patchattack.patch import Patch
    from patchattack.per_image import baselines_report, baselines_trial, subject

    attack, settings = parts["attack"], parts["trainer"]
    subject.check_victim(parts["victim"])
    build = partial(cli.instantiate, _convert_="all")
    source = build(parts["data"])
    trial = baselines_trial.Trial(
        victim=parts["victim"],
        goal=subject.Goal.of(attack),
        source=source,
        settings=settings,
        images=parts["images"],
        attacks=parts["attacks"],
        limits=parts["limits"],
        photograph=baselines_trial.Photograph(parts["printed"], parts["photographed"]),
        draws=parts["draws"],
        batch=parts["batch"],
        seed=parts["seed"],
        placement=parts["placement"],
        patch=None if parts["run"] is None else Patch.load(Path(str(parts["run"])) / "patch.png"),
    )
    if parts["run"] is not None:
        seen = runs.HeldOut([str(parts["run"])], parts["data"], source, build)
        seen.check(source, subject.chosen(settings, len(source), parts["images"]))
    parts["victim"].to(pipeline.start_fabric(settings).device)
    command = cli.command_line("scripts/baselines.py")
    asked = [one for one in shlex.split(command) if not one.startswith("output=")]
    folder = cli.new_folder(parts["output"], "baselines")
    baselines_trial.claim(folder, {"command": shlex.join(asked), "versions": pipeline.versions()})

    def progress(left: Any) -> Any:
        return tqdm(left, desc="attacking", unit="attack", dynamic_ncols=True)

    with cli.interruptible(f"{shlex.join(asked)} {assignment('output', folder)}"):
        rows = baselines_trial.measure(trial, progress, folder / "results.json")
    print(baselines_report.publish(trial, rows, folder, command, pipeline.versions()))
    for name, file in (("report", "report.html"), ("numbers", "results.csv")):
        print(f"  {name:9} {folder / file}")


if __name__ == "__main__":
    main()

"""Per-image baselines (FGSM to C&W), before and after print and photograph, compared with a run's patch.

patchattack baselines images=50
patchattack baselines run=outputs/classification/TIME attacks=[fgsm,bim,pgd]

With ``output=FOLDER`` of an earlier call, what it holds is not computed again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchattack import cli, folders


def main() -> None:
    """Compose the config from the command line and attack."""
    cli.command("baselines", run, of_run="run", unbuilt=("data",))


def run(parts: dict[str, Any]) -> None:
    """Attack, write the table and print it."""
    from tqdm import tqdm

    from patchattack import pipeline, processes, runs
    from patchattack.patch import Patch
    from patchattack.studies import study
    from patchattack.studies.single_image import baselines_report, baselines_study, subject

    attack, settings = parts["attack"], parts["trainer"]
    subject.check_victim(parts["victim"])
    source = cli.make(parts["data"])
    baselines = baselines_study.BaselinesStudy(
        victim=parts["victim"],
        goal=subject.Goal.of(attack),
        source=source,
        settings=settings,
        images=parts["images"],
        attacks=parts["attacks"],
        limits=parts["limits"],
        photograph=baselines_study.Photograph(parts["printed"], parts["photographed"]),
        draws=parts["draws"],
        batch=parts["batch"],
        seed=parts["seed"],
        placement=parts["placement"],
        bend=parts["bend"],
        patch=None if parts["run"] is None else Patch.load(Path(str(parts["run"])) / "patch.png"),
    )
    if parts["run"] is not None:
        seen = runs.HeldOut([str(parts["run"])], parts["data"], source, cli.make)
        seen.check(source, subject.choose_scenes(settings, len(source), parts["images"]))
    parts["victim"].to(processes.start(settings).device)
    command = cli.command_line()
    folder = folders.new_folder(parts["output"], "baselines")
    study.check_settings(folder, study.settings_of(command, ("output=",)) | {"versions": pipeline.versions()})

    def progress(left: Any) -> Any:
        return tqdm(left, desc="attacking", unit="attack", dynamic_ncols=True)

    with cli.resumable(cli.command_into(folder)):
        rows = baselines_study.measure(baselines, progress, folder / "results.json")
    print(baselines_report.publish(baselines, rows, folder, command, pipeline.versions()))
    cli.print_files(folder, report="report.html", numbers="results.csv")

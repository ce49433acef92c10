"""One-pixel and few-pixel attacks on single images, by differential evolution (Su et al. 2019).

patchattack one-pixel images=100 pixels=1 [victim=NAME] [data=NAME]

With ``output=FOLDER`` of an earlier call, images that it holds are not attacked again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchattack import cli, folders

FREE = ("output=", "victim.rate=", "victim.retries=", "victim.timeout=")  # they change no result


def main() -> None:
    """Compose the config from the command line and attack."""
    cli.command("one_pixel", run, unbuilt=("victim", "defense"))


def run(parts: dict[str, Any]) -> None:
    """Attack, and print the answer and where everything is."""
    from patchattack import processes
    from patchattack.job import Settings
    from patchattack.studies import study
    from patchattack.studies.single_image.one_pixel_study import OnePixelStudy
    from patchattack.victims import journal

    output = parts["output"]
    answers = journal.of_run(None if output is None else Path(str(output)))
    with answers.asks():
        victim = cli.build({key: parts[key] for key in ("victim", "defense")})["victim"]
    settings = Settings(steps=1, batch=1, **parts["trainer"])
    one_pixel = OnePixelStudy(
        attack=parts["attack"],
        victim=victim,
        source=parts["data"],
        settings=settings,
        images=parts["images"],
        seed=parts["seed"],
        journal=answers,
        fabric=processes.start(settings),
    )
    command = cli.command_line()
    folder = folders.new_folder(output, "one_pixel")
    study.check_settings(folder, study.settings_of(command, FREE))
    with cli.resumable(cli.command_into(folder)):
        verdict = one_pixel.attack_images(folder, command)
    print(f"\n{verdict.sentence}\n{verdict.facts}\n")
    cli.print_files(folder, report="report.html", pictures="pictures", images="images.csv", numbers="results.json")

"""Change the class of images by one pixel, or a few, beside random pixels with as many queries (Su et al. 2019).

python scripts/one_pixel.py victim=classifier_residual data=signs pixels=1 images=100
python scripts/one_pixel.py pixels=3 search.goal=targeted search.target=stop output=outputs/stop

The same command with ``output=`` the folder of an interrupted one goes on with it.
"""

from __future__ import annotations

import shlex
import sys
from typing import Any

from patchattack import cli


def main() -> None:
    """Compose the config from the command line and attack."""
    cli.command("one_pixel", run)


def run(parts: dict[str, Any]) -> None:
    """Attack every image, and print the verdict and where everything is."""
    from torch import Tensor
    from tqdm import tqdm

    from patchattack import pipeline
    from patchattack.per_image import one_pixel, one_pixel_report, subject

    attack, victim, source, settings = parts["search"], parts["victim"], parts["data"], parts["trainer"]
    subject.check_victim(victim)
    attack.bind(victim, source)
    numbers = subject.chosen(settings, len(source), parts["images"])
    command = cli.command_line("scripts/one_pixel.py")
    fabric = pipeline.start_fabric(settings)
    victim.to(fabric.device)
    folder = cli.new_folder(parts["output"], "one_pixel")
    asked = sorted(one for one in shlex.split(command) if not one.startswith("output="))
    one_pixel.claim(folder, {"command": shlex.join(asked), "versions": pipeline.versions()})

    def predict(frames: Tensor) -> Tensor:
        with fabric.autocast():
            return victim(frames.to(fabric.device))

    def progress(left: Any) -> Any:
        return tqdm(left, desc="attacking images", unit="image", dynamic_ncols=True)

    try:
        results = one_pixel.attack_images(
            attack, victim, source, numbers, folder / "images.csv", parts["seed"], predict, progress
        )
    except KeyboardInterrupt:
        given = [one for one in shlex.split(command) if not one.startswith("output=")]
        print(f"interrupted; {folder / 'images.csv'} keeps what is done. To go on:")
        print(shlex.join([*given, f"output={folder}"]))
        sys.exit(130)
    print(one_pixel_report.publish(attack, victim, source, results, folder, command, pipeline.versions()))
    for name, file in (
        ("report", "report.html"),
        ("pictures", "pictures"),
        ("images", "images.csv"),
        ("numbers", "results.json"),
    ):
        print(f"  {name:9} {folder / file}")


if __name__ == "__main__":
    main()

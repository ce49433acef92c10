"""Test the patches of several runs, and any image as a patch, on several victims.

python scripts/transfer.py attack=flow runs=[outputs/flow/A,outputs/flow/B] victims=[flow_matching,flow_encoder_decoder]
python scripts/transfer.py attack=classification runs=[outputs/classification/A,photo.png] victims=[resnet50,vit_b_16]
"""

from __future__ import annotations

from functools import partial
from typing import Any

from patchattack import cli


def run(parts: dict[str, Any]) -> None:
    """Measure, write the table and print it."""
    from patchattack import pipeline, runs, transfer

    given = [str(one) for one in parts["runs"]]
    build = partial(cli.instantiate, _convert_="all")
    source = build(parts["data"])
    trial = transfer.Trial(
        attack=parts["attack"],
        source=source,
        renderer=parts["renderer"],
        victims=parts["victims"],
        patches=runs.load_patches(given, parts["size_mm"]),
        settings=parts["trainer"],
        seed=parts["seed"],
        held_out=runs.HeldOut(given, parts["data"], source, build),
    )
    folder = cli.new_folder(parts["output"], "transfer")
    rows = transfer.measure(trial, pipeline.start_fabric(trial.settings))
    print(transfer.publish(trial, rows, folder, cli.command_line("scripts/transfer.py")))
    print(f"\n  report    {folder / 'transfer.html'}\n  numbers   {folder / 'transfer.json'}")


if __name__ == "__main__":
    cli.command("transfer", run, unbuilt=("data",))

"""Transfer: the patches of several runs, and any image as a patch, on several victims.

patchattack transfer attack=flow runs=[outputs/flow/A,outputs/flow/B] victims=[flow_matching,flow_encoder_decoder]
patchattack transfer attack=classification runs=[outputs/classification/A,photo.png] victims=[resnet50,vit_b_16]
"""

from __future__ import annotations

from typing import Any

from patchattack import cli, folders


def main() -> None:
    """Compose the config from the command line and measure."""
    cli.command("transfer", run, unbuilt=("data",))


def run(parts: dict[str, Any]) -> None:
    """Measure, write the table and print it."""
    from patchattack import processes, runs
    from patchattack.studies import transfer

    given = [str(one) for one in parts["runs"]]
    source = cli.make(parts["data"])
    study = transfer.TransferStudy(
        attack=parts["attack"],
        source=source,
        renderer=parts["renderer"],
        victims=parts["victims"],
        patches=runs.load_patches(given, parts["size_mm"]),
        settings=parts["trainer"],
        seed=parts["seed"],
        held_out=runs.HeldOut(given, parts["data"], source, cli.make),
    )
    folder = folders.new_folder(parts["output"], "transfer")
    rows = transfer.measure(study, processes.start(study.settings))
    print(transfer.publish(study, rows, folder, cli.command_line()))
    cli.print_files(folder, report="transfer.html", numbers="transfer.json")

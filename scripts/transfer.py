"""Test the patches of several runs on several victims.

python scripts/transfer.py attack=flow runs=[outputs/flow/A,outputs/flow/B] victims=[flow_matching,flow_encoder_decoder]
"""

from __future__ import annotations

from typing import Any

from patchattack import cli


def run(parts: dict[str, Any]) -> None:
    """Measure, write the table and print it."""
    from patchattack import pipeline, transfer

    trial = transfer.Trial(
        attack=parts["attack"],
        source=parts["data"],
        renderer=parts["renderer"],
        victims=parts["victims"],
        patches=transfer.load_patches(parts["runs"]),
        settings=parts["trainer"],
        seed=parts["seed"],
    )
    folder = cli.new_folder(parts["output"], "transfer")
    rows = transfer.measure(trial, pipeline.start_fabric(trial.settings))
    print(transfer.publish(trial, rows, folder, cli.command_line("scripts/transfer.py")))
    print(f"\n  report    {folder / 'transfer.html'}\n  numbers   {folder / 'transfer.json'}")


if __name__ == "__main__":
    cli.command("transfer", run)

"""Optimise a patch against a victim, measure it against its controls, and export it to print.

patchattack train attack=flow [key=value ...]
patchattack train resume=outputs/flow/TIME
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchattack import cli, folders
from patchattack.cli import stored
from patchattack.errors import InputError, assignment
from patchattack.redaction import all_redacted


def main() -> None:
    """Compose the config from the command line and train."""
    cli.command("train", run, of_run="resume", unbuilt=None)


def run(plain: dict[str, Any]) -> None:
    """Train, and print the verdict and where everything is."""
    previous = None if plain["resume"] is None else Path(str(plain["resume"]))
    if previous is not None:
        stored.check_same(plain, previous)
        if folders.is_first():
            folders.claim(previous)
    # Torch is imported late: help and errors of the command line do not wait for it.
    from patchattack import assembly, pipeline, processes

    parts = cli.build_parts(plain, previous)
    fabric = processes.start(parts.settings)
    job = assembly.assemble(parts, fabric, previous)
    folder = previous or fabric.broadcast(_new_folder(plain["output"], fabric.global_rank))
    if isinstance(folder, InputError):
        raise folder
    config = all_redacted({key: value for key, value in plain.items() if key not in ("resume", "output")})

    def describe() -> None:
        if previous is None and not (folder / stored.CONFIG).exists():
            stored.write(folder, plain)

    if fabric.global_rank == 0:
        print(f"{cli.attack()} attack on {parts.victim.name}, on {fabric.device}, into {folder}", flush=True)
        describe()

    with cli.resumable(cli.program_with(assignment("resume", folder), *stored.to_type_again())):
        verdict = pipeline.run(
            parts, job, folder, pipeline.Origin(config, cli.command_line()), resumes=previous is not None
        )
    if verdict is not None:
        describe()  # again, where the folder was deleted in the meantime
        print(f"\n{verdict.sentence}\n{verdict.facts}\n")
        cli.print_files(
            folder,
            report="report.html",
            patch="patch.png",
            to_print=f"print/{parts.sheet.page}.pdf",
            numbers="results.json",
        )


def _new_folder(output: str | None, rank: int) -> Path | InputError | None:
    """The new folder, or why there is none; the first process makes it for all."""
    try:
        return folders.new_folder(output, cli.attack()) if rank == 0 else None
    except InputError as error:
        return error

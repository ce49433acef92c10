"""Benchmark: measure patches, victims and defences by one suite, and make a board of the rows.

patchattack bench run [suite=compact] [only=[flow]] [part=1/8] output=FOLDER
patchattack bench add RUN [PATCH ...] [licence=MIT] output=FOLDER
patchattack bench import KIND PATH size_mm=150 output=FOLDER
patchattack bench board runs=[FOLDER,FOLDER] output=FOLDER

With ``output=FOLDER`` of an earlier run, what it holds is not measured again.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchattack import cli, folders
from patchattack.errors import InputError, assignment, quote


def main() -> None:
    """Do what the first word says; the rest of the command line is conf/bench.yaml's."""
    work = {"run": run, "add": add, "import": import_, "board": board}
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in ("-h", "--help"):
        print(__doc__)
        return
    if word not in work:
        print(f"patchattack: bench: expected {', '.join(work)}, got {word or 'nothing'}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"{cli.program()} {word}", *_named(word, sys.argv[2:])]
    cli.command("bench", work[word], unbuilt=None)


def _named(word: str, given: list[str]) -> list[str]:
    """Words that set no key get one: of ``add`` they are patches, of ``import`` a kind and a path."""
    if word not in ("add", "import"):
        return given
    words = [one for one in given if not one.startswith("-") and ("=" not in one or Path(one).exists())]
    rest = [one for one in given if one not in words]
    if word == "add":
        return [*rest, *([f"patches=[{','.join(map(quote, words))}]"] if words else [])]
    return [*rest, *(f"{key}={quote(one)}" for key, one in zip(("kind", "path"), words, strict=False))]


def run(given: dict[str, Any]) -> None:
    """Measure or resume, and say what is missing."""
    from patchattack.benchmark import measure, suite
    from patchattack.cells import FINISHED

    read = suite.read(given["suite"])
    if patches := _listed(given["patches"]):
        read = measure.with_patches(read, patches)
    spots = suite.spots(read, _listed(given["only"]), given["part"])
    workers = given["workers"]
    if not (workers is None or (type(workers) is int and workers > 0)):
        raise InputError(f"workers: expected an integer >= 1, got {workers}")
    entries = measure.assemble(read, spots, lambda overrides: cli.compose("defenses", overrides), cli.make)
    if workers is None:
        on_gpu = any(entry.fabric.device.type != "cpu" for entry in entries.values())
        workers = 1 if on_gpu or not hasattr(os, "fork") else os.cpu_count() or 1
    folder = _folder(given["output"])
    bench = measure.Bench(read, spots, entries, cli.make, folder, "" if given["by"] is None else str(given["by"]))
    again = cli.command_into(folder)
    with cli.resumable(again):
        found = measure.measure(bench, workers)
    failed = [cell for cell in found if cell.status != FINISHED]
    print(f"{len(found) - len(failed)} of {len(found)} measured, in {folder}")
    print(f"A board: patchattack bench board {assignment('runs', folder)}")
    if failed:
        raise InputError(
            f"{len(failed)} of {len(found)} could not be measured, the first: {failed[0].name}: {failed[0].reason}; "
            f"once mended, run the same again: {again}"
        )


def add(given: dict[str, Any]) -> None:
    """Write patches of runs, and patch files, into a folder of patch files."""
    from patchattack.benchmark import measure, patch_file

    paths = _listed(given["patches"])
    if not paths:
        raise InputError("patches: expected runs or patch files, got none; patchattack bench add RUN output=FOLDER")
    told: dict[str, Any] = {key: str(given[key]) for key in ("licence", "source") if given[key] is not None}
    folder = _folder(given["output"])
    for one in (one for path in paths for one in measure.load(path)):
        print(f"  {patch_file.write(folder, replace(one, **told))}  {one.name} for {one.task}, {one.knowledge}")


def import_(given: dict[str, Any]) -> None:
    """Write what somebody has published as patch files, or as a scene pack."""
    from patchattack.benchmark.importers import KINDS, Details

    kind, path, size, frames = (given[key] for key in ("kind", "path", "size_mm", "frames"))
    if kind not in KINDS or path is None:
        raise InputError(
            f"expected patchattack bench import KIND PATH, KIND one of {', '.join(KINDS)}, got {kind} and {path}"
        )
    if not (size is None or (isinstance(size, int | float) and not isinstance(size, bool))):
        raise InputError(f"size_mm: expected millimetres, got {size}")
    texts = {key: given[key] for key in ("task", "goal", "target", "licence", "source")}
    details = Details(
        size_mm=size,
        victims=_listed(given["trained_on"]),
        defenses=_listed(given["trained_through"]),
        frames=None if frames is None else Path(str(frames)).expanduser(),
        **{key: None if text is None else str(text) for key, text in texts.items()},
    )
    importer = KINDS[kind]
    written = importer.write(Path(str(path)).expanduser(), _folder(given["output"]), details)
    print(f"Source: {importer.source}\nLicence: {importer.licence}")
    for one in written:
        print(f"  {one}")


def board(given: dict[str, Any]) -> None:
    """Write the board, and print the table of the victims."""
    from patchattack.benchmark import board

    runs = [Path(one).expanduser() for one in _listed(given["runs"])]
    folder = _folder(given["output"])
    print(board.publish(runs, folder, cli.command_line(), given["hub"]))
    cli.print_files(folder, board="board.html", rows="board.csv", more="board.json", text="board.md", hub="hub")


def _listed(given: Any) -> list[str]:
    """One, or a list of them."""
    return [str(one) for one in (given if isinstance(given, list) else [given])]


def _folder(output: str | None) -> Path:
    """That of the user's, which may be there, or a new one: several may write into it, and each claims its part."""
    if output is None:
        folder = folders.new_folder(None, "bench")
        folders.release()
        return folder
    return Path(str(output)).expanduser()

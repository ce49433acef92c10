"""Compare runs: their patches, what differs in their configs, their numbers and their learning curves.

patchattack compare RUN RUN [RUN ...] [output=FOLDER]
patchattack compare SWEEP
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from patchattack import cells, cli, folders
from patchattack.errors import quote


def main() -> None:
    """Words that set no key are runs."""
    runs = [word for word in sys.argv[1:] if not word.startswith("-") and ("=" not in word or Path(word).is_dir())]
    if runs:
        listed = ",".join(quote(run) for run in runs)
        sys.argv[1:] = [word for word in sys.argv[1:] if word not in runs] + [f"runs=[{listed}]"]
    cli.command("compare", run)


def run(parts: dict[str, Any]) -> None:
    """Read the runs and write the report."""
    from patchattack.reporting.compare import load_runs, write_comparison

    given = [str(one) for one in parts["runs"]]
    if len(given) == 1 and cells.read_all(Path(given[0])):
        _gather(Path(given[0]), parts["output"])
        return
    runs = load_runs(given)
    folder = folders.new_folder(parts["output"], "compare")
    write_comparison(folder / "report.html", runs, cli.command_line())
    cli.print_files(folder, report="report.html")


def _gather(sweep: Path, output: str | None) -> None:
    """Write the table and the reports of the runs of ``-m``, into their folder where no other is given."""
    from patchattack.studies import gather

    folder = sweep if output is None else folders.new_folder(output, "compare")
    print(gather.publish(sweep, folder, cli.command_line()))
    for path in gather.written(folder):
        print(f"  {path}")
